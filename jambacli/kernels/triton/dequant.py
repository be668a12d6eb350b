"""Dequantizes packed weights, whole or some of their rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from jambacli.kernels.triton.interleave import padded, place
from jambacli.kernels.triton.interpret import interpreted
from jambacli.kernels.triton.launch import cdiv, constants, power_of_two
from jambacli.kernels.triton.repack import Packed
from jambacli.kernels.triton.tiles import values


@triton.jit(do_not_specialize=["n_rows", "first"])
def _dequant_kernel(
    q, h, s, d, ids, out, n_rows, first, R, K,
    G: tl.constexpr, LEVELS: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, SCALES: tl.constexpr,
    PICK: tl.constexpr, PLACED: tl.constexpr, BN: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    """Rows ``first + r`` (or ``ids[r]``) for r below n_rows, into out [n_rows, K]; PLACED: interleaved [n_rows, padded K]."""
    r = tl.program_id(0) * BN + tl.arange(0, BN)
    g = tl.program_id(1) * BG + tl.arange(0, BG)
    rows = first + r.to(tl.int64)
    if PICK:
        rows = tl.load(ids + r, mask=r < n_rows, other=0).to(tl.int64)
    inside = (g < G)[:, None] & (r < n_rows)[None, :]
    lo, hi = values(q, h, s, d, rows, g, inside, R, G, LEVELS, HIGH, ZERO, SCALES)
    column = g[:, None, None] * 32 + tl.arange(0, 16)[None, None, :]
    if PLACED:
        start = out + r.to(tl.int64)[None, :, None] * ((K + 255) // 256 * 256)
        first_half, second_half = start + place(column), start + place(column + 16)
    else:
        first_half = out + r.to(tl.int64)[None, :, None] * K + column
        second_half = first_half + 16
    tl.store(first_half, lo.to(out.dtype.element_ty), mask=inside[:, :, None] & (column < K))
    tl.store(second_half, hi.to(out.dtype.element_ty), mask=inside[:, :, None] & (column + 16 < K))


def _launch(
    w: Packed, out: torch.Tensor, ids: torch.Tensor | None, first: int, *, interleaved: bool = False
) -> torch.Tensor:
    n_rows, k = out.shape[0], w.shape[-1]
    bg = min(64, power_of_two(w.groups))
    # Independent of the number of rows, which would each compile another kernel.
    bn = min(64, power_of_two(n_rows)) if interpreted() else 256 // bg
    grid = (cdiv(n_rows, bn), cdiv(w.groups, bg))
    _dequant_kernel[grid](
        *w.planes(),
        w.q if ids is None else ids,
        out,
        n_rows,
        first,
        w.rows,
        k,
        **constants(w),
        PICK=ids is not None,
        PLACED=interleaved,
        BN=bn,
        BG=bg,
    )
    return out


def dequantize(
    w: Packed, dtype: torch.dtype, first: int = 0, n_rows: int | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Rows ``first`` to ``first + n_rows`` (all of them by default) as ``dtype`` [n_rows, row], into ``out`` if given."""
    assert w.q is not None
    n_rows = w.rows - first if n_rows is None else n_rows
    if out is None:
        out = torch.empty(n_rows, w.shape[-1], dtype=dtype, device=w.q.device)
    return _launch(w, out, None, first)


def embed(ids: torch.Tensor, w: Packed, out: torch.Tensor | None = None, *, interleaved: bool = False) -> torch.Tensor:
    """Rows ``ids`` (int64 [T], on the weight's device) as float32 [T, row], into ``out`` if given.

    ``interleaved``: in the order of ``interleave``, [T, padded(row)]; the padding keeps its values.
    """
    assert w.q is not None
    if out is None:
        n = w.shape[-1]
        new, width = (torch.zeros, padded(n)) if interleaved else (torch.empty, n)
        out = new(len(ids), width, device=w.q.device)
    return _launch(w, out, ids, 0, interleaved=interleaved)
