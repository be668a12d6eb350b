// Rows of ExpertsInt8: signed bytes and one factor per row.
#pragma once

#include "lanes.h"
#include "quant.h"

namespace quant {
namespace JAMBA_VARIANT {
namespace panels {

constexpr float SMALLEST_NORMAL = 1.17549435e-38f;

// The steps of quant/experts_int8.py, which says why: the largest magnitude over 127, never subnormal, 1 for a row of zeros.
static void rowwise_int8(const float *x, int64_t rows, int64_t n, int8_t *levels, float *scale) {
    typedef int8_t vb __attribute__((vector_size(QUANT_LANES)));
    for (int64_t r = 0; r < rows; ++r, x += n, levels += n) {
        vi most_bits = {};
        int64_t j = 0;
        for (; j + LANES <= n; j += LANES) most_bits = greater(most_bits, bits(absolute(load(x + j))));
        float most = 0.0f;
        const vf most_lanes = unbits(most_bits);
        for (int l = 0; l < LANES; ++l) most = most_lanes[l] > most ? most_lanes[l] : most;
        for (; j < n; ++j) most = __builtin_fabsf(x[j]) > most ? __builtin_fabsf(x[j]) : most;

        float step = most / 127.0f;
        step = step < SMALLEST_NORMAL ? SMALLEST_NORMAL : step;
        scale[r] = step = most == 0.0f ? 1.0f : step;
        for (j = 0; j < n; j += LANES) {
            vf v = {};
            const bool whole = j + LANES <= n;
            const size_t count = whole ? LANES : (size_t)(n - j);
            if (whole) {
                v = load(x + j);
            } else {
                std::memcpy(&v, x + j, count * sizeof *x);
            }
            const vb level = __builtin_convertvector(clamp(nearest_int(v / step), -127, 127), vb);
            if (whole) {
                std::memcpy(levels + j, &level, sizeof level);
            } else {
                std::memcpy(levels + j, &level, count);
            }
        }
    }
}

}  // namespace panels
}  // namespace JAMBA_VARIANT
}  // namespace quant
