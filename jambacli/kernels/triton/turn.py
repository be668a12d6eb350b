"""One turn of a product's loop: a group of activations times each thread's rows of one or two matrices, in either of two ways.

``stream`` multiplies float32 activations, ``int8`` activations rounded to int8.
"""

from __future__ import annotations

import triton
import triton.language as tl

from jambacli.kernels.triton.int8 import add_rounded_products, load_rounded
from jambacli.kernels.triton.stream import add_products, load_groups


@triton.jit
def add_turn(
    squares, t0, t1, t2, t3, u0, u1, u2, u3, x, norm, start, own, q, h, s, d, q2, h2, s2, d2, row, last, offset, R,
    K: tl.constexpr, G: tl.constexpr, LEVELS: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, SCALES: tl.constexpr,
    NORM: tl.constexpr, INTERLEAVED: tl.constexpr, GATED: tl.constexpr, INT8: tl.constexpr,
    GL: tl.constexpr, RL: tl.constexpr, KW: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Add the products of the groups start + own, int32 [T], with the rows of the first matrix to t0 .. t3, those of the second
    one (GATED) to u0 .. u3, and the squares of x to ``squares``: float32 [T]. The other arguments as in ``stream``."""
    if INT8:
        a0, a1, a2, a3, a4, a5, a6, a7, first, second, factor, more = load_rounded(
            x, norm, start, own, K, G, GL, KW, NORM, INTERLEAVED
        )
        squares += more
        t0, t1, t2, t3 = add_rounded_products(
            t0, t1, t2, t3, a0, a1, a2, a3, a4, a5, a6, a7, first, second, factor, q, h, s, d, row, last, offset,
            start + own, R, G, LEVELS, HIGH, ZERO, SCALES, GL, RL, KW, BR,
        )  # fmt: skip
        if GATED:
            u0, u1, u2, u3 = add_rounded_products(
                u0, u1, u2, u3, a0, a1, a2, a3, a4, a5, a6, a7, first, second, factor, q2, h2, s2, d2, row, last, offset,
                start + own, R, G, LEVELS, HIGH, ZERO, SCALES, GL, RL, KW, BR,
            )  # fmt: skip
    else:
        x0, x1, x2, x3, x4, x5, x6, x7, first, second, more = load_groups(
            x, norm, start, own, K, G, GL, KW, NORM, INTERLEAVED
        )
        squares += more
        t0, t1, t2, t3 = add_products(
            t0, t1, t2, t3, x0, x1, x2, x3, x4, x5, x6, x7, first, second, q, h, s, d, row, last, offset, start + own, R,
            G, LEVELS, HIGH, ZERO, SCALES, GL, RL, KW, BR,
        )  # fmt: skip
        if GATED:
            u0, u1, u2, u3 = add_products(
                u0, u1, u2, u3, x0, x1, x2, x3, x4, x5, x6, x7, first, second, q2, h2, s2, d2, row, last, offset,
                start + own, R, G, LEVELS, HIGH, ZERO, SCALES, GL, RL, KW, BR,
            )  # fmt: skip
    return squares, t0, t1, t2, t3, u0, u1, u2, u3
