"""The mixture of experts: three kernels for one token, grouped products for many tokens.

For one token the router is an ordinary matrix-vector product. Every later program repeats the softmax and the choice of experts
from its sixteen results, which is cheaper than another kernel. Gate, up and silu are one kernel over the chosen experts' rows;
down, weighting, sum and residual are another.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from jambacli.kernels.triton.gemm import gemm, group_rows
from jambacli.kernels.triton.gemv import silu
from jambacli.kernels.triton.interleave import padded, place
from jambacli.kernels.triton.launch import cdiv, constants, gemv_tile, power_of_two, rounds
from jambacli.kernels.triton.repack import Packed
from jambacli.kernels.triton.stream import mean_square, over_the_row, rows_of, threads
from jambacli.kernels.triton.tiles import row_factor
from jambacli.kernels.triton.turn import add_turn


@triton.jit
def _chosen(logits, rank, E: tl.constexpr, EP: tl.constexpr):
    """The expert with this rank by probability, int32, and its probability among all E, float32."""
    e = tl.arange(0, EP)
    score = tl.load(logits + e, mask=e < E, other=float("-inf"))
    p = tl.exp(score - tl.max(score, 0))
    p = tl.where(e < E, p / tl.sum(p, 0), -1.0)
    left = p
    for _ in range(0, rank):
        left = tl.where(e == tl.argmax(left, 0), -1.0, left)
    best = tl.argmax(left, 0)
    return best, tl.sum(tl.where(e == best, p, 0.0), 0)


@triton.jit
def _up_kernel(
    x, norm, eps, logits, out, q, h, s, d, q2, h2, s2, d2, N, R, K: tl.constexpr,
    G: tl.constexpr, LEVELS: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, SCALES: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr, NORM: tl.constexpr, INTERLEAVED: tl.constexpr,
    INT8: tl.constexpr, GL: tl.constexpr, RL: tl.constexpr, KW: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """out[rank] = silu(gate x) * (up x), interleaved, for the expert of each rank, with normed x."""
    rank = tl.program_id(1)
    expert, _ = _chosen(logits, rank, E, EP)
    offset = expert.to(tl.int64) * N
    own, lane = threads(GL, RL, KW)
    row, last = tl.program_id(0) * (RL * BR) + lane, N - 1
    squares = tl.zeros((GL * RL * KW,), tl.float32)
    t0, t1, t2, t3 = squares, squares, squares, squares
    u0, u1, u2, u3 = squares, squares, squares, squares
    for start in range(0, G, GL * KW):
        squares, t0, t1, t2, t3, u0, u1, u2, u3 = add_turn(
            squares, t0, t1, t2, t3, u0, u1, u2, u3, x, norm, start, own, q, h, s, d, q2, h2, s2, d2, row, last, offset,
            R, K, G, LEVELS, HIGH, ZERO, SCALES, NORM, INTERLEAVED, True, INT8, GL, RL, KW, BR,
        )  # fmt: skip
    row = rows_of(tl.program_id(0), RL, BR)
    row_in, rows = row < N, tl.minimum(row, last).to(tl.int64) + offset
    gate = over_the_row(t0, t1, t2, t3, GL, RL, KW, BR) * row_factor(d, rows, row_in, SCALES)
    up = over_the_row(u0, u1, u2, u3, GL, RL, KW, BR) * row_factor(d2, rows, row_in, SCALES)
    if NORM:
        scale = 1.0 / tl.sqrt(mean_square(squares, K, GL, RL, KW) + eps)
        gate *= scale
        up *= scale
    tl.store(out + rank * ((N + 255) // 256 * 256) + place(row), silu(gate) * up, mask=row_in)


@triton.jit
def _down_kernel(
    x, logits, residual, out, q, h, s, d, N, R, K: tl.constexpr,
    G: tl.constexpr, LEVELS: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, SCALES: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr, TOP: tl.constexpr, RESIDUAL: tl.constexpr, PLACED: tl.constexpr,
    INT8: tl.constexpr, GL: tl.constexpr, RL: tl.constexpr, KW: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """out = (residual +) sum over ranks of probability * down x[rank]. x is interleaved; out and residual if PLACED."""
    own, lane = threads(GL, RL, KW)
    row, last = tl.program_id(0) * (RL * BR) + lane, N - 1
    out_row = rows_of(tl.program_id(0), RL, BR)
    row_in = out_row < N
    y = tl.zeros((RL, BR), tl.float32)
    for rank in range(0, TOP):
        expert, probability = _chosen(logits, rank, E, EP)
        offset = expert.to(tl.int64) * N
        t0 = tl.zeros((GL * RL * KW,), tl.float32)
        t1, t2, t3 = t0, t0, t0
        for start in range(0, G, GL * KW):
            _, t0, t1, t2, t3, _, _, _, _ = add_turn(
                t0, t0, t1, t2, t3, t0, t0, t0, t0, x + rank * ((K + 255) // 256 * 256), x, start, own, q, h, s, d,
                q, h, s, d, row, last, offset, R,
                K, G, LEVELS, HIGH, ZERO, SCALES, False, True, False, INT8, GL, RL, KW, BR,
            )  # fmt: skip
        total = over_the_row(t0, t1, t2, t3, GL, RL, KW, BR)
        rows = tl.minimum(out_row, last).to(tl.int64) + offset
        y += probability * total * row_factor(d, rows, row_in, SCALES)
    row = out_row
    if PLACED:
        row = place(row)
    if RESIDUAL:
        y += tl.load(residual + row, mask=row_in, other=0)
        tl.debug_barrier()  # threads may share a row: all read it before one writes
    tl.store(out + row, y, mask=row_in)


def one_token(
    x: torch.Tensor,
    logits: torch.Tensor,
    gate: Packed,
    up: Packed,
    down: Packed,
    top_k: int,
    *,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    hidden: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    interleaved: bool = False,
    int8: bool = False,
) -> torch.Tensor:
    """One token's experts after the router: x float32 [hidden], logits float32 [experts], to float32 [hidden].

    ``norm``: weight of an RMS norm of x. ``residual`` is added. gate and up must have the same format.
    ``hidden`` float32 [top_k, padded(ffn)] is scratch, whose padding is zero. ``interleaved``: x, ``norm``, ``residual`` and
    the result are in the order of ``interleave``. ``int8`` as in ``gemv``, for the
    matrices that ``launch.rounds`` names.
    """
    n_experts, ffn, width = gate.shape
    if hidden is None:
        hidden = torch.zeros(top_k, padded(ffn), device=x.device)
    if out is None:
        out = torch.empty_like(x)
    choice = {"E": n_experts, "EP": power_of_two(n_experts)}
    rounded = int8 and rounds(gate, ffn)
    tile = gemv_tile(gate, ffn, gated=True, int8=rounded)
    _up_kernel[cdiv(ffn, tile.height), top_k](
        x, x if norm is None else norm, eps, logits, hidden, *gate.planes(), *up.planes(), ffn, gate.rows, width,
        **constants(gate), **choice, NORM=norm is not None, INTERLEAVED=interleaved, INT8=rounded, **tile.constants(),
    )  # fmt: skip
    rounded = int8 and rounds(down, width)
    tile = gemv_tile(down, width, int8=rounded)
    _down_kernel[(cdiv(width, tile.height),)](
        hidden, logits, out if residual is None else residual, out, *down.planes(), width, down.rows, ffn,
        **constants(down), **choice, TOP=top_k, RESIDUAL=residual is not None, PLACED=interleaved, INT8=rounded,
        **tile.constants(),
    )  # fmt: skip
    return out


def choose(x: torch.Tensor, router: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities float32 [T, top_k] among all experts, and the indices of the experts int64 [T, top_k]."""
    return torch.softmax(x @ router.T, dim=-1).topk(top_k, dim=-1)


def sort_by_expert(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """chosen int64 [T, top_k] -> experts in ascending order [T * top_k], their tokens, and the place of each (token, rank)."""
    top_k = chosen.shape[1]
    expert, order = chosen.flatten().sort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return expert, order // top_k, place


def weigh(y: torch.Tensor, place: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum sorted rows y [T * top_k, hidden] times their weights per token, in order of rank: [T, hidden]."""
    return (y[place].view(*weights.shape, -1) * weights[..., None]).sum(1)


def many_tokens(
    x: torch.Tensor,
    router: torch.Tensor,
    gate: Packed,
    up: Packed,
    down: Packed,
    top_k: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """All experts in one grouped product for gate and up and one for down, without waiting for the GPU."""
    weights, chosen = choose(x, router, top_k)
    expert, token, place = sort_by_expert(chosen)
    groups = group_rows(expert, token, router.shape[0])
    h = gemm(x, gate, up=up, dtype=dtype, groups=groups)
    rows = torch.arange(len(token), device=x.device)
    y = gemm(h, down, dtype=dtype, groups=group_rows(expert, rows, router.shape[0]))
    return weigh(y, place, weights)
