"""Products of a few dozen rows with a packed matrix, or of many rows each with the matrix of its expert.

Weights are dequantized to bf16 (fp16, f32) in registers, as operands of the matrix units, so they are read once and in
their own format. For hundreds of rows, ``dequant`` and cuBLAS are faster; ``ops`` decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from jambacli.kernels.triton import triton_version
from jambacli.kernels.triton.gemv import dot, silu
from jambacli.kernels.triton.interpret import interpreted
from jambacli.kernels.triton.launch import capability, cdiv, constants, power_of_two, triton_dtype
from jambacli.kernels.triton.repack import Packed
from jambacli.kernels.triton.tiles import values

#: The first Triton whose ptxas keeps the registers of asynchronous products unchanged until these have read them.
SAFE_ASYNC_TRITON = (3, 9)


def block_rows(rows: float, device: torch.device) -> int:
    """Rows of x per program; with more rows, weights are dequantized less often.

    Only two choices, since each compiles another kernel. Matrix units idle for some rows; weights are read once either way.

    From 64 rows on Triton multiplies asynchronously on Hopper (wgmma), with x in registers. The ptxas of older Tritons may
    reuse these too early (Triton issue 11781), so they get 32 rows, which are multiplied synchronously. So does data
    center Blackwell, where that kind of product is unproven.
    """
    if rows <= 16:
        return 16
    major = capability(device)[0]
    version = triton_version() or (0, 0)
    return 32 if major == 10 or (major == 9 and version < SAFE_ASYNC_TRITON) else 64


@triton.jit
def _operand(
    q, h, s, d, rows, g, inside, R,
    G: tl.constexpr, LEVELS: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, SCALES: tl.constexpr,
    DOT: tl.constexpr, BN: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    """A tile of weights as two right operands [BG * 16, BN]: the first and the second halves of its groups."""
    lo, hi = values(q, h, s, d, rows, g, inside, R, G, LEVELS, HIGH, ZERO, SCALES)
    lo = tl.reshape(tl.permute(lo.to(DOT), (0, 2, 1)), (BG * 16, BN))
    return lo, tl.reshape(tl.permute(hi.to(DOT), (0, 2, 1)), (BG * 16, BN))


@triton.jit(do_not_specialize=["M"])
def _gemm_kernel(
    x, out, source, bounds, q, h, s, d, q2, h2, s2, d2, M, N, R, K, x_stride,
    G: tl.constexpr, LEVELS: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, SCALES: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr, GATED: tl.constexpr, DOT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    """out[m] = w x[m], or with E experts out[m] = w[expert of m] x[source[m]]; gated: silu(w x) * (w2 x).

    bounds int32 [2, EP] (experts padded to EP): the end of each expert's rows, and its first tile of rows.
    """
    tile = tl.program_id(1)
    first, stop, expert = tile * BM, M, 0
    if E > 0:
        each = tl.arange(0, EP)
        ends = tl.load(bounds + each)
        tiles = tl.load(bounds + EP + each)
        expert = tl.sum((tiles <= tile).to(tl.int32)) - 1
        stop = tl.sum(tl.where(each == expert, ends, 0))
        begin = tl.sum(tl.where(each == expert - 1, ends, 0))
        first = begin + (tile - tl.sum(tl.where(each == expert, tiles, 0))) * BM
    if first < stop:
        m = first + tl.arange(0, BM)
        m_in = m < stop
        row = tl.program_id(0) * BN + tl.arange(0, BN)
        rows = row.to(tl.int64) + tl.cast(expert, tl.int64) * N
        from_row = m.to(tl.int64)
        if E > 0:
            from_row = tl.load(source + m, mask=m_in, other=0).to(tl.int64)
        at_row = x + from_row[:, None] * x_stride
        c = tl.arange(0, BG * 16)
        total = tl.zeros((BM, BN), tl.float32)
        total2 = tl.zeros((BM, BN), tl.float32)
        for start in range(0, G, BG):
            g = start + tl.arange(0, BG)
            inside = (g < G)[:, None] & (row < N)[None, :]
            column = (start + c // 16) * 32 + c % 16
            x_lo = tl.load(at_row + column[None, :], mask=m_in[:, None] & (column < K)[None, :], other=0).to(DOT)
            column += 16
            x_hi = tl.load(at_row + column[None, :], mask=m_in[:, None] & (column < K)[None, :], other=0).to(DOT)
            lo, hi = _operand(q, h, s, d, rows, g, inside, R, G, LEVELS, HIGH, ZERO, SCALES, DOT, BN, BG)
            total = dot(x_lo, lo, total)
            total = dot(x_hi, hi, total)
            if GATED:
                lo, hi = _operand(q2, h2, s2, d2, rows, g, inside, R, G, LEVELS, HIGH, ZERO, SCALES, DOT, BN, BG)
                total2 = dot(x_lo, lo, total2)
                total2 = dot(x_hi, hi, total2)
        if GATED:
            total = silu(total) * total2
        at = out + m.to(tl.int64)[:, None] * N + row[None, :]
        tl.store(at, total, mask=m_in[:, None] & (row < N)[None, :])


@dataclass(frozen=True)
class Groups:
    """Rows sorted by expert, all on the device.

    ``source`` int64 [M]: the row of x for sorted row m. ``bounds`` int32 [2, EP]: for each expert the end of its rows, and its
    first tile of ``block`` rows. ``tiles``: an upper bound on the number of tiles.
    """

    source: torch.Tensor
    bounds: torch.Tensor
    experts: int
    tiles: int
    block: int


def group_rows(expert: torch.Tensor, source: torch.Tensor, n_experts: int) -> Groups:
    """The groups of rows whose experts, int64 [M], are in ascending order."""
    m = len(expert)
    block = block_rows(m / n_experts, expert.device)
    padded = power_of_two(n_experts)
    index = torch.arange(padded, device=expert.device)
    ends = torch.searchsorted(expert, index, right=True)
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    tiles = (counts + block - 1) // block
    first_tile = torch.cumsum(tiles, 0) - tiles
    # Padding experts get a first tile beyond all others, so that no tile is theirs.
    first_tile = torch.where(index < n_experts, first_tile, m + n_experts)
    bounds = torch.stack([ends, first_tile]).to(torch.int32)
    return Groups(source, bounds, n_experts, min(m, cdiv(m, block) + n_experts), block)


def gemm(
    x: torch.Tensor,
    w: Packed,
    *,
    up: Packed | None = None,
    dtype: torch.dtype = torch.bfloat16,
    groups: Groups | None = None,
) -> torch.Tensor:
    """x [M, in] times w [out, in] with operands in ``dtype``, summed in float32: float32 [M, out].

    ``up``, of w's shape and format: returns silu(w x) * (up x). ``groups``: w is a stack [experts, out, in], and row m of the
    result is x[source[m]] times the matrix of its expert. Rows of x are contiguous.
    """
    n, k = w.shape[-2:]
    m = x.shape[0] if groups is None else len(groups.source)
    out = torch.empty(m, n, device=x.device)
    bn, bg = (
        (min(256, power_of_two(n)), min(8, power_of_two(w.groups)))
        if interpreted()
        else (32, 4 if w.groups >= 4 else power_of_two(w.groups))
    )
    bn = max(16, bn)
    bm = block_rows(m, x.device) if groups is None else groups.block
    tiles = cdiv(m, bm) if groups is None else groups.tiles
    arguments = (
        x,
        out,
        x if groups is None else groups.source,
        x if groups is None else groups.bounds,
        *w.planes(),
        *(w if up is None else up).planes(),
        m,
        n,
        w.rows,
        k,
        x.stride(0),
    )
    options = {
        **constants(w),
        "E": 0 if groups is None else groups.experts,
        "EP": 1 if groups is None else groups.bounds.shape[1],
        "GATED": up is not None,
        "DOT": triton_dtype(dtype),
        "BM": bm,
        "BN": bn,
        "BG": bg,
    }
    # Pipelined tiles are in shared memory, of which a GPU has at least 99 KB (64 on Turing); those of float32 are large.
    for stages in range(2 if w.format.name == "f32" else 3, 0, -1):
        try:
            _gemm_kernel[cdiv(n, bn), tiles](*arguments, **options, num_warps=4, num_stages=stages)
            break
        except triton.runtime.errors.OutOfResources:  # a Triton that takes more of it than those that were tried
            if stages == 1:
                raise
    return out
