// Levels, scales and minimums of a column block for a quadratic error: (x - y) S (x - y)' for each row x and its values y.
//
// First the columns are rounded one after another, each with the error of those before it (as GPTQ rounds): R is the upper
// triangle with R R' = S, so the error is the sum over columns k of ((x - y) R)_k squared. Then coordinate descent with the
// gradient r = (x - y) S: one level, one scale, one minimum, d and dmin at a time, each changed only where the error falls.
#pragma once

#include "refine_grid.h"
#include "refine_search.h"

namespace quant {
namespace JAMBA_VARIANT {
namespace refine {

struct Problem {
    int columns;
    const float *S;      // [columns][columns], symmetric, positive diagonal
    const float *sums;   // [sub-blocks][columns]: the sums of S over the rows of each sub-block
};

// r -= step * S[row], for all columns.
LANE_FN void move(const Problem &p, int row, vf step, vf *r) {
    const float *s = p.S + (int64_t)row * p.columns;
    for (int k = 0; k < p.columns; ++k) r[k] -= step * s[k];
}

// r[k] -= the sum of step[i] * S[first + i][k] over the sub-block, in order of i, for all columns outside it.
template <int SUB>
LANE_FN void move_others(const Problem &p, int first, const vf *step, vf *r) {
    int at[SUB], active = 0;
    for (int i = 0; i < SUB; ++i)
        if (any(inverse(eq(step[i], vf{})))) at[active++] = i;
    if (!active) return;
    const float *s = p.S + (int64_t)first * p.columns;
    for (int k = 0; k < p.columns; ++k) {
        if (k == first) k += SUB;
        if (k >= p.columns) break;
        vf v = r[k];
        for (int i = 0; i < active; ++i) v -= step[at[i]] * s[(int64_t)at[i] * p.columns + k];
        r[k] = v;
    }
}

template <typename F>
static __attribute__((noinline)) void round_in_order(const vf *x, const float *R, int columns, Grid &g) {
    alignas(64) vf carried[COLUMNS], off[F::SUB];
    for (int k = 0; k < columns; ++k) carried[k] = vf{};
    for (int j = 0; j < columns / F::SUB; ++j) {
        const int first = j * F::SUB;
        const vf factor = g.factor[j], shift = g.shift[j], per_factor = reciprocal(factor);
        const vm flat = eq(factor, vf{});
        for (int i = 0; i < F::SUB; ++i) {
            const int c = first + i;
            const float *row = R + (int64_t)c * columns;
            const vf wanted = x[c] + carried[c] / row[c];
            const vf q = nearest<F>((wanted + shift) * per_factor);
            g.level[c] = select(flat, g.level[c], q);
            off[i] = x[c] - (factor * g.level[c] - shift);
            for (int k = c + 1; k < first + F::SUB; ++k) carried[k] += off[i] * row[k];
        }
        for (int k = first + F::SUB; k < columns; ++k) {
            vf v = carried[k];
            for (int i = 0; i < F::SUB; ++i) v += off[i] * R[(int64_t)(first + i) * columns + k];
            carried[k] = v;
        }
    }
}

// r = (x - y) S.
LANE_FN void gradient(const Problem &p, const vf *x, const Grid &g, int sub, vf *r) {
    for (int k = 0; k < p.columns; ++k) r[k] = vf{};
    for (int c = 0; c < p.columns; ++c) {
        const vf off = x[c] - (g.factor[c / sub] * g.level[c] - g.shift[c / sub]);
        move(p, c, -off, r);
    }
}

// One level at a time: the one nearest to the value of least error.
template <typename F>
LANE_FN void descend_levels(const Problem &p, Grid &g, int j, vf *r) {
    const int first = j * F::SUB;
    const vf factor = g.factor[j], shift = g.shift[j], per_factor = reciprocal(factor);
    vf step[F::SUB];
    for (int i = 0; i < F::SUB; ++i) {
        const int c = first + i;
        const float *s = p.S + (int64_t)c * p.columns;
        const vf value = factor * g.level[c] - shift;
        const vf q = nearest<F>((value + r[c] / s[c] + shift) * per_factor);
        const vf change = (factor * q - shift) - value;
        const vm better = gt(change * (2.0f * r[c] - change * s[c]), vf{});
        g.level[c] = select(better, q, g.level[c]);
        step[i] = select(better, change, vf{});
        if (!any(better)) continue;
        for (int k = first; k < first + F::SUB; ++k) r[k] -= step[i] * s[k];
    }
    move_others<F::SUB>(p, first, step, r);
}

// The scale and the minimum of one sub-block, its levels unchanged.
template <typename F>
LANE_FN void descend_scales(const Problem &p, Grid &g, int j, vf *r) {
    const int first = j * F::SUB;
    vf curvature = {}, slope = {};
    for (int i = 0; i < F::SUB; ++i) {
        const float *s = p.S + (int64_t)(first + i) * p.columns + first;
        vf v = {};
        for (int k = 0; k < F::SUB; ++k) v += g.level[first + k] * s[k];
        curvature += v * g.level[first + i];
        slope += g.level[first + i] * r[first + i];
    }
    const vf wanted = g.factor[j] + select(gt(curvature, vf{}), slope / curvature, vf{});
    vf scale, factor;
    if constexpr (F::NESTED) {
        scale = nearest_within(wanted * reciprocal(g.d[0]), F::LEAST, F::MOST);
        factor = g.d[0] * scale;
    } else {
        scale = factor = from_half(to_half(wanted));
    }
    vf change = factor - g.factor[j];
    vm better = both(gt(change * (2.0f * slope - change * curvature), vf{}), inverse(eq(factor, vf{})));
    if (any(better)) {
        (F::NESTED ? g.scale : g.d)[j] = select(better, scale, (F::NESTED ? g.scale : g.d)[j]);
        g.factor[j] = select(better, factor, g.factor[j]);
        change = select(better, change, vf{});
        for (int i = 0; i < F::SUB; ++i) move(p, first + i, change * g.level[first + i], r);
    }
    if constexpr (F::AFFINE) {
        const float *sums = p.sums + (int64_t)j * p.columns;
        float steep = 0;
        for (int i = 0; i < F::SUB; ++i) steep += sums[first + i];
        vf down = {};
        for (int i = 0; i < F::SUB; ++i) down -= r[first + i];
        const vf shift = g.shift[j] + (steep > 0 ? down / steep : vf{});
        vf minimum, rounded;
        if constexpr (F::NESTED) {
            minimum = nearest_within(shift * reciprocal(g.dmin[0]), 0, F::MOST);
            rounded = g.dmin[0] * minimum;
        } else {
            minimum = from_half(to_half(-shift));
            rounded = -minimum;
        }
        change = rounded - g.shift[j];
        better = gt(change * (2.0f * down - change * steep), vf{});
        if (any(better)) {
            (F::NESTED ? g.minimum : g.dmin)[j] = select(better, minimum, (F::NESTED ? g.minimum : g.dmin)[j]);
            g.shift[j] = select(better, rounded, g.shift[j]);
            change = select(better, change, vf{});
            for (int k = 0; k < p.columns; ++k) r[k] += change * sums[k];
        }
    }
}

// d and dmin of a super-block, everything else unchanged.
template <typename F>
LANE_FN void descend_factors(const Problem &p, Grid &g, vf *r) {
    constexpr int N = COLUMNS / F::SUB;
    alignas(64) vf along[COLUMNS], below[COLUMNS];  // rows of the changes that d and dmin make, times S
    vf aa = {}, ab = {}, bb = {}, ar = {}, br = {};
    for (int k = 0; k < COLUMNS; ++k) along[k] = vf{}, below[k] = vf{};
    for (int c = 0; c < COLUMNS; ++c) move(p, c, -(g.scale[c / F::SUB] * g.level[c]), along);
    if (F::AFFINE) {
        for (int j = 0; j < N; ++j)
            for (int k = 0; k < COLUMNS; ++k) below[k] -= g.minimum[j] * p.sums[(int64_t)j * COLUMNS + k];
    }
    for (int c = 0; c < COLUMNS; ++c) {
        const vf u = g.scale[c / F::SUB] * g.level[c];
        aa += along[c] * u;
        ar += u * r[c];
        if (F::AFFINE) {
            const vf m = g.minimum[c / F::SUB];
            ab -= along[c] * m;
            bb -= below[c] * m;
            br -= m * r[c];
        }
    }
    vf d = g.d[0] + select(gt(aa, vf{}), ar / aa, vf{}), dmin = F::AFFINE ? g.dmin[0] : vf{};
    if constexpr (F::AFFINE) {
        const vf det = aa * bb - ab * ab;
        const vm possible = gt(det, 1e-6f * (aa * bb));
        d = select(possible, g.d[0] + (bb * ar - ab * br) / det, d);
        dmin = select(possible, dmin + (aa * br - ab * ar) / det, dmin);
        dmin = select(lt(dmin, vf{}), vf{}, dmin);
    }
    d = from_half(to_half(d)), dmin = from_half(to_half(dmin));
    vf dd = d - g.d[0], dm = F::AFFINE ? dmin - g.dmin[0] : vf{};
    const vf gain = 2.0f * (dd * ar + dm * br) - (dd * dd * aa + 2.0f * dd * dm * ab + dm * dm * bb);
    const vm better = both(gt(gain, vf{}), inverse(eq(d, vf{})));
    if (!any(better)) return;
    dd = select(better, dd, vf{}), dm = select(better, dm, vf{});
    g.d[0] = select(better, d, g.d[0]);
    if (F::AFFINE) g.dmin[0] = select(better, dmin, g.dmin[0]);
    set_factors<F>(g, N);
    for (int k = 0; k < COLUMNS; ++k) r[k] -= dd * along[k] + dm * below[k];
}

template <typename F>
static __attribute__((noinline)) void descend(const Problem &p, Grid &g, int rounds, vf *r) {
    const int subs = p.columns / F::SUB;
    for (int round = 0; round < rounds; ++round) {
        for (int j = 0; j < subs; ++j) descend_levels<F>(p, g, j, r);
        for (int j = 0; j < subs; ++j) descend_scales<F>(p, g, j, r);
        if constexpr (F::NESTED) descend_factors<F>(p, g, r);
    }
    for (int j = 0; j < subs; ++j) descend_levels<F>(p, g, j, r);
}

}  // namespace refine
}  // namespace JAMBA_VARIANT
}  // namespace quant
