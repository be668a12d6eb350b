// The search for the scale of 32 values on the non-linear four-bit grid, one block per lane.
//
// ggml tries 16 scales and, for each, looks every value up in the grid. Fifteen of them differ by so little (-120/max to
// -134/max) that a value meets at most one boundary between neighbouring levels on the way, since boundaries on one side of
// zero lie at least a factor 1.23 apart. So each value's two possible levels, and what either adds to the ordered sums, are
// found once; a try then costs one product, one comparison and two sums a value, in ggml's order.
#pragma once

#include "blocks32.h"
#include "kq_search.h"

namespace quant {
namespace JAMBA_VARIANT {
namespace iq4 {

constexpr int TRIES = 7;  // to either side

alignas(64) static const float GRID[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
// BOUNDARY[k] separates level k from level k + 1, which begins at it: half of GRID[k] + GRID[k + 1].
alignas(64) static const float BOUNDARY[16] = {-115.5f, -93.5f, -74, -57, -42, -28.5f, -16, -4.5f,
                                               7,       19,     31.5f, 45.5f, 61, 79, 101, 101};
// GRID[k + 1], for k up to 14.
alignas(64) static const float GRID_ABOVE[16] = {-104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113, 113};

// table[index], index 0..15.
LANE_FN vf look_up(const float *table, vi index) {
#if QUANT_LANES == 16
    return (vf)_mm512_permutexvar_ps((__m512i)index, _mm512_load_ps(table));
#elif QUANT_LANES == 8
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_load_ps(table), (__m256i)index);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 8), (__m256i)index);
    return (vf)_mm256_blendv_ps(low, high, (__m256)(index << 28));
#else
    vf out;
    for (int l = 0; l < LANES; ++l) out[l] = table[index[l]];
    return out;
#endif
}

// The nearest level, the upper one of a tie (and for NaN the highest).
LANE_FN vi nearest_level(vf x) {
    vi index = select(lt(x, splat(BOUNDARY[7])), vi{}, splat(8));
    for (int step = 4; step > 0; step /= 2)
        index = select(lt(x, look_up(BOUNDARY, index + (step - 1))), index, index + step);
    return index;
}

// x and w: [32] values and weights. The factor that explains most, 0 for negligible values.
static inline __attribute__((noinline)) vf fit_grid(const vf *x, const vf *w) {
    struct Choice {
        vf boundary, low_x, high_x, low_q, high_q;
    };
    alignas(64) Choice choice[32];
    vf magnitude;
    const vf peak = peak_of(x, &magnitude);

    // The first try maps the largest value to +127, all others to about -127.
    vf sum_x = {}, sum_q = {};
    const vf first = 1.0f / (-peak / -127.0f), nearest = (TRIES - 127.0f) / peak;
    for (int j = 0; j < 32; ++j) {
        const vf q = look_up(GRID, nearest_level(first * x[j]));
        const vf wq = w[j] * q;
        sum_x += wq * x[j];
        sum_q += wq * q;

        const vf scaled = nearest * x[j];
        const vi level = nearest_level(scaled);
        const vi below = clamp(select(lt(scaled, vf{}), level - 1, level), 0, 14);
        const vf low = look_up(GRID, below), high = look_up(GRID_ABOVE, below);
        const vf w_low = w[j] * low, w_high = w[j] * high;
        choice[j] = {look_up(BOUNDARY, below), w_low * x[j], w_high * x[j], w_low * low, w_high * high};
    }
    vf scale = select(gt(sum_q, vf{}), sum_x / sum_q, vf{});
    vf best = scale * sum_x;

    constexpr int GROUP = 3;  // tries that share the loads and hide each other's latency
    static_assert((2 * TRIES + 1) % GROUP == 0);
    for (int t = -TRIES; t <= TRIES; t += GROUP) {
        vf step[GROUP], sx[GROUP] = {}, sq[GROUP] = {};
        for (int g = 0; g < GROUP; ++g) step[g] = (float)(t + g - 127) / peak;
        for (int j = 0; j < 32; ++j) {
            const Choice &c = choice[j];
#pragma GCC unroll 3
            for (int g = 0; g < GROUP; ++g) {
                const vm low = lt(step[g] * x[j], c.boundary);
                sx[g] += select(low, c.low_x, c.high_x);
                sq[g] += select(low, c.low_q, c.high_q);
            }
        }
        for (int g = 0; g < GROUP; ++g) {
            const vm better = both(gt(sq[g], vf{}), gt(sx[g] * sx[g], best * sq[g]));
            const vf found = sx[g] / sq[g];
            scale = select(better, found, scale);
            best = select(better, found * sx[g], best);
        }
    }
    return select(lt(magnitude, splat(kq::NEGLIGIBLE)), vf{}, scale);
}

// w[j] for an imatrix or, without one, the square of the value.
LANE_FN void weights(const vf *x, const vf *importance, vf spread, vf *w) {
    if (importance) return weigh(x, importance, spread, w);
    for (int j = 0; j < 32; ++j) w[j] = x[j] * x[j];
}

LANE_FN vf reciprocal_or_zero(vf d) { return select(eq(d, vf{}), vf{}, 1.0f / d); }

}  // namespace iq4
}  // namespace JAMBA_VARIANT
}  // namespace quant
