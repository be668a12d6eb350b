"""The product of one row of activations with a packed matrix, fused with what comes before and after it.

Decode reads every weight once and computes little with it, so the kernel is built for reading (see ``stream``). The norm
before a product, the gate between two, and the residual or convolution after one are part of its kernel. The norm's factor
is applied last: sum(w * x * weight) * rsqrt(mean(x^2) + eps).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from jambacli.kernels.triton.interleave import padded, place
from jambacli.kernels.triton.interpret import WIDEN
from jambacli.kernels.triton.launch import Tile, cdiv, constants, gemv_tile, power_of_two
from jambacli.kernels.triton.repack import Packed
from jambacli.kernels.triton.stream import mean_square, over_the_row, rows_of, threads
from jambacli.kernels.triton.tiles import row_factor
from jambacli.kernels.triton.turn import add_turn


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
def _convolved(now, weight, bias, state, c, c_in, TAPS: tl.constexpr, TP: tl.constexpr):
    """silu(bias + sum over taps) of channels c [RL, BR] with the newest inputs ``now``; updates the state [channels, TAPS - 1].
    TP: a power of two, at least TAPS - 1."""
    n = tl.arange(0, TP)[None, None, :]
    cell = c[:, :, None] * (TAPS - 1) + n
    inside = c_in[:, :, None] & (n < TAPS - 1)
    before = tl.load(state + cell, mask=inside, other=0)
    total = tl.sum(before * tl.load(weight + c[:, :, None] * TAPS + n, mask=inside, other=0), 2)
    total += tl.load(weight + c * TAPS + TAPS - 1, mask=c_in, other=0) * now
    # Threads may share a channel: all read it before one writes.
    tl.debug_barrier()
    tl.store(state + cell - 1, before, mask=inside & (n > 0))
    if TAPS > 1:
        tl.store(state + c * (TAPS - 1) + TAPS - 2, now, mask=c_in)
    return silu(total + tl.load(bias + c, mask=c_in, other=0))


@triton.jit
def _gemv_kernel(
    x, norm, eps, residual, out, q, h, s, d, q2, h2, s2, d2, conv_weight, conv_bias, conv_state, N, R,
    K: tl.constexpr, x_stride,
    G: tl.constexpr, LEVELS: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, SCALES: tl.constexpr,
    NORM: tl.constexpr, RESIDUAL: tl.constexpr, GATED: tl.constexpr, CHANNELS: tl.constexpr, TAPS: tl.constexpr,
    TP: tl.constexpr, INTERLEAVED: tl.constexpr, PLACED: tl.constexpr, INT8: tl.constexpr,
    GL: tl.constexpr, RL: tl.constexpr, KW: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """out[t, n] = (residual[t, n] +) w[n] . norm(x[t]); gated: silu(w[n] . x) * (w2[n] . x).

    The first CHANNELS rows go through a convolution step with TAPS taps (0: none). INTERLEAVED: x and the norm's weight are.
    The first PLACED values of out, and of the residual, are interleaved; the others follow after the padding. INT8: normed
    activations are rounded to int8.
    """
    own, lane = threads(GL, RL, KW)
    row, last = tl.program_id(0) * (RL * BR) + lane, N - 1
    token = tl.program_id(1).to(tl.int64)
    x += token * x_stride
    squares = tl.zeros((GL * RL * KW,), tl.float32)
    t0, t1, t2, t3 = squares, squares, squares, squares
    u0, u1, u2, u3 = squares, squares, squares, squares
    for start in range(0, G, GL * KW):
        squares, t0, t1, t2, t3, u0, u1, u2, u3 = add_turn(
            squares, t0, t1, t2, t3, u0, u1, u2, u3, x, norm, start, own, q, h, s, d, q2, h2, s2, d2, row, last, 0, R,
            K, G, LEVELS, HIGH, ZERO, SCALES, NORM, INTERLEAVED, GATED, INT8, GL, RL, KW, BR,
        )  # fmt: skip
    row = rows_of(tl.program_id(0), RL, BR)
    row_in, rows = row < N, tl.minimum(row, last).to(tl.int64)
    y = over_the_row(t0, t1, t2, t3, GL, RL, KW, BR) * row_factor(d, rows, row_in, SCALES)
    y2 = over_the_row(u0, u1, u2, u3, GL, RL, KW, BR)
    if NORM:
        scale = 1.0 / tl.sqrt(mean_square(squares, K, GL, RL, KW) + eps)
        y *= scale
        y2 *= scale
    if GATED:
        y = silu(y) * (y2 * row_factor(d2, rows, row_in, SCALES))
    if TAPS > 0:
        first = row < CHANNELS
        y = tl.where(first, _convolved(y, conv_weight, conv_bias, conv_state, row, first, TAPS, TP), y)
    at, width = row, N
    if PLACED > 0:
        padding: tl.constexpr = (PLACED + 255) // 256 * 256 - PLACED
        at = tl.where(row < PLACED, place(row), row + padding)
        width = N + padding
    if RESIDUAL:
        y += tl.load(residual + token * width + at, mask=row_in, other=0)
        tl.debug_barrier()  # out may be the residual, see _convolved
    tl.store(out + token * width + at, y, mask=row_in)


@dataclass(frozen=True)
class ConvStep:
    """A causal convolution step over the first rows of a product: weight float32 [channels, taps], bias float32 [channels],
    and the previous inputs, float32 [channels, taps - 1], which it updates. See ``reference.causal_conv``."""

    weight: torch.Tensor
    bias: torch.Tensor
    state: torch.Tensor


def gemv(
    x: torch.Tensor,
    w: Packed,
    *,
    up: Packed | None = None,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    conv: ConvStep | None = None,
    out: torch.Tensor | None = None,
    tile: Tile | None = None,
    interleaved: bool = False,
    placed: int = 0,
    int8: bool = False,
) -> torch.Tensor:
    """x [T, in] times w [out, in], with one pass over the weights per row: float32 [T, out]. Built for T = 1.

    ``norm`` float32 [in]: weight of an RMS norm of x. ``up``, of w's shape and format: returns silu(w x) * (up x). ``residual``
    float32 [T, out] is added; it may be ``out``. ``conv``: the first channels of the result go through this convolution
    (T = 1). Rows of x are contiguous.

    ``interleaved``: x [T, padded(in)] and ``norm`` are in the order of ``interleave``. ``placed``: so many values of the result
    and of ``residual`` are in that order, and the others follow after their padding: float32
    [T, padded(placed) + out - placed]. The padding keeps its values.

    ``int8``: activations, after the norm's weight, are rounded to int8 with a factor per 32 values. For formats of integer
    levels, see ``launch.rounds``.
    """
    n, k = w.shape
    t = x.shape[0]
    if out is None:
        new = torch.zeros if placed else torch.empty
        out = new(t, padded(placed) + n - placed, device=x.device)
    tile = tile or gemv_tile(w, n, gated=up is not None, int8=int8)
    _gemv_kernel[cdiv(n, tile.height), t](
        x,
        x if norm is None else norm,
        eps,
        out if residual is None else residual,
        out,
        *w.planes(),
        *(w if up is None else up).planes(),
        *((out, out, out) if conv is None else (conv.weight, conv.bias, conv.state)),
        n,
        w.rows,
        k,
        x.stride(0),
        **constants(w),
        NORM=norm is not None,
        RESIDUAL=residual is not None,
        GATED=up is not None,
        CHANNELS=0 if conv is None else conv.weight.shape[0],
        TAPS=0 if conv is None else conv.weight.shape[1],
        TP=1 if conv is None else power_of_two(conv.weight.shape[1] - 1),
        INTERLEAVED=interleaved,
        PLACED=placed,
        INT8=int8,
        **tile.constants(),
    )
    return out
