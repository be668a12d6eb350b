"""Better bytes in the same formats: the public side of the refinements in C++.

``search`` improves blocks for the error weighted with an imatrix. ``solve`` improves one column block of every row for a
quadratic error, which ``quant.feedback`` puts together to whole rows. Both need the C++ library; their definition in torch is
``quant.refine_reference``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant import native
from quant.formats import get_format
from quant.quantize_blocks import quantize


def can_refine(fmt: str) -> bool:
    """Whether the C++ library is built and refines blocks of the format called ``fmt``."""
    return native.can_refine(get_format(fmt).ggml_type)


def search(
    values: Tensor, fmt: str, weights: Tensor, blocks: Tensor | None = None, threads: int | None = None
) -> Tensor:
    """Blocks of ``values`` with better scales, minimums and levels for the squared error weighted with ``weights``.

    Args:
        values: float32 [rows, n] in host memory, contiguous.
        fmt: a format with ``can_refine``.
        weights: float32 [n], the importance of each column, not negative.
        blocks: where to begin, uint8 [rows, row bytes], contiguous; by default ggml's with ``weights`` as the imatrix.
        threads: CPU threads; every processor by default. They change nothing in the result.

    Returns:
        New blocks. The weighted error of no super-block (or block of 32) is above that of ``blocks``.

    Raises:
        ValueError: a format, shape or weight that does not fit, or a row that is not finite (``native.NonFiniteRowError``).
    """
    form = get_format(fmt)
    rows, n = values.shape
    _check(values, (rows, n), torch.float32, "values")
    _check(weights, (n,), torch.float32, "weights")
    out = quantize(values, fmt, weights, threads=threads) if blocks is None else blocks.clone()
    _check(out, (rows, form.row_bytes(n)), torch.uint8, "blocks")
    native.search_rows(
        form.ggml_type,
        values.data_ptr(),
        rows,
        n,
        weights.data_ptr(),
        out.data_ptr(),
        threads or native.default_threads(),
    )
    return out


def solve(
    fmt: str,
    x: Tensor,
    S: Tensor,
    blocks: Tensor,
    *,
    R: Tensor | None = None,
    gradient: Tensor | None = None,
    rounds: int = 1,
    values: Tensor | None = None,
    threads: int | None = None,
) -> None:
    """Change ``blocks`` of one column block so that (x - y) S (x - y)' falls for every row x and its values y.

    Args:
        fmt: a format with ``can_refine``.
        x: float32 [rows, columns], at most 256 columns, whole blocks.
        S: float32 [columns, columns], symmetric, with a positive diagonal.
        blocks: uint8 [rows, bytes], where to begin; changed in place.
        R: float32 [columns, columns], upper triangular with R R' = S: round the columns in order first, each with the error of
            those before it, with the scales that ``blocks`` have.
        gradient: float32 [rows, columns], half the derivative of a larger quadratic error with respect to x - y; (x - y) S by
            default. Not with ``R``.
        rounds: of coordinate descent afterwards; none with 0.
        values: receives y, float32 [rows, columns].
        threads: as for ``search``.

    Rows may be apart (a stride), their values are contiguous. Raises ValueError for shapes that do not fit.
    """
    form = get_format(fmt)
    rows, columns = x.shape
    for name, array in (("x", x), ("gradient", gradient), ("values", values)):
        if array is not None and (array.dtype != torch.float32 or array.shape != x.shape or array.stride(1) != 1):
            raise ValueError(f"{name} must be float32 {[rows, columns]} with contiguous rows")
    for name, array in (("S", S), ("R", R)):
        if array is not None:
            _check(array, (columns, columns), torch.float32, name)
    if blocks.shape != (rows, form.row_bytes(columns)) or blocks.dtype != torch.uint8 or blocks.stride(1) != 1:
        raise ValueError(f"blocks must be uint8 {[rows, form.row_bytes(columns)]} with contiguous rows")
    if R is not None and gradient is not None:
        raise ValueError("give R or gradient, not both")

    def place(array: Tensor | None) -> tuple[int | None, int]:
        return (None, 0) if array is None else (array.data_ptr(), array.stride(0))

    native.solve_block(
        form.ggml_type,
        (x.data_ptr(), x.stride(0)),
        (rows, columns),
        S.data_ptr(),
        None if R is None else R.data_ptr(),
        place(gradient),
        rounds,
        (blocks.data_ptr(), blocks.stride(0)),
        place(values),
        threads or native.default_threads(),
    )


def _check(array: Tensor, shape: tuple[int, ...], dtype: torch.dtype, name: str) -> None:
    if tuple(array.shape) != shape or array.dtype != dtype or not array.is_contiguous() or array.device.type != "cpu":
        raise ValueError(f"{name} must be {dtype} {list(shape)} in host memory, contiguous")
