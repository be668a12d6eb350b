"""Rounding with feedback: blocks of a matrix chosen for the error of its products, not of its values.

For inputs x with the second moments H = mean(x x'), the products of a row w with values v instead are off by (w - v) H (w - v)'
in the mean square. With H = R R', R upper triangular, that is the sum over columns k of ((w - v) R)_k squared, and term k holds
no column after k. So column blocks are rounded from left to right, each so that its own terms become small with what the blocks
before it leave (GPTQ, Frantar et al. 2022, in Babai's form, which needs no inverse of H). Columns cannot be put in another
order, since the blocks of a format are runs of neighbouring columns.

Within a column block: scales by ``search``, then ``solve``: rounding in order and coordinate descent. A row keeps ggml's blocks
where these have the smaller error. Work is cut into pieces whose sizes do not depend on the number of threads, each done by one
thread, so that the bytes do not depend on it either.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.dequantize_blocks import dequantize
from quant.formats import get_format
from quant.native import NonFiniteRowError, default_threads
from quant.quantize_blocks import quantize
from quant.refine_blocks import can_refine, search, solve
from quant.rows import row_name

COLUMNS = 256
_ROWS = 512
_TILE = 512
#: What is added to the diagonal of H, in units of its mean.
DAMPING = 0.05
_ROUNDS = 2


@dataclass(frozen=True)
class Curvature:
    """The second moments H of a matrix's inputs, damped and factorized.

    ``triangle``: R with R R' = H, float32 [n, n], upper triangular. ``importance``: H's diagonal before damping, float32 [n].
    """

    triangle: Tensor
    importance: Tensor

    @property
    def n(self) -> int:
        """The number of columns."""
        return len(self.importance)


def second_moments(inputs: Tensor, threads: int | None = None) -> Tensor:
    """The mean of x x' over the rows x of ``inputs``, float32 [T, n]: float32 [n, n], the lower triangle not filled in."""
    n = inputs.shape[1]
    out = torch.zeros(n, n)

    def tile(first: int) -> None:
        part = inputs[:, first : first + _TILE]
        torch.matmul(part.T, inputs[:, first:], out=out[first : first + _TILE, first:])

    _each(range(0, n, _TILE), tile, threads)
    return out.div_(max(1, len(inputs)))


def factorize(moments: Tensor, damping: float = DAMPING, threads: int | None = None) -> Curvature:
    """Factorize the upper triangle of ``moments``, float32 [n, n], with ``damping`` times the mean of its diagonal added to it.

    Columns without inputs are damped alone; without any, every column weighs the same. More is added where float32 does not
    suffice. Raises ValueError for moments that are not finite.
    """
    importance = moments.diagonal().clone()
    mean = float(importance.double().mean())
    if not torch.isfinite(moments).all() or bool((importance < 0).any()):
        raise ValueError("the second moments are not finite")
    if mean <= 0:
        importance = torch.ones_like(importance)
        return Curvature(torch.eye(len(importance)), importance)
    for more in (1, 10, 100, 1000):
        triangle = moments.triu()
        triangle.diagonal().add_(mean * damping * more)
        with contextlib.suppress(torch.linalg.LinAlgError):
            _cholesky(triangle, threads)
            return Curvature(triangle, importance)
    raise ValueError("the second moments cannot be factorized")


def _cholesky(h: Tensor, threads: int | None) -> None:
    """Replace the upper triangular part of H by R with R R' = H, from the last block of columns to the first."""
    n = len(h)
    for first in reversed(range(0, n, COLUMNS)):
        last = min(first + COLUMNS, n)
        corner = h[first:last, first:last].double()
        corner = corner.triu() + corner.triu(1).T
        own = torch.linalg.cholesky(corner.flip(0, 1)).flip(0, 1)
        h[first:last, first:last] = own
        if not first:
            break
        h[:first, first:last] @= torch.linalg.inv(own).T.float()
        above = h[:first, first:last]

        def tile(top: int, above: Tensor = above, first: int = first) -> None:
            bottom = min(top + _TILE, first)
            h[top:bottom, top:first] -= above[top:bottom] @ above[top:].T

        _each(range(0, first, _TILE), tile, threads)
    h.triu_()


@dataclass(frozen=True)
class _Block:
    """Columns ``start`` to ``stop``: their part of R, its inverse, S = R R' and the weights of the search for scales."""

    start: int
    stop: int
    R: Tensor
    inverse: Tensor
    S: Tensor
    weights: Tensor


def _blocks(curvature: Curvature) -> list[_Block]:
    found = []
    for start in range(0, curvature.n, COLUMNS):
        stop = min(start + COLUMNS, curvature.n)
        exact = curvature.triangle[start:stop, start:stop].double()
        # What a column's error costs when the columns after it are free to make up for it.
        weights = exact.diagonal().square().float().contiguous()
        own, inverse = exact.float().contiguous(), torch.linalg.inv(exact).float().contiguous()
        found.append(_Block(start, stop, own, inverse, (exact @ exact.T).float().contiguous(), weights))
    return found


def refine(
    weights: Tensor, fmt: str, curvature: Curvature, *, out: Tensor | None = None, threads: int | None = None
) -> Tensor:
    """Blocks of a matrix whose products with its inputs are as close as possible to those of ``weights``.

    Args:
        weights: float32, float16 or bfloat16 [rows, n] in host memory, contiguous.
        fmt: a format with ``refine_blocks.can_refine``.
        curvature: of the matrix's inputs, from ``factorize``.
        out: receives the blocks, uint8 [rows, row bytes].
        threads: CPU threads; every processor by default. They change nothing in the result.

    Returns:
        ``out``, or a new tensor. The error of no row, as ``curvature`` measures it, is above that of ggml's blocks with an
        imatrix of the same inputs.

    Raises:
        ValueError: a format or shape that does not fit, or a row that is not finite (``native.NonFiniteRowError``).
    """
    form = get_format(fmt)
    rows, n = weights.shape
    if not can_refine(fmt) or n != curvature.n:
        raise ValueError(f"cannot refine rows of {n} values in {form.name} for {curvature.n} inputs")
    out = torch.empty(rows, form.row_bytes(n), dtype=torch.uint8) if out is None else out
    blocks = _blocks(curvature)

    def panel(first: int) -> None:
        part = weights[first : first + _ROWS].float()
        try:
            out[first : first + _ROWS] = _refine_rows(part, form.name, curvature, blocks)
        except NonFiniteRowError as error:
            raise NonFiniteRowError(first + error.row, row_name(first + error.row, (rows, n))) from None

    _each(range(0, rows, _ROWS), panel, threads)
    return out


def _refine_rows(w: Tensor, fmt: str, curvature: Curvature, blocks: list[_Block]) -> Tensor:
    form = get_format(fmt)
    plain = quantize(w, fmt, curvature.importance, threads=1)
    found = torch.empty_like(plain)
    carried = torch.zeros_like(w)  # (w - v) R of the blocks so far
    error, plain_error = torch.zeros(2, len(w), dtype=torch.float64)
    off = w - dequantize(plain, fmt, threads=1)
    for block in blocks:
        at = slice(block.start, block.stop)
        x = (w[:, at] + carried[:, at] @ block.inverse).contiguous()
        x = torch.where(torch.isfinite(x).all(1, keepdim=True), x, w[:, at])
        own = search(x, fmt, block.weights, threads=1)
        values = torch.empty_like(x)
        solve(fmt, x, block.S, own, R=block.R, rounds=_ROUNDS, values=values, threads=1)
        found[:, form.row_bytes(block.start) : form.row_bytes(block.stop)] = own
        change = w[:, at] - values
        error += (carried[:, at] + change @ block.R).double().square().sum(1)
        carried[:, block.stop :] += change @ curvature.triangle[at, block.stop :]
        plain_error += (off[:, : block.stop] @ curvature.triangle[: block.stop, at]).double().square().sum(1)
    return torch.where((error <= plain_error)[:, None], found, plain)  # not for an error that is no number


def row_errors(weights: Tensor, blocks: Tensor, fmt: str, curvature: Curvature) -> Tensor:
    """The mean square error of each row's products, with the damping: float64 [rows]."""
    off = weights.double() - dequantize(blocks, fmt).double()
    return (off @ curvature.triangle.double()).square().sum(1)


def _each(items: Iterable[int], work: Callable[[int], None], threads: int | None) -> None:
    """``work`` on every item, on several threads; each computes with one of torch's."""
    with _single_threaded(threads or default_threads()) as pool:
        for _ in pool.map(work, items):
            pass


@contextlib.contextmanager
def _single_threaded(threads: int) -> Iterator[ThreadPoolExecutor]:
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)
