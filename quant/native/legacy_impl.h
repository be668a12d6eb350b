// Q8_0: one block of 32 per vector step; knows nothing of threads.
#include "lanes.h"
#include "quant.h"

namespace quant {
namespace QUANT_ISA {
namespace legacy {

LANE_FN void put_half(uint8_t *p, float x) {
    const uint16_t h = (uint16_t)to_half(splat(x))[0];
    std::memcpy(p, &h, 2);
}
LANE_FN float get_half(const uint8_t *p) {
    uint16_t h;
    std::memcpy(&h, p, 2);
    return from_half(splat((int32_t)h))[0];
}

static void encode_q8_0(const float *x, int64_t rows, int64_t n, const float *, uint8_t *dst) {
    for (int64_t b = 0; b < rows * n / 32; ++b, x += 32, dst += 34) {
        float top = 0.0f;
        for (int j = 0; j < 32; ++j) {
            const float a = __builtin_fabsf(x[j]);
            top = a > top ? a : top;
        }
        const float d = top / 127.0f;
        const float inverse_d = d != 0.0f ? 1.0f / d : 0.0f;
        put_half(dst, d);
        for (int j = 0; j < 32; j += LANES) {
            const vi q = round_away(load(x + j) * inverse_d);
            for (int l = 0; l < LANES; ++l) dst[2 + j + l] = (uint8_t)q[l];
        }
    }
}

static void decode_q8_0(const uint8_t *src, int64_t rows, int64_t n, float *dst) {
    for (int64_t b = 0; b < rows * n / 32; ++b, src += 34, dst += 32) {
        const float d = get_half(src);
        for (int j = 0; j < 32; ++j) dst[j] = (float)(int8_t)src[2 + j] * d;
    }
}

}  // namespace legacy
}  // namespace QUANT_ISA
}  // namespace quant
