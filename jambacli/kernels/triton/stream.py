"""Device functions that multiply packed rows with one row of activations while streaming the rows from memory.

A warp reads eight groups of 32 values of four rows at once: 128 bytes of each row in nibbles, and activations that four threads
share. A thread has one group of BR rows: it loads sixteen bytes of each (or twice sixteen) and dequantizes them in its
registers. Warps take turns along a row and combine their sums once, at the end. So tiles have the dimensions

    [GL groups, RL rows, KW warps, BR rows per thread], and then the words or values of a group,

in this order, because Triton assigns threads and then warps to dimensions from the first to the last. All tensors below
have the same layout, so none moves between threads inside the loop. ``tiles`` dequantizes.
"""

# Constants are compared one by one: Triton's language has no `in`.
# ruff: noqa: PLR1714, SIM108, SIM109

from __future__ import annotations

import triton
import triton.language as tl

from jambacli.kernels.triton.interpret import WIDEN
from jambacli.kernels.triton.tiles import (
    BLOCK_MIN,
    BYTES,
    FLOAT,
    GRID,
    K16,
    K16_MIN,
    K32_MIN,
    NIBBLES,
    NONE,
    ONE,
    PAIRS,
    ROW,
    grid_value,
    group_scales,
)


@triton.jit
def rows_of(program, RL: tl.constexpr, BR: tl.constexpr):
    """The rows of a program: int32 [RL, BR]."""
    return program * (RL * BR) + tl.arange(0, BR)[None, :] * RL + tl.arange(0, RL)[:, None]


@triton.jit
def groups_at(start, GL: tl.constexpr, KW: tl.constexpr):
    """The groups of the threads from ``start`` on: int32 [GL, KW]."""
    return start + tl.arange(0, KW)[None, :] * GL + tl.arange(0, GL)[:, None]


@triton.jit
def _quarters(x, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, D: tl.constexpr):
    """[A, B, C, D, 4, 4] -> four tensors [A, B, C, D, 4], split along the last dimension without moving data."""
    even, odd = tl.split(tl.reshape(x, (A, B, C, D, 4, 2, 2)))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def load_half(
    x, norm, g, half, K: tl.constexpr, G: tl.constexpr,
    GL: tl.constexpr, RL: tl.constexpr, KW: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """The first or second sixteen values of each group in g, as four float32 [GL, RL, KW, 1, 4] (value 4 i + b is in tensor
    b at i); then their sum, and the sum of their squares before the norm's weight, [GL, RL, KW, 1]."""
    i = tl.arange(0, 4)
    value_at = i[:, None] * 4 + i[None, :] + half * 16
    at = g[:, None, :, None, None, None] * 32 + value_at[None, None, None, None, :, :]
    at = tl.broadcast_to(at, (GL, RL, KW, 1, 4, 4))  # for every row's threads: the layout of the weights
    # If no thread is ever beyond the row's end, no masks are needed.
    WHOLE: tl.constexpr = G % (GL * KW) == 0 and K == G * 32
    if WHOLE:
        value = tl.load(x + at).to(tl.float32)
    else:
        value = tl.load(x + at, mask=at < K, other=0).to(tl.float32)
    squares = tl.zeros((GL, RL, KW, 1), tl.float32)
    if NORM:
        squares = tl.sum(tl.sum(value * value, 5), 4)
        if WHOLE:
            value *= tl.load(norm + at)
        else:
            value *= tl.load(norm + at, mask=at < K, other=0)
    total = tl.sum(tl.sum(value, 5), 4)
    x0, x1, x2, x3 = _quarters(value, GL, RL, KW, 1)
    return x0, x1, x2, x3, total, squares


@triton.jit
def _moved(word, by: tl.constexpr):
    """The word shifted left by this many bits, right if negative."""
    if by >= 0:
        moved = word << by
    else:
        moved = word >> -by
    return moved


@triton.jit
def _and_or(word, mask: tl.constexpr, other):
    """word & mask | other as one instruction; Triton's compiler makes two of it if mask and other are constants."""
    if WIDEN:
        bits = (word & mask) | other
    else:
        bits = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, $2, $3, 0xEA;", "=r,r,r,r", [word, mask, other], dtype=tl.int32, is_pure=True, pack=1
        )
    return bits


@triton.jit
def _six_bits(nibbles, high, i):
    """The low nibbles of four bytes with their two high bits above them; see ``repack`` for their places in ``high``."""
    high = high.to(tl.uint32, bitcast=True)
    turned = ((high >> (2 * i)) | (high << ((32 - 2 * i) & 31))).to(tl.int32, bitcast=True)
    return _and_or(turned, 0x30303030, nibbles & 0x0F0F0F0F)


@triton.jit
def _unit(
    word, high, by: tl.constexpr, low: tl.constexpr, high_by: tl.constexpr, HIGH: tl.constexpr, under: tl.constexpr
):
    """1 + level / 2^B, float32, of levels ``low`` bits wide that are ``by`` places below the mantissa's top minus its ``under``
    first places. HIGH more bits, from ``high`` at ``high_by`` places below the top, go above them."""
    place: tl.constexpr = 23 - HIGH - low - under
    bits = _and_or(_moved(word, by - under), ((1 << low) - 1) << place, ONE)
    if HIGH > 0:
        bits = _and_or(_moved(high, high_by), ((1 << HIGH) - 1) << (23 - HIGH), bits)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _dot4(
    so_far, x0, x1, x2, x3, word, high,
    first: tl.constexpr, low: tl.constexpr, HIGH: tl.constexpr, under: tl.constexpr,
):  # fmt: skip
    """Add to so_far [GL, RL, KW, BR, 4] sixteen units of each group times x: those at bit ``first`` of the words' bytes, with
    HIGH more bits per byte from ``high``."""
    top: tl.constexpr = 23 - HIGH
    so_far += _unit(word, high, top - low - first, low, top, HIGH, under) * x0
    so_far += _unit(word, high, top - low - first - 8, low, top - HIGH, HIGH, under) * x1
    so_far += _unit(word, high, top - low - first - 16, low, top - 2 * HIGH, HIGH, under) * x2
    so_far += _unit(word, high, top - low - first - 24, low, top - 3 * HIGH, HIGH, under) * x3
    return so_far


@triton.jit
def _grid4(so_far, x0, x1, x2, x3, word, first: tl.constexpr):
    """The same for IQ4's grid."""
    so_far += grid_value((word >> first) & 15) * x0
    so_far += grid_value((word >> (8 + first)) & 15) * x1
    so_far += grid_value((word >> (16 + first)) & 15) * x2
    return so_far + grid_value((word >> (24 + first)) & 15) * x3


@triton.jit
def _float4(
    so_far, x0, x1, x2, x3, q, base, at, half,
    GL: tl.constexpr, RL: tl.constexpr, KW: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """The same for floats, which this function loads."""
    i = tl.arange(0, 4)
    value_at = i[:, None] * 4 + i[None, :] + half * 16
    where = q + base[:, :, :, :, None, None] + (at[:, :, :, :, None, None] + value_at[None, None, None, None, :, :])
    w0, w1, w2, w3 = _quarters(tl.load(where).to(tl.float32), GL, RL, KW, BR)
    return so_far + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3


@triton.jit
def stream_dots(
    a0, a1, a2, a3, a_sum, b0, b1, b2, b3, b_sum, q, h, s, d, row, g, R,
    G: tl.constexpr, LEVELS: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, SCALES: tl.constexpr,
    GL: tl.constexpr, RL: tl.constexpr, KW: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Products of a tile with x, from ``load_half`` a and b, summed over each group: float32 [GL, RL, KW, BR].

    row int64 [RL, BR], all existing. Beyond the last group x is zero and the last group is read again, so loads need no masks.
    The units (1 + level / 2^B) are multiplied as they are, and each group's sum is corrected once: it is
    sum(level * x) / 2^B + (1 + zero / 2^B) * sum(x). The caller applies ``row_factor``.
    """
    if G % (GL * KW) != 0:
        g = tl.minimum(g, G - 1)
    base = tl.broadcast_to((row * G)[None, :, None, :], (GL, RL, KW, BR))  # the row's first group
    at = tl.broadcast_to(g[:, None, :, None], (GL, RL, KW, BR))
    # The same indices, hidden from Triton: it would see that they are consecutive, load several per thread and move them
    # between threads to match the words.
    apart = tl.broadcast_to(((g << 1) >> 1)[:, None, :, None], (GL, RL, KW, BR))
    i = tl.arange(0, 4)[None, None, None, None, :]
    # Whether the halves have their own factors; else one sum serves both.
    halves: tl.constexpr = SCALES == K16 or SCALES == K16_MIN
    a_weight: tl.constexpr = 16.0 if LEVELS == NIBBLES and HIGH == 0 else 1.0
    words = q.to(tl.pointer_type(tl.int32))
    nothing = tl.zeros((GL, RL, KW, BR, 4), tl.float32)
    if LEVELS == FLOAT:
        lo = _float4(nothing, a0, a1, a2, a3, q, base * 32, at * 32, 0, GL, RL, KW, BR)
        lo = _float4(lo, b0, b1, b2, b3, q, base * 32, at * 32, 1, GL, RL, KW, BR)
        hi = nothing
    elif LEVELS == BYTES:
        where = words + (base * 8)[:, :, :, :, None] + ((at * 8)[:, :, :, :, None] + i)
        # A signed byte plus 128 is the byte with its highest bit flipped.
        first, second = tl.load(where) ^ -0x7F7F7F80, tl.load(where + 4) ^ -0x7F7F7F80
        lo = _dot4(nothing, a0, a1, a2, a3, first, first, 0, 8, 0, 0)
        lo = _dot4(lo, b0, b1, b2, b3, second, second, 0, 8, 0, 0)
        hi = nothing
    else:
        if LEVELS == PAIRS:  # two groups share four words, which two neighbouring threads read
            group = base + at
            word = tl.load(words + ((group // 2) * 4)[:, :, :, :, None] + i)
            word = word >> ((group & 1) * 4).to(tl.int32)[:, :, :, :, None]
        else:
            word = tl.load(words + (base * 4)[:, :, :, :, None] + ((at * 4)[:, :, :, :, None] + i))
        first, second = word, word
        if HIGH == 1:
            first = tl.load(h + base + apart)[:, :, :, :, None] >> (i * 4)
            second = first >> 16
        elif HIGH == 2:
            high = h + base + apart
            first = _six_bits(word, tl.load(high)[:, :, :, :, None], i)
            second = _six_bits(word >> 4, tl.load(high + R * G)[:, :, :, :, None], i)
        if LEVELS == GRID:
            lo = _grid4(nothing, a0, a1, a2, a3, word, 0)
            lo = _grid4(lo, b0, b1, b2, b3, word, 4)
            hi = nothing
        elif LEVELS == PAIRS:
            lo = _dot4(nothing, a0, a1, a2, a3, word, first, 0, 2, HIGH, 0)
            hi = _dot4(nothing, b0, b1, b2, b3, word, second, 2, 2, HIGH, 0)
        elif HIGH == 0:
            # Both nibbles of a byte are shifted at once, the low one to four places lower; its x, sixteen times as
            # large, compensates for that.
            lo = _dot4(nothing, a0 * 16.0, a1 * 16.0, a2 * 16.0, a3 * 16.0, word, word, 0, 4, 0, 4)
            lo = _dot4(lo, b0, b1, b2, b3, word, word, 4, 4, 0, 0)
            hi = nothing
        elif HIGH == 1:
            lo = _dot4(nothing, a0, a1, a2, a3, word, first, 0, 4, HIGH, 0)
            lo = _dot4(lo, b0, b1, b2, b3, word, second, 4, 4, HIGH, 0)
            hi = nothing
        else:
            lo = _dot4(nothing, a0, a1, a2, a3, first, first, 0, 6, 0, 0)
            hi = _dot4(nothing, b0, b1, b2, b3, second, second, 0, 6, 0, 0)
    lo = tl.sum(lo, 4)
    if halves:
        hi = tl.sum(hi, 4)
    if LEVELS != FLOAT and LEVELS != GRID:
        span: tl.constexpr = 256.0 if LEVELS == BYTES else (1 << ((2 if LEVELS == PAIRS else 4) + HIGH)) * 1.0
        zero: tl.constexpr = (128.0 if LEVELS == BYTES else ZERO * 1.0) / span
        if halves:
            lo = (lo - (1.0 + zero) * a_sum) * span
            hi = (hi - (1.0 + zero) * b_sum) * span
        else:
            lo = (lo - ((a_weight + zero) * a_sum + (1.0 + zero) * b_sum)) * span
    if SCALES == NONE or SCALES == ROW:
        total = lo
    else:
        rows_blocks = tl.broadcast_to((row * (G // 8))[None, :, None, :], (GL, RL, KW, BR))
        lo_factor, hi_factor, lo_least, hi_least = group_scales(
            s, d, base + apart, rows_blocks + apart // 8, None, SCALES
        )
        total = lo_factor * lo
        if halves:
            total += hi_factor * hi
        if SCALES == K16_MIN:
            total -= lo_least * a_sum + hi_least * b_sum
        elif SCALES == BLOCK_MIN or SCALES == K32_MIN:
            total -= lo_least * (a_sum + b_sum)
    return total


@triton.jit
def over_the_row(total):
    """[GL, RL, KW, n] summed over a row's groups: [RL, n]."""
    return tl.sum(tl.sum(total, 2), 0)
