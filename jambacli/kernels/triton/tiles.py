"""Device functions that load and dequantize a tile of a packed weight.

A tile is BG groups of 32 values of BN rows, as two halves [BG, BN, 16]: values 0..15 and 16..31 of each group. So a thread
has the sixteen bytes that it loads at once, and sums over a group stay in one thread. Groups are the first dimension
because Triton assigns neighbouring threads to it: a warp then reads along a row. ``repack`` describes the planes. Every
function is traced once per format, and its branches on constants vanish.
"""

# Constants are compared one by one: Triton's language has no `in`.
# ruff: noqa: PLR1714, SIM108, SIM109

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
# The sixteen values of IQ4's grid, one byte each, lowest first: -127 -104 -83 -65 -49 -35 -22 -10 | 1 13 25 ... 113.
GRID_LOW = tl.constexpr(
    int.from_bytes(bytes(v & 255 for v in (-127, -104, -83, -65, -49, -35, -22, -10)), "little", signed=True)
)
GRID_HIGH = tl.constexpr(int.from_bytes(bytes((1, 13, 25, 38, 53, 69, 89, 113)), "little", signed=True))


# The bits of 1.0. With a level of B bits at the top of the mantissa they are exactly 1 + level / 2^B: a shift and an
# AND-OR, where a conversion would take more and slower instructions.
ONE = tl.constexpr(0x3F800000)


@triton.jit
def grid_value(level):
    """The value of IQ4's grid for a level 0..15, without a table in memory."""
    eight = tl.where(level < 8, GRID_LOW, GRID_HIGH).to(tl.int64)
    return (eight >> ((level & 7) * 8).to(tl.int64)).to(tl.int8).to(tl.float32)


@triton.jit
def units(q, h, rows, g, inside, R, G: tl.constexpr, LEVELS: tl.constexpr, HIGH: tl.constexpr):
    """The levels of a tile as 1 + level / 2^B, float32: two of [BG, BN, 16]. rows int64 [BN], inside bool [BG, BN].

    B is 8 for signed bytes (level = byte + 128), else the number of bits in planes q and h together. Floats and values of
    IQ4's grid are returned as they are.
    """
    j = tl.arange(0, 16)[None, None, :]
    group = rows[None, :] * G + g[:, None]
    if LEVELS == FLOAT:
        at = q + group[:, :, None] * 32 + j
        lo = tl.load(at, mask=inside[:, :, None], other=0).to(tl.float32)
        hi = tl.load(at + 16, mask=inside[:, :, None], other=0).to(tl.float32)
    elif LEVELS == BYTES:
        at = q + group[:, :, None] * 32 + j
        lo = tl.load(at, mask=inside[:, :, None], other=0).to(tl.uint8, bitcast=True).to(tl.int32)
        hi = tl.load(at + 16, mask=inside[:, :, None], other=0).to(tl.uint8, bitcast=True).to(tl.int32)
        lo = (((lo ^ 0x80) << 15) | ONE).to(tl.float32, bitcast=True)
        hi = (((hi ^ 0x80) << 15) | ONE).to(tl.float32, bitcast=True)
    elif LEVELS == GRID:
        packed = tl.load(q + group[:, :, None] * 16 + j, mask=inside[:, :, None], other=0).to(tl.int32)
        lo = grid_value(packed & 15)
        hi = grid_value(packed >> 4)
    else:
        low: tl.constexpr = 2 if LEVELS == PAIRS else 4
        mask: tl.constexpr = ((1 << low) - 1) << (23 - low - HIGH)
        if LEVELS == PAIRS:  # two groups share sixteen bytes, which two neighbouring threads read
            packed = tl.load(q + (group // 2)[:, :, None] * 16 + j, mask=inside[:, :, None], other=0).to(tl.int32)
            packed = packed >> ((group & 1) * 4).to(tl.int32)[:, :, None]
        else:
            packed = tl.load(q + group[:, :, None] * 16 + j, mask=inside[:, :, None], other=0).to(tl.int32)
        lo_bits = ((packed << (23 - low - HIGH)) & mask) | ONE
        hi_bits = ((packed << (23 - low - HIGH - low)) & mask) | ONE
        if HIGH == 1:
            word = tl.load(h + group, mask=inside, other=0)[:, :, None]
            lo_bits |= ((word >> j) & 1) << 22
            hi_bits |= ((word >> (j + 16)) & 1) << 22
        if HIGH == 2:
            lo_high = tl.load(h + group, mask=inside, other=0)[:, :, None]
            hi_high = tl.load(h + group + R * G, mask=inside, other=0)[:, :, None]
            place = (j % 4 * 8 + 4 + j // 4 * 2) % 32
            lo_bits |= ((lo_high >> place) & 3) << 21
            hi_bits |= ((hi_high >> place) & 3) << 21
        lo = lo_bits.to(tl.float32, bitcast=True)
        hi = hi_bits.to(tl.float32, bitcast=True)
    return lo, hi


@triton.jit
def levels(q, h, rows, g, inside, R, G: tl.constexpr, LEVELS: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr):
    """The levels of a tile minus the zero point, exact float32: two of [BG, BN, 16]."""
    lo, hi = units(q, h, rows, g, inside, R, G, LEVELS, HIGH)
    if LEVELS != FLOAT and LEVELS != GRID:
        span: tl.constexpr = 256.0 if LEVELS == BYTES else (1 << ((2 if LEVELS == PAIRS else 4) + HIGH)) * 1.0
        below: tl.constexpr = span + (128.0 if LEVELS == BYTES else ZERO * 1.0)
        lo, hi = lo * span - below, hi * span - below
    return lo, hi


@triton.jit
def _halves(word):
    """The two float16 of an int32 as float32, the low one first."""
    low = (word & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return low, (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _load(where, inside):
    """The values at an address; zero where ``inside`` is given and false."""
    if inside is None:
        found = tl.load(where)
    else:
        found = tl.load(where, mask=inside, other=0)
    return found


@triton.jit
def group_scales(s, d, group, super_block, inside, SCALES: tl.constexpr):
    """Factor and minimum of both halves of the given groups: four float32 tensors of their shape, factors first.

    ``inside`` None: all groups exist. A value is factor * level - minimum. NONE and ROW have factor 1: the factor of a row is
    applied last, see ``row_factor``.
    """
    zero = tl.zeros(group.shape, tl.float32)
    lo_least, hi_least = zero, zero
    if SCALES == NONE or SCALES == ROW:
        lo_factor, hi_factor = zero + 1.0, zero + 1.0
    elif SCALES == BLOCK:
        lo_factor = _load(d + group, inside).to(tl.float32)
        hi_factor = lo_factor
    elif SCALES == BLOCK_MIN:
        lo_factor, least = _halves(_load(d + group, inside))
        hi_factor = lo_factor
        lo_least, hi_least = -least, -least
    elif SCALES == K32_MIN:
        small = _load(s + group, inside).to(tl.int32)
        factor, least = _halves(_load(d + super_block, inside))
        lo_factor = factor * (small & 255).to(tl.float32)
        lo_least = least * ((small >> 8) & 255).to(tl.float32)
        hi_factor, hi_least = lo_factor, lo_least
    elif SCALES == K16_MIN:
        small = _load(s + group, inside).to(tl.int32)
        factor, least = _halves(_load(d + super_block, inside))
        lo_factor = factor * (small & 15).to(tl.float32)
        hi_factor = factor * ((small >> 8) & 15).to(tl.float32)
        lo_least = least * ((small >> 4) & 15).to(tl.float32)
        hi_least = least * ((small >> 12) & 15).to(tl.float32)
    elif SCALES == K16:
        small = _load(s + group, inside).to(tl.int32)
        factor = _load(d + super_block, inside).to(tl.float32)
        lo_factor = factor * ((small << 24) >> 24).to(tl.float32)
        hi_factor = factor * (small >> 8).to(tl.float32)
    else:  # K32
        small = _load(s + group, inside).to(tl.float32)
        lo_factor = _load(d + super_block, inside).to(tl.float32) * small
        hi_factor = lo_factor
    return lo_factor, hi_factor, lo_least, hi_least


@triton.jit
def scales(s, d, rows, g, inside, G: tl.constexpr, SCALES: tl.constexpr):
    """``group_scales`` of a tile: float32 [BG, BN] four times."""
    group = rows[None, :] * G + g[:, None]
    super_block = rows[None, :] * (G // 8) + (g // 8)[:, None]
    return group_scales(s, d, group, super_block, inside, SCALES)


@triton.jit
def row_factor(d, rows, inside, SCALES: tl.constexpr):
    """The factor of each row's sum: float32 [BN]."""
    if SCALES == ROW:
        factor = tl.load(d + rows, mask=inside, other=0)
    else:
        factor = tl.full(rows.shape, 1.0, tl.float32)
    return factor


@triton.jit
def values(
    q, h, s, d, rows, g, inside, R,
    G: tl.constexpr, LEVELS: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, SCALES: tl.constexpr,
):  # fmt: skip
    """The weights of a tile themselves, float32: two of [BG, BN, 16]."""
    lo, hi = levels(q, h, rows, g, inside, R, G, LEVELS, HIGH, ZERO)
    if SCALES == ROW:
        factor = tl.load(d + rows, mask=tl.max(inside.to(tl.int32), 0) > 0, other=0)[None, :, None]
        lo, hi = lo * factor, hi * factor
    elif SCALES != NONE:
        lo_factor, hi_factor, lo_least, hi_least = scales(s, d, rows, g, inside, G, SCALES)
        lo, hi = lo_factor[:, :, None] * lo, hi_factor[:, :, None] * hi
        if SCALES == BLOCK_MIN or SCALES == K32_MIN or SCALES == K16_MIN:
            lo, hi = lo - lo_least[:, :, None], hi - hi_least[:, :, None]
    return lo, hi
