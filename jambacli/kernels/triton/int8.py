"""Device functions that multiply packed rows with activations rounded to int8, four products per instruction (dp4a).

As ``stream``, with other arithmetic: each thread rounds its group of 32 activations to levels of -127 .. 127 times a factor,
the group's largest value over 127. Sums of levels are exact; only the rounding of activations differs from ``stream``. It
saves a third to a half of the instructions, which decides on GPUs whose memory outruns their integer units. A value that is
not finite makes its group's factor such a value, so it is not lost.
"""

# Constants are compared one by one: Triton's language has no `in`.
# ruff: noqa: PLR1714, SIM108, SIM109

from __future__ import annotations

import triton
import triton.language as tl

from jambacli.kernels.triton.interpret import WIDEN
from jambacli.kernels.triton.stream import and_or, load_chunk, load_words, six_bits
from jambacli.kernels.triton.tiles import BLOCK_MIN, BYTES, K16, K16_MIN, K32_MIN, PAIRS, group_scales

# 1.5 * 2^23: an integer below 2^22 added to the bits of this float is added to the float too.
_MAGIC = tl.constexpr(12582912.0)
_MAGIC_BITS = tl.constexpr(0x4B400000)
# Four bytes of one: a product with them is the sum of four levels.
_ONES = tl.constexpr(0x01010101)


@triton.jit
def _byte(word, i: tl.constexpr):
    return (word << (24 - 8 * i)) >> 24


@triton.jit
def _dp4a(a, b, total):
    """total + the products of the four signed bytes of two words: int32 [T]."""
    if WIDEN:
        for i in tl.static_range(4):
            total += _byte(a, i) * _byte(b, i)
    else:
        total = tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, total], dtype=tl.int32, is_pure=True, pack=1
        )
    return total


@triton.jit
def _four(value):
    """The four values of each thread, [T, 4], one by one: [T] four times."""
    even, odd = tl.split(tl.reshape(value, (value.shape[0], 2, 2)))
    v0, v2 = tl.split(even)
    v1, v3 = tl.split(odd)
    return v0, v1, v2, v3


@triton.jit
def _larger(a, b):
    """The larger one; if one is no number, neither is the result."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _largest(value):
    v0, v1, v2, v3 = _four(tl.abs(value))
    return _larger(_larger(v0, v1), _larger(v2, v3))


@triton.jit
def _rounded(value, inverse):
    """Four values times ``inverse`` as the signed bytes of a word, rounded to even: [T, 4] -> int32 [T]."""
    b0, b1, b2, b3 = _four((value * inverse[:, None] + _MAGIC).to(tl.int32, bitcast=True))
    if WIDEN:
        word = (b0 & 255) | ((b1 & 255) << 8) | ((b2 & 255) << 16) | (b3 << 24)
    else:
        word = tl.inline_asm_elementwise(
            "{ .reg .b32 u, v; prmt.b32 u, $1, $2, 0x0040; prmt.b32 v, $3, $4, 0x0040; prmt.b32 $0, u, v, 0x5410; }",
            "=r,r,r,r,r", [b0, b1, b2, b3], dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    return word


@triton.jit
def load_rounded(
    x, norm, start, own, K: tl.constexpr, G: tl.constexpr, GL: tl.constexpr, KW: tl.constexpr, NORM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """As ``stream.load_groups``: eight words of four levels for each group, int32 [T]; the sums of the levels of the first and
    the second sixteen, int32 [T]; the group's factor and the sum of squares, float32 [T]."""
    END: tl.constexpr = (G + 7) // 8 * 256 if INTERLEAVED else K
    WHOLE: tl.constexpr = (G + GL * KW - 1) // (GL * KW) * GL * KW * 32 <= END
    STEP: tl.constexpr = 32 if INTERLEAVED else 4
    if INTERLEAVED:
        at = start * 32 + (own // 8 * 256 + own % 8 * 4)
    else:
        at = (start + own) * 32
    x0, _, squares0 = load_chunk(x, norm, at, 0, STEP, END, WHOLE, NORM)
    x1, _, squares1 = load_chunk(x, norm, at, 1, STEP, END, WHOLE, NORM)
    x2, _, squares2 = load_chunk(x, norm, at, 2, STEP, END, WHOLE, NORM)
    x3, _, squares3 = load_chunk(x, norm, at, 3, STEP, END, WHOLE, NORM)
    x4, _, squares4 = load_chunk(x, norm, at, 4, STEP, END, WHOLE, NORM)
    x5, _, squares5 = load_chunk(x, norm, at, 5, STEP, END, WHOLE, NORM)
    x6, _, squares6 = load_chunk(x, norm, at, 6, STEP, END, WHOLE, NORM)
    x7, _, squares7 = load_chunk(x, norm, at, 7, STEP, END, WHOLE, NORM)
    squares = ((squares0 + squares1) + (squares2 + squares3)) + ((squares4 + squares5) + (squares6 + squares7))
    first = _larger(_larger(_largest(x0), _largest(x1)), _larger(_largest(x2), _largest(x3)))
    top = _larger(first, _larger(_larger(_largest(x4), _largest(x5)), _larger(_largest(x6), _largest(x7))))
    # Of smaller values 127 / top would overflow.
    inverse = 127.0 / tl.maximum(top, 1e-34)
    a0, a1, a2, a3 = _rounded(x0, inverse), _rounded(x1, inverse), _rounded(x2, inverse), _rounded(x3, inverse)
    a4, a5, a6, a7 = _rounded(x4, inverse), _rounded(x5, inverse), _rounded(x6, inverse), _rounded(x7, inverse)
    zero = tl.zeros(own.shape, tl.int32)
    ones = zero + _ONES
    first_sum = _dp4a(a3, ones, _dp4a(a2, ones, _dp4a(a1, ones, _dp4a(a0, ones, zero))))
    second_sum = _dp4a(a7, ones, _dp4a(a6, ones, _dp4a(a5, ones, _dp4a(a4, ones, zero))))
    return a0, a1, a2, a3, a4, a5, a6, a7, first_sum, second_sum, top * (1.0 / 127.0), squares


@triton.jit
def _real(i):
    """A small integer as float32, with instructions that are faster than a conversion."""
    return (i + _MAGIC_BITS).to(tl.float32, bitcast=True) - _MAGIC


@triton.jit
def _levels(word, high, first: tl.constexpr, low: tl.constexpr, HIGH: tl.constexpr):
    """The levels of ``low`` bits at bit ``first`` of a word's bytes as bytes. HIGH = 1: one more bit for each, from the lowest
    bits of ``high`` on."""
    bits = word
    if first > 0:
        bits = word >> first
    mask: tl.constexpr = ((1 << low) - 1) * 0x01010101
    if HIGH == 1:  # the product has bit i of four at bit 8 i
        spread = ((high & 15) * (0x00204081 << low)) & (0x01010101 << low)
        bits = and_or(bits, mask, spread)
    else:
        bits = bits & mask
    return bits


@triton.jit
def _dot16(total, a0, a1, a2, a3, w0, w1, w2, w3, high, first: tl.constexpr, low: tl.constexpr, HIGH: tl.constexpr):
    """Add to total, int32 [T], sixteen levels of each group times those of x."""
    total = _dp4a(_levels(w0, high, first, low, HIGH), a0, total)
    total = _dp4a(_levels(w1, high >> (4 * HIGH), first, low, HIGH), a1, total)
    total = _dp4a(_levels(w2, high >> (8 * HIGH), first, low, HIGH), a2, total)
    return _dp4a(_levels(w3, high >> (12 * HIGH), first, low, HIGH), a3, total)


@triton.jit
def _row(
    a0, a1, a2, a3, a4, a5, a6, a7, first_sum, second_sum, q, h, s, d, row, g, R,
    G: tl.constexpr, LEVELS: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, SCALES: tl.constexpr,
):  # fmt: skip
    """As ``stream._row`` with x from ``load_rounded``, without the groups' factors."""
    base = row * G
    halves: tl.constexpr = SCALES == K16 or SCALES == K16_MIN
    words = q.to(tl.pointer_type(tl.int32))
    zero = tl.zeros(g.shape, tl.int32)
    hi = zero
    if LEVELS == BYTES:
        w0, w1, w2, w3 = load_words(words + base * 8 + g * 8)
        lo = _dp4a(w3, a3, _dp4a(w2, a2, _dp4a(w1, a1, _dp4a(w0, a0, zero))))
        w0, w1, w2, w3 = load_words(words + base * 8 + g * 8 + 4)
        lo = _dp4a(w3, a7, _dp4a(w2, a6, _dp4a(w1, a5, _dp4a(w0, a4, lo))))
    elif LEVELS == PAIRS:
        group = base + g
        w0, w1, w2, w3 = load_words(words + (group // 2) * 4)
        turn = ((group & 1) * 4).to(tl.int32)
        w0, w1, w2, w3 = w0 >> turn, w1 >> turn, w2 >> turn, w3 >> turn
        bits = w0
        if HIGH == 1:
            bits = tl.load(h + base + g)
        lo = _dot16(zero, a0, a1, a2, a3, w0, w1, w2, w3, bits, 0, 2, HIGH)
        hi = _dot16(zero, a4, a5, a6, a7, w0, w1, w2, w3, bits >> 16, 2, 2, HIGH)
    else:
        w0, w1, w2, w3 = load_words(words + base * 4 + g * 4)
        if HIGH == 2:
            bits = tl.load(h + base + g)
            lo = _dp4a(six_bits(w0, bits, 0), a0, zero)
            lo = _dp4a(six_bits(w1, bits, 1), a1, lo)
            lo = _dp4a(six_bits(w2, bits, 2), a2, lo)
            lo = _dp4a(six_bits(w3, bits, 3), a3, lo)
            bits = tl.load(h + base + g + R * G)
            hi = _dp4a(six_bits(w0 >> 4, bits, 0), a4, zero)
            hi = _dp4a(six_bits(w1 >> 4, bits, 1), a5, hi)
            hi = _dp4a(six_bits(w2 >> 4, bits, 2), a6, hi)
            hi = _dp4a(six_bits(w3 >> 4, bits, 3), a7, hi)
        else:
            bits = w0
            if HIGH == 1:
                bits = tl.load(h + base + g)
            lo = _dot16(zero, a0, a1, a2, a3, w0, w1, w2, w3, bits, 0, 4, HIGH)
            lo = _dot16(lo, a4, a5, a6, a7, w0, w1, w2, w3, bits >> 16, 4, 4, HIGH)
    factor, second_factor, least, second_least = group_scales(
        s, d, base + g, row * (G // 8) + g // 8, None, SCALES
    )  # fmt: skip
    if halves:
        if ZERO != 0:
            lo -= ZERO * first_sum
            hi -= ZERO * second_sum
        total = factor * _real(lo) + second_factor * _real(hi)
        if SCALES == K16_MIN:
            total -= least * _real(first_sum) + second_least * _real(second_sum)
    else:
        if ZERO != 0:
            lo -= ZERO * (first_sum + second_sum)
        total = factor * _real(lo)
        if SCALES == BLOCK_MIN or SCALES == K32_MIN:
            total -= least * _real(first_sum + second_sum)
    return total


@triton.jit
def add_rounded_products(
    t0, t1, t2, t3, a0, a1, a2, a3, a4, a5, a6, a7, first_sum, second_sum, factor, q, h, s, d, row, last, offset, g, R,
    G: tl.constexpr, LEVELS: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, SCALES: tl.constexpr,
    GL: tl.constexpr, RL: tl.constexpr, KW: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """As ``stream.add_products`` with x from ``load_rounded``."""
    if G % (GL * KW) != 0:
        g = tl.minimum(g, G - 1)
    at = tl.minimum(row, last).to(tl.int64) + offset
    t0 += factor * _row(
        a0, a1, a2, a3, a4, a5, a6, a7, first_sum, second_sum, q, h, s, d, at, g, R, G, LEVELS, HIGH, ZERO, SCALES
    )
    if BR > 1:
        at = tl.minimum(row + RL, last).to(tl.int64) + offset
        t1 += factor * _row(
            a0, a1, a2, a3, a4, a5, a6, a7, first_sum, second_sum, q, h, s, d, at, g, R, G, LEVELS, HIGH, ZERO, SCALES
        )
    if BR > 2:
        at = tl.minimum(row + 2 * RL, last).to(tl.int64) + offset
        t2 += factor * _row(
            a0, a1, a2, a3, a4, a5, a6, a7, first_sum, second_sum, q, h, s, d, at, g, R, G, LEVELS, HIGH, ZERO, SCALES
        )
        at = tl.minimum(row + 3 * RL, last).to(tl.int64) + offset
        t3 += factor * _row(
            a0, a1, a2, a3, a4, a5, a6, a7, first_sum, second_sum, q, h, s, d, at, g, R, G, LEVELS, HIGH, ZERO, SCALES
        )
    return t0, t1, t2, t3
