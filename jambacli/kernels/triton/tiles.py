"""Device functions that read a tile of a packed weight as numbers; knows nothing of what is computed with it.

A tile is BG groups of 32 values of BN rows, held as two halves [BG, BN, 16]: values 0..15 and 16..31 of each group. A
thread then owns the sixteen bytes that it loads at once, and sums over a group stay inside it. Groups come first
because Triton gives neighbouring threads to the first of equal dimensions: a warp then reads along a row. ``repack`` says
how the planes lie; every function is traced once for each format, the branches on constants vanish.
"""

# Constants are compared one by one: Triton's language has no `in`.
# ruff: noqa: PLR1714, SIM109

from __future__ import annotations

import triton
import triton.language as tl

from jambacli.kernels.triton import repack

FLOAT = tl.constexpr(repack.FLOAT)
BYTES = tl.constexpr(repack.BYTES)
NIBBLES = tl.constexpr(repack.NIBBLES)
PAIRS = tl.constexpr(repack.PAIRS)
GRID = tl.constexpr(repack.GRID)
NONE = tl.constexpr(repack.NONE)
ROW = tl.constexpr(repack.ROW)
BLOCK = tl.constexpr(repack.BLOCK)
BLOCK_MIN = tl.constexpr(repack.BLOCK_MIN)
K32_MIN = tl.constexpr(repack.K32_MIN)
K16_MIN = tl.constexpr(repack.K16_MIN)
K16 = tl.constexpr(repack.K16)
K32 = tl.constexpr(repack.K32)
# The sixteen values of IQ4's grid, a byte each, lowest first: -127 -104 -83 -65 -49 -35 -22 -10 | 1 13 25 ... 113.
GRID_LOW = tl.constexpr(
    int.from_bytes(bytes(v & 255 for v in (-127, -104, -83, -65, -49, -35, -22, -10)), "little", signed=True)
)
GRID_HIGH = tl.constexpr(int.from_bytes(bytes((1, 13, 25, 38, 53, 69, 89, 113)), "little", signed=True))


# The bits of 1.0. A level of B bits put below them, at the top of the mantissa, makes the float32 1 + level / 2^B exactly:
# a shift and an AND-OR where a conversion would take more, and slower, instructions.
ONE = tl.constexpr(0x3F800000)


@triton.jit
def _grid_value(level):
    """IQ4's value of a level 0..15, without a table in memory."""
    eight = tl.where(level < 8, GRID_LOW, GRID_HIGH).to(tl.int64)
    return (eight >> ((level & 7) * 8).to(tl.int64)).to(tl.int8).to(tl.float32)


@triton.jit
def units(q, h, rows, g, inside, R, G: tl.constexpr, LEVELS: tl.constexpr, HIGH: tl.constexpr):
    """The levels of a tile as 1 + level / 2^B, float32: two of [BG, BN, 16]. rows int64 [BN], inside bool [BG, BN].

    B is 8 for signed bytes (whose level is then the byte plus 128), else the bits in planes q and h together. Floats and
    IQ4's grid come as the numbers that they are.
    """
    j = tl.arange(0, 16)[None, None, :]
    group = rows[None, :] * G + g[:, None]
    if LEVELS == FLOAT or LEVELS == BYTES:
        at = q + group[:, :, None] * 32 + j
        lo = tl.load(at, mask=inside[:, :, None], other=0)
        hi = tl.load(at + 16, mask=inside[:, :, None], other=0)
        if LEVELS == FLOAT:
            return lo.to(tl.float32), hi.to(tl.float32)
        lo = (lo.to(tl.uint8, bitcast=True).to(tl.int32) ^ 0x80) << 15
        hi = (hi.to(tl.uint8, bitcast=True).to(tl.int32) ^ 0x80) << 15
        return (lo | ONE).to(tl.float32, bitcast=True), (hi | ONE).to(tl.float32, bitcast=True)
    low: tl.constexpr = 2 if LEVELS == PAIRS else 4
    mask: tl.constexpr = ((1 << low) - 1) << (23 - low - HIGH)
    if LEVELS == PAIRS:  # two groups share sixteen bytes, which neighbouring threads both read
        packed = tl.load(q + (group // 2)[:, :, None] * 16 + j, mask=inside[:, :, None], other=0).to(tl.int32)
        packed = packed >> ((group & 1) * 4).to(tl.int32)[:, :, None]
    else:
        packed = tl.load(q + group[:, :, None] * 16 + j, mask=inside[:, :, None], other=0).to(tl.int32)
        if LEVELS == GRID:
            return _grid_value(packed & 15), _grid_value(packed >> 4)
    lo = ((packed << (23 - low - HIGH)) & mask) | ONE
    hi = ((packed << (23 - low - HIGH - low)) & mask) | ONE
    if HIGH == 1:
        word = tl.load(h + group, mask=inside, other=0)[:, :, None]
        lo |= ((word >> j) & 1) << 22
        hi |= ((word >> (j + 16)) & 1) << 22
    if HIGH == 2:
        lo_high = tl.load(h + group, mask=inside, other=0)[:, :, None]
        hi_high = tl.load(h + group + R * G, mask=inside, other=0)[:, :, None]
        lo |= ((lo_high >> (2 * j)) & 3) << 21
        hi |= ((hi_high >> (2 * j)) & 3) << 21
    return lo.to(tl.float32, bitcast=True), hi.to(tl.float32, bitcast=True)


@triton.jit
def levels(q, h, rows, g, inside, R, G: tl.constexpr, LEVELS: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr):
    """The levels of a tile, less the zero point, float32, exactly: two of [BG, BN, 16]."""
    lo, hi = units(q, h, rows, g, inside, R, G, LEVELS, HIGH)
    if LEVELS == FLOAT or LEVELS == GRID:
        return lo, hi
    span: tl.constexpr = 256.0 if LEVELS == BYTES else (1 << ((2 if LEVELS == PAIRS else 4) + HIGH)) * 1.0
    below: tl.constexpr = span + (128.0 if LEVELS == BYTES else ZERO * 1.0)
    return lo * span - below, hi * span - below


@triton.jit
def _halves(word):
    """The two float16 in an int32, low one first, as float32."""
    low = (word & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return low, (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def scales(s, d, rows, g, inside, G: tl.constexpr, SCALES: tl.constexpr):
    """Factor and minimum of each half group of a tile: float32 [BG, BN] four times, factors first.

    A value is factor * level - minimum. NONE and ROW have factor 1 here: a row's factor comes last, see ``row_factor``.
    """
    zero = tl.zeros(inside.shape, tl.float32)
    if SCALES == NONE or SCALES == ROW:
        return zero + 1.0, zero + 1.0, zero, zero
    group = rows[None, :] * G + g[:, None]
    if SCALES == BLOCK:
        factor = tl.load(d + group, mask=inside, other=0).to(tl.float32)
        return factor, factor, zero, zero
    if SCALES == BLOCK_MIN:
        factor, offset = _halves(tl.load(d + group, mask=inside, other=0))
        return factor, factor, -offset, -offset
    small = tl.load(s + group, mask=inside, other=0).to(tl.int32)
    super_block = rows[None, :] * (G // 8) + (g // 8)[:, None]
    if SCALES == K32_MIN:
        factor, least = _halves(tl.load(d + super_block, mask=inside, other=0))
        factor = factor * (small & 255).to(tl.float32)
        least = least * ((small >> 8) & 255).to(tl.float32)
        return factor, factor, least, least
    if SCALES == K16_MIN:
        factor, least = _halves(tl.load(d + super_block, mask=inside, other=0))
        lo, hi = small & 255, (small >> 8) & 255
        return (
            factor * (lo & 15).to(tl.float32),
            factor * (hi & 15).to(tl.float32),
            least * (lo >> 4).to(tl.float32),
            least * (hi >> 4).to(tl.float32),
        )
    factor = tl.load(d + super_block, mask=inside, other=0).to(tl.float32)
    if SCALES == K16:
        lo = ((small << 24) >> 24).to(tl.float32)
        return factor * lo, factor * (small >> 8).to(tl.float32), zero, zero
    factor = factor * small.to(tl.float32)  # K32
    return factor, factor, zero, zero


@triton.jit
def row_factor(d, rows, inside, SCALES: tl.constexpr):
    """What a row's sum is still to be multiplied with: float32 [BN]."""
    if SCALES == ROW:
        return tl.load(d + rows, mask=inside, other=0)
    return tl.full(rows.shape, 1.0, tl.float32)


@triton.jit
def values(
    q, h, s, d, rows, g, inside, R,
    G: tl.constexpr, LEVELS: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, SCALES: tl.constexpr,
):  # fmt: skip
    """The weights of a tile themselves, float32: two of [BG, BN, 16]."""
    lo, hi = levels(q, h, rows, g, inside, R, G, LEVELS, HIGH, ZERO)
    if SCALES == NONE:
        return lo, hi
    if SCALES == ROW:
        factor = tl.load(d + rows, mask=tl.max(inside.to(tl.int32), 0) > 0, other=0)[None, :, None]
        return lo * factor, hi * factor
    lo_factor, hi_factor, lo_least, hi_least = scales(s, d, rows, g, inside, G, SCALES)
    lo, hi = lo_factor[:, :, None] * lo, hi_factor[:, :, None] * hi
    if SCALES == BLOCK_MIN or SCALES == K32_MIN or SCALES == K16_MIN:
        lo, hi = lo - lo_least[:, :, None], hi - hi_least[:, :, None]
    return lo, hi


@triton.jit
def dots(
    x_lo, x_hi, q, h, s, d, rows, g, inside, R,
    G: tl.constexpr, LEVELS: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, SCALES: tl.constexpr,
):  # fmt: skip
    """Products of a tile with x, x_lo and x_hi float32 [BG, 16], summed over each group: float32 [BG, BN].

    The units are multiplied as they are, each group's sum is put right once (it is sum(level * x) / 2^B + (1 + zero / 2^B)
    * sum(x)) and scaled once; ``row_factor`` is still to come.
    """
    lo, hi = units(q, h, rows, g, inside, R, G, LEVELS, HIGH)
    lo_factor, hi_factor, lo_least, hi_least = scales(s, d, rows, g, inside, G, SCALES)
    lo_sum = tl.sum(lo * x_lo[:, None, :], axis=2)
    hi_sum = tl.sum(hi * x_hi[:, None, :], axis=2)
    if LEVELS == FLOAT or LEVELS == GRID:
        if SCALES == NONE:
            return lo_sum + hi_sum
        return lo_factor * lo_sum + hi_factor * hi_sum
    span: tl.constexpr = 256.0 if LEVELS == BYTES else (1 << ((2 if LEVELS == PAIRS else 4) + HIGH)) * 1.0
    zero: tl.constexpr = 128.0 if LEVELS == BYTES else ZERO * 1.0
    lo_x, hi_x = tl.sum(x_lo, axis=1)[:, None], tl.sum(x_hi, axis=1)[:, None]
    lo_sum = (lo_sum - (1.0 + zero / span) * lo_x) * span
    hi_sum = (hi_sum - (1.0 + zero / span) * hi_x) * span
    if SCALES == ROW:
        return lo_sum + hi_sum
    total = lo_factor * lo_sum + hi_factor * hi_sum
    if SCALES == BLOCK_MIN or SCALES == K32_MIN or SCALES == K16_MIN:
        total -= lo_least * lo_x + hi_least * hi_x
    return total
