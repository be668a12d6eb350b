"""One row of activations times a packed matrix, with what comes before and after it; knows nothing of layers.

Decoding reads every weight once and computes little with it, so the kernel is made to read: sixteen bytes a thread, the
rows of a tile side by side, and the norm before, the gate between and the residual after a product cost no kernel of
their own. The norm's factor is found on the way: sum(w * x * weight) * rsqrt(mean(x^2) + eps).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from jambacli.kernels.triton.interpret import WIDEN
from jambacli.kernels.triton.launch import Tile, cdiv, constants, gemv_tile
from jambacli.kernels.triton.repack import Packed
from jambacli.kernels.triton.tiles import dots, row_factor


@triton.jit
def load_x(x, norm, g, K, NORM: tl.constexpr):
    """Groups g of a row: two halves float32 [BG, 16], times the norm's weight, and the sums of squares before it [BG]."""
    at = g[:, None] * 32 + tl.arange(0, 16)[None, :]
    lo = tl.load(x + at, mask=at < K, other=0).to(tl.float32)
    hi = tl.load(x + at + 16, mask=at + 16 < K, other=0).to(tl.float32)
    if NORM:
        squares = tl.sum(lo * lo, 1) + tl.sum(hi * hi, 1)
        lo *= tl.load(norm + at, mask=at < K, other=0)
        hi *= tl.load(norm + at + 16, mask=at + 16 < K, other=0)
    else:
        squares = tl.zeros(g.shape, tl.float32)
    return lo, hi, squares


@triton.jit
def silu(x):
    """x * sigmoid(x)."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def dot(a, b, total):
    """total + a b on the matrix units, summed in float32."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def _gemv_kernel(
    x, norm, eps, residual, out, q, h, s, d, q2, h2, s2, d2, N, R, K, x_stride,
    G: tl.constexpr, LEVELS: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, SCALES: tl.constexpr,
    NORM: tl.constexpr, RESIDUAL: tl.constexpr, GATED: tl.constexpr, BN: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    """out[t, n] = (residual[t, n] +) w[n] . norm(x[t]); gated: silu(w[n] . x) * (w2[n] . x)."""
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    token = tl.program_id(1).to(tl.int64)
    row_in, rows = row < N, row.to(tl.int64)
    x += token * x_stride
    total = tl.zeros((BG, BN), tl.float32)
    total2 = tl.zeros((BG, BN), tl.float32)
    squares = tl.zeros((BG,), tl.float32)
    for start in range(0, G, BG):
        g = start + tl.arange(0, BG)
        inside = (g < G)[:, None] & row_in[None, :]
        lo, hi, more = load_x(x, norm, g, K, NORM)
        squares += more
        total += dots(lo, hi, q, h, s, d, rows, g, inside, R, G, LEVELS, HIGH, ZERO, SCALES)
        if GATED:
            total2 += dots(lo, hi, q2, h2, s2, d2, rows, g, inside, R, G, LEVELS, HIGH, ZERO, SCALES)
    y = tl.sum(total, 0) * row_factor(d, rows, row_in, SCALES)
    y2 = tl.sum(total2, 0)
    if NORM:
        scale = 1.0 / tl.sqrt(tl.sum(squares, 0) / K + eps)
        y *= scale
        y2 *= scale
    if GATED:
        y = silu(y) * (y2 * row_factor(d2, rows, row_in, SCALES))
    if RESIDUAL:
        y += tl.load(residual + token * N + row, mask=row_in, other=0)
    tl.store(out + token * N + row, y, mask=row_in)


def gemv(
    x: torch.Tensor,
    w: Packed,
    *,
    up: Packed | None = None,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:
    """x [T, in] times w [out, in], a pass over the weights for every row: float32 [T, out]. Made for T = 1.

    ``norm`` float32 [in]: x goes through that RMS norm first. ``up``, of w's shape and format: silu(w x) * (up x).
    ``residual`` float32 [T, out] is added; it may be ``out``. x is contiguous along its rows.
    """
    n, k = w.shape
    t = x.shape[0]
    if out is None:
        out = torch.empty(t, n, device=x.device)
    tile = tile or gemv_tile(w, n, gated=up is not None)
    _gemv_kernel[cdiv(n, tile.rows), t](
        x,
        x if norm is None else norm,
        eps,
        out if residual is None else residual,
        out,
        *w.planes(),
        *(w if up is None else up).planes(),
        n,
        w.rows,
        k,
        x.stride(0),
        **constants(w),
        NORM=norm is not None,
        RESIDUAL=residual is not None,
        GATED=up is not None,
        BN=tile.rows,
        BG=tile.groups,
        num_warps=tile.warps,
    )
    return out
