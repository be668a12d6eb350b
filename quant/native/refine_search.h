// Better scales and minimums for the weighted squared error, from blocks that another search has found.
//
// Rounds of two steps, each kept where a sub-block's or super-block's error falls: neighbouring integer scales and minimums of
// each sub-block, with its values rounded again; then d and dmin by least squares. So the result is never worse than the start.
#pragma once

#include "refine_grid.h"

namespace quant {
namespace JAMBA_VARIANT {
namespace refine {

constexpr int SEARCH_ROUNDS = 4;

// The weighted squared error of one sub-block with its values rounded to the nearest levels, which go to `level`.
template <typename F>
LANE_FN vf rounded_error(const vf *x, const vf *w, vf factor, vf shift, vf *level) {
    const vf per_factor = reciprocal(factor);
    vf error = {};
    for (int i = 0; i < F::SUB; ++i) {
        const vf q = nearest<F>((x[i] + shift) * per_factor);
        const vf off = x[i] - (factor * q - shift);
        error += w[i] * (off * off);
        level[i] = q;
    }
    return error;
}

// Sums for the line through a sub-block's levels q: x ~ factor * q - shift.
struct LineSums {
    vf w, q, qq, x, qx;
};

template <typename F>
LANE_FN LineSums line_sums(const vf *x, const vf *w, const vf *q) {
    LineSums s{};
    for (int i = 0; i < F::SUB; ++i) {
        const vf wq = w[i] * q[i], wx = w[i] * x[i];
        s.w += w[i], s.q += wq, s.qq += wq * q[i], s.x += wx, s.qx += wx * q[i];
    }
    return s;
}

// The least-squares factor and shift; those given where there are none.
template <typename F>
LANE_FN void best_line(const LineSums &s, vf *factor, vf *shift) {
    if constexpr (F::AFFINE) {
        const vf det = s.w * s.qq - s.q * s.q;
        const vm possible = gt(det, vf{});
        const vf base = (s.qq * s.x - s.q * s.qx) / det, slope = (s.w * s.qx - s.q * s.x) / det;
        *shift = select(possible, -base, *shift);
        *factor = select(possible, slope, *factor);
        if constexpr (F::NESTED) {  // a minimum is not negative: then the line goes through zero
            const vm above = both(lt(*shift, vf{}), gt(s.qq, vf{}));
            *factor = select(above, s.qx / s.qq, *factor);
            *shift = select(above, vf{}, *shift);
        }
    } else {
        *factor = select(gt(s.qq, vf{}), s.qx / s.qq, *factor);
    }
}

LANE_FN vf nearest_within(vf x, int low, int high) {
    return kq::lower_or(kq::upper_or(x + kq::ROUNDER, splat(kq::ROUNDER + (float)low)), splat(kq::ROUNDER + (float)high)) - kq::ROUNDER;
}

// One sub-block of a super-block: its scale and minimum, and those one step away, and those nearest to the best line.
template <typename F>
LANE_FN vf search_integers(const vf *x, const vf *w, Grid &g, int j) {
    vf level[F::SUB];
    vf best = rounded_error<F>(x, w, g.factor[j], g.shift[j], level);
    vf line_factor = g.factor[j], line_shift = g.shift[j];
    best_line<F>(line_sums<F>(x, w, level), &line_factor, &line_shift);
    const vf scale = g.scale[j], minimum = F::AFFINE ? g.minimum[j] : vf{};
    const auto attempt = [&](vf s, vf m) {
        const vf factor = g.d[0] * s, shift = F::AFFINE ? g.dmin[0] * m : vf{};
        const vf error = rounded_error<F>(x, w, factor, shift, level);
        const vm better = lt(error, best);
        best = select(better, error, best);
        g.scale[j] = select(better, s, g.scale[j]);
        g.factor[j] = select(better, factor, g.factor[j]);
        if (F::AFFINE) {
            g.minimum[j] = select(better, m, g.minimum[j]);
            g.shift[j] = select(better, shift, g.shift[j]);
        }
    };
    attempt(nearest_within(line_factor * reciprocal(g.d[0]), F::LEAST, F::MOST),
            F::AFFINE ? nearest_within(line_shift * reciprocal(g.dmin[0]), 0, F::MOST) : vf{});
    for (int ds = -1; ds <= 1; ++ds) {
        const vf s = nearest_within(scale + (float)ds, F::LEAST, F::MOST);
        if constexpr (!F::AFFINE) {
            if (ds) attempt(s, vf{});
        } else {
            for (int dm = -1; dm <= 1; ++dm)
                if (ds || dm) attempt(s, nearest_within(minimum + (float)dm, 0, F::MOST));
        }
    }
    return best;
}

// d and dmin of a super-block by least squares over all its levels; kept where the error after rounding again is below `best`.
template <typename F>
LANE_FN void search_factors(const vf *x, const vf *w, Grid &g, vf best) {
    constexpr int N = COLUMNS / F::SUB;
    vf level[F::SUB], aa = {}, ab = {}, bb = {}, ax = {}, bx = {};
    for (int j = 0; j < N; ++j) {
        rounded_error<F>(x + j * F::SUB, w + j * F::SUB, g.factor[j], g.shift[j], level);
        const LineSums s = line_sums<F>(x + j * F::SUB, w + j * F::SUB, level);
        aa += g.scale[j] * g.scale[j] * s.qq;
        ax += g.scale[j] * s.qx;
        if (F::AFFINE) {
            ab -= g.scale[j] * g.minimum[j] * s.q;
            bb += g.minimum[j] * g.minimum[j] * s.w;
            bx -= g.minimum[j] * s.x;
        }
    }
    vf d = g.d[0], dmin = F::AFFINE ? g.dmin[0] : vf{};
    if constexpr (F::AFFINE) {
        const vf det = aa * bb - ab * ab;
        const vm possible = gt(det, vf{});
        const vf one = select(gt(aa, vf{}), ax / aa, d);
        d = select(possible, (bb * ax - ab * bx) / det, one);
        dmin = select(possible, (aa * bx - ab * ax) / det, dmin);
        dmin = select(lt(dmin, vf{}), vf{}, dmin);
    } else {
        d = select(gt(aa, vf{}), ax / aa, d);
    }
    d = from_half(to_half(d)), dmin = from_half(to_half(dmin));
    vf error = {};
    for (int j = 0; j < N; ++j)
        error += rounded_error<F>(x + j * F::SUB, w + j * F::SUB, d * g.scale[j], F::AFFINE ? dmin * g.minimum[j] : vf{}, level);
    const vm better = lt(error, best);
    g.d[0] = select(better, d, g.d[0]);
    if (F::AFFINE) g.dmin[0] = select(better, dmin, g.dmin[0]);
    set_factors<F>(g, N);
}

// A block of 32 with its own d (and m): steps around that of the largest value, and the best line of each.
template <typename F>
LANE_FN void search_block(const vf *x, const vf *w, Grid &g, int j) {
    vf level[F::SUB];
    vf best = rounded_error<F>(x, w, g.factor[j], g.shift[j], level);
    const auto attempt = [&](vf factor, vf shift) {
        const vf d = from_half(to_half(factor)), m = F::AFFINE ? from_half(to_half(-shift)) : vf{};
        const vf error = rounded_error<F>(x, w, d, F::AFFINE ? -m : vf{}, level);
        const vm better = lt(error, best);
        best = select(better, error, best);
        g.d[j] = g.factor[j] = select(better, d, g.factor[j]);
        if (F::AFFINE) {
            g.dmin[j] = select(better, m, g.dmin[j]);
            g.shift[j] = -g.dmin[j];
        }
        vf line_factor = d, line_shift = F::AFFINE ? -m : vf{};
        best_line<F>(line_sums<F>(x, w, level), &line_factor, &line_shift);
        return line_factor;
    };
    if constexpr (F::AFFINE) {
        for (int round = 0; round < SEARCH_ROUNDS; ++round) {
            rounded_error<F>(x, w, g.factor[j], g.shift[j], level);
            vf factor = g.factor[j], shift = g.shift[j];
            best_line<F>(line_sums<F>(x, w, level), &factor, &shift);
            attempt(factor, shift);
        }
    } else {
        // The outermost level that the largest value may get, from either end of the levels.
        constexpr float FIRST = F::TABLE ? 127 : -(float)F::LOW, LAST = F::TABLE ? 113 : (float)F::HIGH;
        constexpr float STEP = FIRST < 100 ? 0.1f : 0.5f;
        vf size;
        const vf peak = peak_of(x, &size);
        for (int end = 0; end < (FIRST == LAST ? 1 : 2); ++end) {
            for (int k = -10; k <= 10; ++k) {
                const float outer = end ? LAST + STEP * (float)k : -(FIRST + STEP * (float)k);
                attempt(attempt(peak / outer, vf{}), vf{});
            }
        }
    }
}

template <typename F>
static __attribute__((noinline)) void search(const vf *x, const vf *w, int columns, Grid &g) {
    if constexpr (F::NESTED) {
        for (int round = 0; round < SEARCH_ROUNDS; ++round) {
            vf total = {};
            for (int j = 0; j < COLUMNS / F::SUB; ++j) total += search_integers<F>(x + j * F::SUB, w + j * F::SUB, g, j);
            search_factors<F>(x, w, g, total);
        }
    } else {
        for (int j = 0; j < columns / 32; ++j) search_block<F>(x + 32 * j, w + 32 * j, g, j);
    }
    // Where no level can be found for a factor of zero, those of the start stay.
    for (int j = 0; j < columns / F::SUB; ++j) {
        vf level[F::SUB];
        rounded_error<F>(x + j * F::SUB, w + j * F::SUB, g.factor[j], g.shift[j], level);
        const vm flat = eq(g.factor[j], vf{});
        for (int i = 0; i < F::SUB; ++i) g.level[j * F::SUB + i] = select(flat, g.level[j * F::SUB + i], level[i]);
    }
}

}  // namespace refine
}  // namespace JAMBA_VARIANT
}  // namespace quant
