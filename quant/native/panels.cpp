// Panels of floats: the check for NaN and infinity, the conversion from and to f16 and bf16.
#include "lanes.h"
#include "quant.h"
#include "rowwise.h"

namespace quant {
namespace JAMBA_VARIANT {
namespace panels {

typedef uint16_t vh __attribute__((vector_size(2 * QUANT_LANES)));

// Runs op over whole vectors, then once more over a zero-padded copy of what is left.
#define QUANT_PANEL(SRC_T, DST_T, EXPR)                                             \
    int64_t i = 0;                                                                  \
    for (; i + LANES <= count; i += LANES) {                                        \
        SRC_T v;                                                                    \
        std::memcpy(&v, src + i, sizeof v);                                         \
        DST_T w = EXPR(v);                                                          \
        std::memcpy(dst + i, &w, sizeof w);                                         \
    }                                                                               \
    if (i < count) {                                                                \
        SRC_T v = {};                                                               \
        std::memcpy(&v, src + i, (size_t)(count - i) * sizeof *src);                \
        DST_T w = EXPR(v);                                                          \
        std::memcpy(dst + i, &w, (size_t)(count - i) * sizeof *dst);                \
    }

LANE_FN vf half_to_float(vh h) { return from_half(__builtin_convertvector(h, vi)); }
LANE_FN vf bfloat_to_float(vh h) { return unbits(__builtin_convertvector(h, vi) << 16); }
LANE_FN vh float_to_half(vf x) { return __builtin_convertvector(to_half(x), vh); }
// Round to nearest even on the bits, NaN kept and made quiet: ggml's own rule.
LANE_FN vh float_to_bfloat(vf x) {
    const vu u = (vu)bits(x);
    const vi rounded = (vi)((u + (0x7fff + ((u >> 16) & 1))) >> 16);
    const vi quiet = (vi)((u >> 16) | 64);
    return __builtin_convertvector(select(gt(bits(absolute(x)), splat(0x7f800000)), quiet, rounded), vh);
}

static void widen_f16(const uint16_t *src, int64_t count, float *dst) { QUANT_PANEL(vh, vf, half_to_float) }
static void widen_bf16(const uint16_t *src, int64_t count, float *dst) { QUANT_PANEL(vh, vf, bfloat_to_float) }
static void narrow_f16(const float *src, int64_t count, uint16_t *dst) { QUANT_PANEL(vf, vh, float_to_half) }
static void narrow_bf16(const float *src, int64_t count, uint16_t *dst) { QUANT_PANEL(vf, vh, float_to_bfloat) }

static bool all_finite(const float *src, int64_t count) {
    const int32_t infinity = 0x7f800000;
    vi largest[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES)
        for (int k = 0; k < 4; ++k)
            largest[k] = greater(largest[k], bits(absolute(load(src + i + k * LANES))));
    for (; i < count; i += LANES) {
        vf v = {};
        std::memcpy(&v, src + i, (size_t)(count - i < LANES ? count - i : LANES) * sizeof *src);
        largest[0] = greater(largest[0], bits(absolute(v)));
    }
    for (int k = 1; k < 4; ++k) largest[0] = greater(largest[0], largest[k]);
    bool finite = true;
    for (int l = 0; l < LANES; ++l) finite &= largest[0][l] < infinity;
    return finite;
}

}  // namespace panels

const PanelOps panel_ops = {
    panels::widen_f16,   panels::widen_bf16, panels::narrow_f16,
    panels::narrow_bf16, panels::all_finite, panels::rowwise_int8,
};

}  // namespace JAMBA_VARIANT
}  // namespace quant
