"""Device functions that multiply packed rows with one row of activations while streaming the rows from memory.

A warp reads eight groups of 32 values of four rows at once: 128 bytes of each row in nibbles, and activations that four threads
share. A thread has one group of BR rows: it loads sixteen bytes of each (or twice sixteen) and dequantizes them in its
registers. Warps take turns along a row and combine their sums once, at the end.

Threads are one dimension of T = 32 KW elements, one per thread, of which these functions compute everything else: element t is
group t % GL of a turn, lane t / GL % RL and warp t / (GL RL). The only other dimension is the four values or words that a
thread loads at once. So no version of Triton has another layout to choose, and nothing moves between threads inside the
loop. ``tiles`` dequantizes.
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
def threads(GL: tl.constexpr, RL: tl.constexpr, KW: tl.constexpr):
    """Each thread's group in a turn and its lane across rows: int32 [T] twice."""
    t = tl.arange(0, GL * RL * KW)
    return t // (GL * RL) * GL + t % GL, t // GL % RL


@triton.jit
def load_chunk(
    x, norm, at, c: tl.constexpr, STEP: tl.constexpr, END: tl.constexpr, WHOLE: tl.constexpr, NORM: tl.constexpr
):
    """Chunk c of each group, float32 [T, 4]; the sum of its values, and of their squares before the norm's weight, [T].
    ``at``: each group's first value, int32 [T]; its chunks are STEP apart. Beyond END all is zero."""
    at = at[:, None] + (STEP * c + tl.arange(0, 4)[None, :])
    # If no thread is ever beyond the row's end, no masks are needed.
    if WHOLE:
        value = tl.load(x + at).to(tl.float32)
    else:
        value = tl.load(x + at, mask=at < END, other=0).to(tl.float32)
    squares = 0.0
    if NORM:
        squares = tl.sum(value * value, 1)
        if WHOLE:
            value *= tl.load(norm + at)
        else:
            value *= tl.load(norm + at, mask=at < END, other=0)
    return value, tl.sum(value, 1), squares


@triton.jit
def load_groups(
    x, norm, start, own, K: tl.constexpr, G: tl.constexpr, GL: tl.constexpr, KW: tl.constexpr, NORM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """The values of each group in start + own, int32 [T], as eight float32 [T, 4]; then the sums of the first and the second
    sixteen, and the sum of all squares before the norm's weight, [T].

    INTERLEAVED: x and the norm's weight are in the order of ``interleave``, padded with zeros.
    """
    END: tl.constexpr = (G + 7) // 8 * 256 if INTERLEAVED else K
    WHOLE: tl.constexpr = (G + GL * KW - 1) // (GL * KW) * GL * KW * 32 <= END
    STEP: tl.constexpr = 32 if INTERLEAVED else 4
    if INTERLEAVED:  # start is a multiple of eight groups, or zero
        at = start * 32 + (own // 8 * 256 + own % 8 * 4)
    else:
        at = (start + own) * 32
    x0, sum0, squares0 = load_chunk(x, norm, at, 0, STEP, END, WHOLE, NORM)
    x1, sum1, squares1 = load_chunk(x, norm, at, 1, STEP, END, WHOLE, NORM)
    x2, sum2, squares2 = load_chunk(x, norm, at, 2, STEP, END, WHOLE, NORM)
    x3, sum3, squares3 = load_chunk(x, norm, at, 3, STEP, END, WHOLE, NORM)
    x4, sum4, squares4 = load_chunk(x, norm, at, 4, STEP, END, WHOLE, NORM)
    x5, sum5, squares5 = load_chunk(x, norm, at, 5, STEP, END, WHOLE, NORM)
    x6, sum6, squares6 = load_chunk(x, norm, at, 6, STEP, END, WHOLE, NORM)
    x7, sum7, squares7 = load_chunk(x, norm, at, 7, STEP, END, WHOLE, NORM)
    squares = ((squares0 + squares1) + (squares2 + squares3)) + ((squares4 + squares5) + (squares6 + squares7))
    first = (sum0 + sum1) + (sum2 + sum3)
    return x0, x1, x2, x3, x4, x5, x6, x7, first, (sum4 + sum5) + (sum6 + sum7), squares


@triton.jit
def load_words(where):
    """Four consecutive words from each address: four int32 [T] of one load."""
    even, odd = tl.split(tl.reshape(tl.load(where[:, None] + tl.arange(0, 4)[None, :]), (where.shape[0], 2, 2)))
    w0, w2 = tl.split(even)
    w1, w3 = tl.split(odd)
    return w0, w1, w2, w3


@triton.jit
def and_or(word, mask: tl.constexpr, other):
    """word & mask | other as one instruction; Triton's compiler makes two of it if mask and other are constants."""
    if WIDEN:
        bits = (word & mask) | other
    else:
        bits = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, $2, $3, 0xEA;", "=r,r,r,r", [word, mask, other], dtype=tl.int32, is_pure=True, pack=1
        )
    return bits


@triton.jit
def six_bits(nibbles, high, i):
    """The low nibbles of four bytes with their two high bits above them; see ``repack`` for their places in ``high``."""
    high = high.to(tl.uint32, bitcast=True)
    turned = ((high >> (2 * i)) | (high << ((32 - 2 * i) & 31))).to(tl.int32, bitcast=True)
    return and_or(turned, 0x30303030, nibbles & 0x0F0F0F0F)


@triton.jit
def _placed(word, by: tl.constexpr, step: tl.constexpr):
    """word [T] four times, [T, 4]: shifted left by ``by`` - ``step`` b, right if that is negative, for b = 0 .. 3."""
    b = tl.arange(0, 4)[None, :]
    if by - 3 * step >= 0:
        placed = word[:, None] << (by - step * b)
    elif by <= 0:
        placed = word[:, None] >> (step * b - by)
    else:  # b is known in every register: the compiler keeps one of the shifts
        left, right = tl.maximum(by - step * b, 0), tl.maximum(step * b - by, 0)
        placed = tl.where(by - step * b >= 0, word[:, None] << left, word[:, None] >> right)
    return placed


@triton.jit
def _units(word, high, first: tl.constexpr, low: tl.constexpr, HIGH: tl.constexpr, under: tl.constexpr):
    """1 + level / 2^B, float32 [T, 4], of the levels at bit ``first`` of a word's four bytes, ``low`` bits wide and ``under``
    places below the mantissa's top. HIGH more bits per byte, from the lowest bits of ``high`` on, go above them."""
    place: tl.constexpr = 23 - HIGH - low - under
    bits = and_or(_placed(word, place - first, 8), ((1 << low) - 1) << place, ONE)
    if HIGH > 0:
        bits = and_or(_placed(high, 23 - HIGH, HIGH), ((1 << HIGH) - 1) << (23 - HIGH), bits)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _dot16(
    so_far, x0, x1, x2, x3, w0, w1, w2, w3, high,
    first: tl.constexpr, low: tl.constexpr, HIGH: tl.constexpr, under: tl.constexpr,
):  # fmt: skip
    """Add to so_far [T, 4] sixteen units of each group times x. ``high``: a word with HIGH bits for each of the units."""
    so_far += _units(w0, high, first, low, HIGH, under) * x0
    so_far += _units(w1, high >> (4 * HIGH), first, low, HIGH, under) * x1
    so_far += _units(w2, high >> (8 * HIGH), first, low, HIGH, under) * x2
    so_far += _units(w3, high >> (12 * HIGH), first, low, HIGH, under) * x3
    return so_far


@triton.jit
def _grid16(so_far, x0, x1, x2, x3, w0, w1, w2, w3, first: tl.constexpr):
    """The same for IQ4's grid."""
    place = tl.arange(0, 4)[None, :] * 8 + first
    so_far += grid_value((w0[:, None] >> place) & 15) * x0
    so_far += grid_value((w1[:, None] >> place) & 15) * x1
    so_far += grid_value((w2[:, None] >> place) & 15) * x2
    return so_far + grid_value((w3[:, None] >> place) & 15) * x3


@triton.jit
def _float16(so_far, x0, x1, x2, x3, where):
    """The same for floats, which this function loads."""
    where = where[:, None] + tl.arange(0, 4)[None, :]
    so_far += tl.load(where).to(tl.float32) * x0
    so_far += tl.load(where + 4).to(tl.float32) * x1
    so_far += tl.load(where + 8).to(tl.float32) * x2
    return so_far + tl.load(where + 12).to(tl.float32) * x3


@triton.jit
def _row(
    x0, x1, x2, x3, x4, x5, x6, x7, first_sum, second_sum, q, h, s, d, row, g, R,
    G: tl.constexpr, LEVELS: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, SCALES: tl.constexpr,
):  # fmt: skip
    """Products of one row per thread, int64 [T], with x from ``load_groups``, summed over each group: float32 [T].

    The units (1 + level / 2^B) are multiplied as they are, and each group's sum is corrected once: it is
    sum(level * x) / 2^B + (1 + zero / 2^B) * sum(x). The caller applies ``row_factor``.
    """
    base = row * G  # the row's first group
    # Whether the halves have their own factors; else one sum serves both.
    halves: tl.constexpr = SCALES == K16 or SCALES == K16_MIN
    first_weight: tl.constexpr = 16.0 if LEVELS == NIBBLES and HIGH == 0 else 1.0
    words = q.to(tl.pointer_type(tl.int32))
    nothing = tl.zeros((g.shape[0], 4), tl.float32)
    if LEVELS == FLOAT:
        lo = _float16(nothing, x0, x1, x2, x3, q + base * 32 + g * 32)
        lo = _float16(lo, x4, x5, x6, x7, q + base * 32 + (g * 32 + 16))
        hi = nothing
    elif LEVELS == BYTES:
        where = words + base * 8 + g * 8
        # A signed byte plus 128 is the byte with its highest bit flipped.
        w0, w1, w2, w3 = load_words(where)
        lo = _dot16(
            nothing, x0, x1, x2, x3, w0 ^ -0x7F7F7F80, w1 ^ -0x7F7F7F80, w2 ^ -0x7F7F7F80, w3 ^ -0x7F7F7F80, w0, 0, 8, 0, 0
        )  # fmt: skip
        w0, w1, w2, w3 = load_words(where + 4)
        lo = _dot16(
            lo, x4, x5, x6, x7, w0 ^ -0x7F7F7F80, w1 ^ -0x7F7F7F80, w2 ^ -0x7F7F7F80, w3 ^ -0x7F7F7F80, w0, 0, 8, 0, 0
        )
        hi = nothing
    else:
        if LEVELS == PAIRS:  # two groups share four words, which two neighbouring threads read
            group = base + g
            w0, w1, w2, w3 = load_words(words + (group // 2) * 4)
            turn = ((group & 1) * 4).to(tl.int32)
            w0, w1, w2, w3 = w0 >> turn, w1 >> turn, w2 >> turn, w3 >> turn
        else:
            w0, w1, w2, w3 = load_words(words + base * 4 + g * 4)
        if LEVELS == GRID:
            lo = _grid16(nothing, x0, x1, x2, x3, w0, w1, w2, w3, 0)
            lo = _grid16(lo, x4, x5, x6, x7, w0, w1, w2, w3, 4)
            hi = nothing
        elif HIGH == 2 and LEVELS == NIBBLES:
            high = h + base + g
            bits = tl.load(high)
            lo = _dot16(
                nothing, x0, x1, x2, x3,
                six_bits(w0, bits, 0), six_bits(w1, bits, 1), six_bits(w2, bits, 2),
                six_bits(w3, bits, 3), bits, 0, 6, 0, 0,
            )  # fmt: skip
            bits = tl.load(high + R * G)
            hi = _dot16(
                nothing, x4, x5, x6, x7,
                six_bits(w0 >> 4, bits, 0), six_bits(w1 >> 4, bits, 1), six_bits(w2 >> 4, bits, 2),
                six_bits(w3 >> 4, bits, 3), bits, 0, 6, 0, 0,
            )  # fmt: skip
        else:
            bits = w0
            if HIGH == 1:
                bits = tl.load(h + base + g)
            if LEVELS == PAIRS:
                lo = _dot16(nothing, x0, x1, x2, x3, w0, w1, w2, w3, bits, 0, 2, HIGH, 0)
                hi = _dot16(nothing, x4, x5, x6, x7, w0, w1, w2, w3, bits >> 16, 2, 2, HIGH, 0)
            elif HIGH == 0:
                # Both nibbles of a byte are shifted at once, the low one to four places lower; its x, sixteen times as
                # large, compensates for that.
                lo = _dot16(nothing, x0 * 16.0, x1 * 16.0, x2 * 16.0, x3 * 16.0, w0, w1, w2, w3, bits, 0, 4, 0, 4)
                lo = _dot16(lo, x4, x5, x6, x7, w0, w1, w2, w3, bits, 4, 4, 0, 0)
                hi = nothing
            else:
                lo = _dot16(nothing, x0, x1, x2, x3, w0, w1, w2, w3, bits, 0, 4, HIGH, 0)
                lo = _dot16(lo, x4, x5, x6, x7, w0, w1, w2, w3, bits >> 16, 4, 4, HIGH, 0)
                hi = nothing
    lo = tl.sum(lo, 1)
    if halves:
        hi = tl.sum(hi, 1)
    if LEVELS != FLOAT and LEVELS != GRID:
        span: tl.constexpr = 256.0 if LEVELS == BYTES else (1 << ((2 if LEVELS == PAIRS else 4) + HIGH)) * 1.0
        zero: tl.constexpr = (128.0 if LEVELS == BYTES else ZERO * 1.0) / span
        if halves:
            lo = (lo - (1.0 + zero) * first_sum) * span
            hi = (hi - (1.0 + zero) * second_sum) * span
        else:
            lo = (lo - ((first_weight + zero) * first_sum + (1.0 + zero) * second_sum)) * span
    if SCALES == NONE or SCALES == ROW:
        total = lo
    else:
        lo_factor, hi_factor, lo_least, hi_least = group_scales(s, d, base + g, row * (G // 8) + g // 8, None, SCALES)
        total = lo_factor * lo
        if halves:
            total += hi_factor * hi
        if SCALES == K16_MIN:
            total -= lo_least * first_sum + hi_least * second_sum
        elif SCALES == BLOCK_MIN or SCALES == K32_MIN:
            total -= lo_least * (first_sum + second_sum)
    return total


@triton.jit
def add_products(
    t0, t1, t2, t3, x0, x1, x2, x3, x4, x5, x6, x7, first_sum, second_sum, q, h, s, d, row, last, offset, g, R,
    G: tl.constexpr, LEVELS: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, SCALES: tl.constexpr,
    GL: tl.constexpr, RL: tl.constexpr, KW: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Add the products of a thread's BR rows (1, 2 or 4) and a group of x to t0 .. t3, float32 [T].

    row int32 [T]: the thread's first row; the others are RL apart. Rows beyond ``last`` are read as that one. ``offset``
    int64 is added to all. Beyond the last group x is zero and the last group is read again, so loads need no masks.
    """
    if G % (GL * KW) != 0:
        g = tl.minimum(g, G - 1)
    at = tl.minimum(row, last).to(tl.int64) + offset
    t0 += _row(
        x0, x1, x2, x3, x4, x5, x6, x7, first_sum, second_sum, q, h, s, d, at, g, R, G, LEVELS, HIGH, ZERO, SCALES
    )
    if BR > 1:
        at = tl.minimum(row + RL, last).to(tl.int64) + offset
        t1 += _row(
            x0, x1, x2, x3, x4, x5, x6, x7, first_sum, second_sum, q, h, s, d, at, g, R, G, LEVELS, HIGH, ZERO, SCALES
        )
    if BR > 2:
        at = tl.minimum(row + 2 * RL, last).to(tl.int64) + offset
        t2 += _row(
            x0, x1, x2, x3, x4, x5, x6, x7, first_sum, second_sum, q, h, s, d, at, g, R, G, LEVELS, HIGH, ZERO, SCALES
        )
        at = tl.minimum(row + 3 * RL, last).to(tl.int64) + offset
        t3 += _row(
            x0, x1, x2, x3, x4, x5, x6, x7, first_sum, second_sum, q, h, s, d, at, g, R, G, LEVELS, HIGH, ZERO, SCALES
        )
    return t0, t1, t2, t3


@triton.jit
def over_the_row(t0, t1, t2, t3, GL: tl.constexpr, RL: tl.constexpr, KW: tl.constexpr, BR: tl.constexpr):
    """The sums t0 .. t3 [T] of a thread's rows, summed over each row's threads: [RL, BR]."""
    if BR == 4:
        total = tl.join(tl.join(t0, t2), tl.join(t1, t3))
    elif BR == 2:
        total = tl.join(t0, t1)
    else:
        total = t0
    return tl.sum(tl.sum(tl.reshape(total, (KW, RL, GL, BR)), 2), 0)


@triton.jit
def mean_square(squares, K: tl.constexpr, GL: tl.constexpr, RL: tl.constexpr, KW: tl.constexpr):
    """The mean of the squares of a row of x, [T] summed over threads: [RL, 1]."""
    return tl.sum(tl.sum(tl.reshape(squares, (KW, RL, GL, 1)), 2), 0) / K
