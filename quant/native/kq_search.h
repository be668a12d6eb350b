// ggml's searches for the scales of K-quant sub-blocks, LANES blocks at a time.
//
// A lane is a super-block: it executes, in the same order, the float operations that ggml's scalar search executes for its
// block, and what the scalar code skips is masked out. Levels are kept as floats while a search runs (they are small
// integers, so that is exact) and are not recorded: a search reports the parameters they came from, and `*_levels` makes
// them again in the rare place that needs them. STREAMS sub-blocks advance together to hide the latency of ordered sums.
#pragma once

#include "lanes.h"

namespace quant {
namespace JAMBA_VARIANT {
namespace kq {

constexpr float ROUNDER = 12582912.0f;     // 1.5 * 2^23: adding it leaves a value rounded to an integer in the low bits
constexpr float ROUNDABLE = 4194303.0f;    // the magnitudes for which that holds
constexpr float NEGLIGIBLE = 1e-15f;       // ggml treats a block below this as zero

// a < b ? a : b and a > b ? a : b: one instruction each, and the second operand where either is NaN.
#if QUANT_LANES == 16
LANE_FN vf lower_or(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
LANE_FN vf upper_or(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
#elif QUANT_LANES == 8
LANE_FN vf lower_or(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
LANE_FN vf upper_or(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
#else
LANE_FN vf lower_or(vf a, vf b) { return a < b ? a : b; }
LANE_FN vf upper_or(vf a, vf b) { return a > b ? a : b; }
#endif

// How a level is made of a value: the integer nearest to it, kept within [LOW, HIGH].
enum Rounding {
    WRAPPED,  // and wrapped as ggml's nearest_int wraps where |value| > ROUNDABLE, or 0 where it is NaN
    BOUNDED,  // for values known to be roundable
    CAPPED,   // for values known not to round below LOW
    RAISED,   // for values known not to round above HIGH
    FREE,     // for values known to do neither
};

template <int LOW, int HIGH, Rounding HOW>
LANE_FN vf level(vf v) {
    if constexpr (HOW == WRAPPED) return to_float(clamp(nearest_int(v), LOW, HIGH));
    vf y = v + ROUNDER;
    if constexpr (HOW == BOUNDED || HOW == RAISED) y = upper_or(y, splat(ROUNDER + LOW));
    if constexpr (HOW == BOUNDED || HOW == CAPPED) y = lower_or(y, splat(ROUNDER + HIGH));
    return y - ROUNDER;
}

LANE_FN bool roundable(vf v) { return !any(inverse(le(absolute(v), splat(ROUNDABLE)))); }

// ---- x ~ scale * level - offset: Q2_K, Q4_K, Q5_K ----

struct AffineFit {
    vf scale, offset;  // offset is ggml's "min": never negative
    vf step, base;     // levels = nearest(step * (x - base)) within [0, TOP]
};

template <int TOP>
LANE_FN vi affine_level(const AffineFit &fit, vf x) {
    return clamp(nearest_int(fit.step * (x - fit.base)), 0, TOP);
}

template <int N, int TOP, Rounding HOW, int STREAMS>
LANE_FN void affine_sums(const vf *x, const vf *w, const vf *step, const vf *base, vf *levels, vf *sum_l, vf *sum_l2,
                         vf *sum_xl) {
    vf s_step[STREAMS], s_base[STREAMS], l1[STREAMS] = {}, l2[STREAMS] = {}, xl[STREAMS] = {};
    for (int s = 0; s < STREAMS; ++s) s_step[s] = step[s], s_base[s] = base[s];
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
#pragma GCC unroll 4
        for (int s = 0; s < STREAMS; ++s) {
            const int k = s * N + i;
            const vf l = level<0, TOP, HOW>(s_step[s] * (x[k] - s_base[s]));
            levels[k] = l;
            const vf wl = w[k] * l;
            l1[s] += wl;
            l2[s] += wl * l;
            xl[s] += wl * x[k];
        }
    }
    for (int s = 0; s < STREAMS; ++s) sum_l[s] = l1[s], sum_l2[s] = l2[s], sum_xl[s] = xl[s];
}

template <int N, bool ABSOLUTE, int STREAMS>
LANE_FN void affine_error(const vf *x, const vf *w, const vf *levels, const vf *scale, const vf *base, vf *error) {
    vf s_scale[STREAMS], s_base[STREAMS], e[STREAMS] = {};
    for (int s = 0; s < STREAMS; ++s) s_scale[s] = scale[s], s_base[s] = base[s];
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
#pragma GCC unroll 4
        for (int s = 0; s < STREAMS; ++s) {
            const int k = s * N + i;
            const vf off = s_scale[s] * levels[k] + s_base[s] - x[k];
            e[s] += w[k] * (ABSOLUTE ? absolute(off) : off * off);
        }
    }
    for (int s = 0; s < STREAMS; ++s) error[s] = e[s];
}

// Tries steps (first + delta * k + TOP) / range for k = 0..tries and keeps the weighted least-squares line of least error.
// x and w: [STREAMS][N] positive weights. ggml moves the base of later tries to that of the best line so far; so does this.
template <int N, int TOP, bool ABSOLUTE, int STREAMS>
static __attribute__((noinline)) void fit_affine(const vf *x, const vf *w, float first, float delta, int tries,
                                                 AffineFit *fit) {
    alignas(64) vf levels[STREAMS * N];
    vf lowest[STREAMS], highest[STREAMS], sum_w[STREAMS], sum_x[STREAMS], step[STREAMS], base[STREAMS], best[STREAMS];
    vf scale[STREAMS], sum_l[STREAMS], sum_l2[STREAMS], sum_xl[STREAMS], line_scale[STREAMS], line_base[STREAMS];
    vm alive[STREAMS];

    for (int s = 0; s < STREAMS; ++s) {
        const vf *xs = x + s * N, *ws = w + s * N;
        vf low = xs[0], high = xs[0], sw = ws[0], sx = sw * xs[0];
        for (int i = 1; i < N; ++i) {
            low = lower_or(xs[i], low);
            high = upper_or(xs[i], high);
            sw += ws[i];
            sx += ws[i] * xs[i];
        }
        lowest[s] = low, highest[s] = high, sum_w[s] = sw, sum_x[s] = sx;
        base[s] = select(gt(low, vf{}), vf{}, low);
        alive[s] = inverse(eq(high, base[s]));
    }
    // The extremes bound every product of this try, so they tell which rounding will do.
    const auto take_levels = [&](float top) {
        bool plain = true, over = false, under = false;
        for (int s = 0; s < STREAMS; ++s) {
            const vf range = highest[s] - base[s];
            step[s] = select(alive[s], top / range, vf{});
            const vf first_value = step[s] * (lowest[s] - base[s]), last_value = step[s] * range;
            plain &= roundable(first_value) && roundable(last_value);
            under |= any(lt(first_value, splat(-0.5f)));
            // A base that has moved past the highest value turns the order of the two around.
            over |= any(either(ge(last_value, splat(TOP + 0.5f)), ge(first_value, splat(TOP + 0.5f))));
        }
        if (__builtin_expect(!plain, 0))
            affine_sums<N, TOP, WRAPPED, STREAMS>(x, w, step, base, levels, sum_l, sum_l2, sum_xl);
        else if (over && under)
            affine_sums<N, TOP, BOUNDED, STREAMS>(x, w, step, base, levels, sum_l, sum_l2, sum_xl);
        else if (over)
            affine_sums<N, TOP, CAPPED, STREAMS>(x, w, step, base, levels, sum_l, sum_l2, sum_xl);
        else if (under)
            affine_sums<N, TOP, RAISED, STREAMS>(x, w, step, base, levels, sum_l, sum_l2, sum_xl);
        else
            affine_sums<N, TOP, FREE, STREAMS>(x, w, step, base, levels, sum_l, sum_l2, sum_xl);
    };

    take_levels(TOP);
    for (int s = 0; s < STREAMS; ++s) {
        scale[s] = select(alive[s], 1.0f / step[s], vf{});
        fit[s].step = step[s];
        fit[s].base = base[s];
    }
    affine_error<N, ABSOLUTE, STREAMS>(x, w, levels, scale, base, best);

    for (int k = 0; k <= tries; ++k) {
        take_levels(first + delta * k + TOP);
        vm possible[STREAMS];
        for (int s = 0; s < STREAMS; ++s) {
            const vf det = sum_w[s] * sum_l2[s] - sum_l[s] * sum_l[s];
            possible[s] = both(alive[s], gt(det, vf{}));
            line_scale[s] = (sum_w[s] * sum_xl[s] - sum_x[s] * sum_l[s]) / det;
            line_base[s] = (sum_l2[s] * sum_x[s] - sum_l[s] * sum_xl[s]) / det;
            const vm positive = gt(line_base[s], vf{});
            if (any(positive)) {
                line_base[s] = select(positive, vf{}, line_base[s]);
                line_scale[s] = select(positive, sum_xl[s] / sum_l2[s], line_scale[s]);
            }
        }
        vf error[STREAMS];
        affine_error<N, ABSOLUTE, STREAMS>(x, w, levels, line_scale, line_base, error);
        for (int s = 0; s < STREAMS; ++s) {
            const vm better = both(possible[s], lt(error[s], best[s]));
            fit[s].step = select(better, step[s], fit[s].step);
            fit[s].base = select(better, base[s], fit[s].base);
            best[s] = select(better, error[s], best[s]);
            scale[s] = select(better, line_scale[s], scale[s]);
            base[s] = select(better, line_base[s], base[s]);
        }
    }
    for (int s = 0; s < STREAMS; ++s) {
        fit[s].scale = scale[s];
        fit[s].offset = -base[s];
    }
}

// ---- x ~ scale * (level - TOP), level in [0, 2 * TOP): Q3_K, Q6_K ----

struct SymmetricFit {
    vf scale;
    vf step;   // levels = nearest(step * x) within [-TOP, TOP - 1], plus TOP
    vm alive;  // a lane that is not has scale 0 and levels 0 (not TOP)
};

template <int TOP>
LANE_FN vi symmetric_level(const SymmetricFit &fit, vf x) {
    return select(fit.alive, clamp(nearest_int(fit.step * x), -TOP, TOP - 1) + TOP, vi{});
}

// The value of largest magnitude, the first of equals; `alive` where it is not negligible.
template <int N>
LANE_FN vf largest(const vf *x, vm *alive) {
    vf most = {}, value = {};
    for (int i = 0; i < N; ++i) {
        const vf size = absolute(x[i]);
        value = select(gt(size, most), x[i], value);
        most = upper_or(size, most);
    }
    *alive = inverse(lt(most, splat(NEGLIGIBLE)));
    return value;
}

// The sums that TRIES steps give, each in its own order; together to share the loads and hide the latency.
template <int N, int TOP, Rounding HOW, int TRIES>
LANE_FN void symmetric_sums(const vf *x, const vf *w, const vf *wx, const vf *step, vf *sum_xl, vf *sum_l2) {
    vf t_step[TRIES], xl[TRIES] = {}, l2[TRIES] = {};
    for (int t = 0; t < TRIES; ++t) t_step[t] = step[t];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
#pragma GCC unroll 3
        for (int t = 0; t < TRIES; ++t) {
            const vf l = level<-TOP, TOP - 1, HOW>(t_step[t] * x[i]);
            xl[t] += wx[i] * l;
            l2[t] += w[i] * l * l;
        }
    }
    for (int t = 0; t < TRIES; ++t) sum_xl[t] = xl[t], sum_l2[t] = l2[t];
}

// Tries 19 steps around -TOP / largest and keeps the least-squares scale of most explained weight.
// x: [N]; w: [N] weights. FINITE promises that x is: products are then bounded, since the largest is not negligible.
template <int N, int TOP, bool FINITE>
static __attribute__((noinline)) SymmetricFit fit_symmetric(const vf *x, const vf *w) {
    alignas(64) vf wx[N];
    SymmetricFit fit;
    const vf peak = largest<N>(x, &fit.alive);
    const vf longest = -(TOP + 0.1f * 9) / peak;
    vf farthest = {};  // the most that any try asks of a level on the far side of zero from the largest value
    for (int i = 0; i < N; ++i) {
        wx[i] = w[i] * x[i];
        farthest = upper_or(longest * x[i], farthest);
    }
    const bool over = any(both(fit.alive, ge(farthest, splat(TOP - 0.5f))));

    constexpr int TRIES = 3;
    vf step[TRIES], sum_xl[TRIES], sum_l2[TRIES];
    fit.step = float(-TOP) / peak;
    symmetric_sums<N, TOP, FINITE ? BOUNDED : WRAPPED, 1>(x, w, wx, &fit.step, sum_xl, sum_l2);
    fit.scale = select(eq(sum_l2[0], vf{}), vf{}, sum_xl[0] / sum_l2[0]);
    vf best = fit.scale * sum_xl[0];
    for (int k = -9; k <= 9; k += k == -3 ? 4 : TRIES) {  // not 0 again
        for (int t = 0; t < TRIES; ++t) step[t] = -(TOP + 0.1f * (k + t)) / peak;
        // Up to k = 4 not even the largest value rounds below -TOP.
        if constexpr (!FINITE)
            symmetric_sums<N, TOP, WRAPPED, TRIES>(x, w, wx, step, sum_xl, sum_l2);
        else if (k + TRIES - 1 > 4)
            symmetric_sums<N, TOP, BOUNDED, TRIES>(x, w, wx, step, sum_xl, sum_l2);
        else if (over)
            symmetric_sums<N, TOP, CAPPED, TRIES>(x, w, wx, step, sum_xl, sum_l2);
        else
            symmetric_sums<N, TOP, FREE, TRIES>(x, w, wx, step, sum_xl, sum_l2);
        for (int t = 0; t < TRIES; ++t) {
            const vm better = both(gt(sum_l2[t], vf{}), gt(sum_xl[t] * sum_xl[t], best * sum_l2[t]));
            const vf scale = sum_xl[t] / sum_l2[t];
            fit.step = select(better, step[t], fit.step);
            fit.scale = select(better, scale, fit.scale);
            best = select(better, scale * sum_xl[t], best);
        }
    }
    fit.scale = select(fit.alive, fit.scale, vf{});
    return fit;
}

// Q3_K without weights: from one rounding, moves single levels while that explains more, five rounds at most.
// x: [STREAMS][N]. levels: the result, 0..2 * TOP - 1, as floats (0 where the block is negligible). scale: [STREAMS].
template <int N, int TOP, int STREAMS>
static __attribute__((noinline)) void fit_descent(const vf *x, vf *levels, vf *scale) {
    alignas(64) vf w[STREAMS * N], wx[STREAMS * N], wxl[STREAMS * N], wll[STREAMS * N];
    vf sum_xl[STREAMS] = {}, sum_l2[STREAMS] = {};
    vm alive[STREAMS];
    for (int s = 0; s < STREAMS; ++s) {
        const vf step = float(-TOP) / largest<N>(x + s * N, &alive[s]);
        for (int i = s * N; i < (s + 1) * N; ++i) {
            w[i] = x[i] * x[i];
            wx[i] = w[i] * x[i];
            const vf l = level<-TOP, TOP - 1, BOUNDED>(step * x[i]);
            levels[i] = l;
            wxl[i] = wx[i] * l;
            wll[i] = w[i] * l * l;
            sum_xl[s] += wxl[i];
            sum_l2[s] += wll[i];
        }
    }
    for (int round = 0; round < 5; ++round) {
        vm changed = none();
        for (int i = 0; i < N; ++i) {
            vf rest_xl[STREAMS], rest_l2[STREAMS], l[STREAMS];
            vm moves[STREAMS], moved = none();
#pragma GCC unroll 4
            for (int s = 0; s < STREAMS; ++s) {
                const int k = s * N + i;
                rest_xl[s] = sum_xl[s] - wxl[k];
                rest_l2[s] = sum_l2[s] - wll[k];
                l[s] = level<-TOP, TOP - 1, WRAPPED>(x[k] * rest_l2[s] / rest_xl[s]);
                moves[s] = both(gt(rest_xl[s], vf{}), inverse(eq(l[s], levels[k])));
                moved = either(moved, moves[s]);
            }
            if (!any(moved)) continue;
#pragma GCC unroll 4
            for (int s = 0; s < STREAMS; ++s) {
                const int k = s * N + i;
                const vf new_wxl = wx[k] * l[s], new_wll = w[k] * l[s] * l[s];
                const vf new_xl = rest_xl[s] + new_wxl, new_l2 = rest_l2[s] + new_wll;
                const vm better = both(both(moves[s], gt(new_l2, vf{})),
                                       gt(new_xl * new_xl * sum_l2[s], sum_xl[s] * sum_xl[s] * new_l2));
                levels[k] = select(better, l[s], levels[k]);
                wxl[k] = select(better, new_wxl, wxl[k]);
                wll[k] = select(better, new_wll, wll[k]);
                sum_xl[s] = select(better, new_xl, sum_xl[s]);
                sum_l2[s] = select(better, new_l2, sum_l2[s]);
                changed = either(changed, both(better, alive[s]));
            }
        }
        // A lane that stops changing would repeat the same round: no mask is needed to stop it.
        if (!any(changed)) break;
    }
    for (int s = 0; s < STREAMS; ++s) {
        for (int i = s * N; i < (s + 1) * N; ++i) levels[i] = select(alive[s], levels[i] + float(TOP), vf{});
        const vf found = select(gt(sum_l2[s], vf{}), sum_xl[s] / sum_l2[s], vf{});
        scale[s] = select(alive[s], found, vf{});
    }
}

// ---- the scales (or offsets) of a super-block's COUNT sub-blocks as bytes 0..TOP times one factor, by weight ----

// levels: [COUNT], 0..255 (ggml keeps them in bytes: a negative one wraps). Returns the factor.
template <int COUNT, int TOP>
static __attribute__((noinline)) vf fit_scales(const vf *x, const vf *w, vi *levels) {
    const vi top = splat(TOP);
    vf most = {};
    for (int i = 0; i < COUNT; ++i) most = select(gt(most, x[i]), most, x[i]);
    const vm alive = inverse(lt(most, splat(NEGLIGIBLE)));
    vf step = float(TOP) / most, best = {};
    {
        const vf scale = 1.0f / step;
        for (int i = 0; i < COUNT; ++i) {
            const vf off = x[i] - scale * to_float(nearest_int(step * x[i]) & 255);
            best += w[i] * off * off;
        }
    }
    for (int k = -4; k <= 4; ++k) {
        if (k == 0) continue;
        const vf try_step = (0.1f * k + TOP) / most, scale = 1.0f / try_step;
        vf error = {};
        for (int i = 0; i < COUNT; ++i) {
            const vf off = x[i] - scale * to_float(lesser(top, nearest_int(try_step * x[i])));
            error += w[i] * off * off;
        }
        const vm better = lt(error, best);
        best = select(better, error, best);
        step = select(better, try_step, step);
    }
    vf sum_xl = {}, sum_l2 = {};
    for (int i = 0; i < COUNT; ++i) {
        const vi whole = lesser(top, nearest_int(step * x[i]));
        const vf l = to_float(whole);
        levels[i] = whole & 255;
        sum_xl += w[i] * x[i] * l;
        sum_l2 += w[i] * l * l;
    }
    for (int round = 0; round < 5; ++round) {
        vm changed = none();
        for (int i = 0; i < COUNT; ++i) {
            const vf old = to_float(levels[i]), wx = w[i] * x[i];
            const vf rest_xl = sum_xl - wx * old, rest_l2 = sum_l2 - w[i] * old * old;
            const vi whole = lesser(top, nearest_int(x[i] * rest_l2 / rest_xl));
            const vf l = to_float(whole);
            const vf new_xl = rest_xl + wx * l, new_l2 = rest_l2 + w[i] * l * l;
            const vm moves = both(both(gt(rest_xl, vf{}), gt(rest_l2, vf{})), inverse(eq(whole, levels[i])));
            const vm better = both(moves, gt(new_xl * new_xl * sum_l2, sum_xl * sum_xl * new_l2));
            levels[i] = select(better, whole & 255, levels[i]);
            sum_xl = select(better, new_xl, sum_xl);
            sum_l2 = select(better, new_l2, sum_l2);
            changed = either(changed, both(better, alive));
        }
        if (!any(changed)) break;
    }
    for (int i = 0; i < COUNT; ++i) levels[i] = select(alive, levels[i], vi{});
    return select(alive, select(gt(sum_l2, vf{}), sum_xl / sum_l2, vf{}), vf{});
}

}  // namespace kq
}  // namespace JAMBA_VARIANT
}  // namespace quant
