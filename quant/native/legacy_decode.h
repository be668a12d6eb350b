// Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 back to values; knows nothing of threads or files.
// Loops over one block that the compiler turns into vectors: a multiply and an add a value, in the order written.
#pragma once

#include "lanes.h"
#include "quant.h"

namespace quant {
namespace QUANT_ISA {
namespace legacy {

LANE_FN float half_at(const uint8_t *p) {
    uint16_t h;
    std::memcpy(&h, p, 2);
    return from_half(splat((int32_t)h))[0];
}

static void decode_q8_0(const uint8_t *src, int64_t rows, int64_t n, float *dst) {
    for (int64_t b = 0; b < rows * n / 32; ++b, src += 34, dst += 32) {
        const float d = half_at(src);
        for (int j = 0; j < 32; ++j) dst[j] = (float)(int8_t)src[2 + j] * d;
    }
}

static void decode_q4_0(const uint8_t *src, int64_t rows, int64_t n, float *dst) {
    for (int64_t b = 0; b < rows * n / 32; ++b, src += 18, dst += 32) {
        const float d = half_at(src);
        for (int j = 0; j < 16; ++j) {
            dst[j] = (float)((src[2 + j] & 15) - 8) * d;
            dst[j + 16] = (float)((src[2 + j] >> 4) - 8) * d;
        }
    }
}

static void decode_q4_1(const uint8_t *src, int64_t rows, int64_t n, float *dst) {
    for (int64_t b = 0; b < rows * n / 32; ++b, src += 20, dst += 32) {
        const float d = half_at(src), low = half_at(src + 2);
        for (int j = 0; j < 16; ++j) {
            dst[j] = (float)(src[4 + j] & 15) * d + low;
            dst[j + 16] = (float)(src[4 + j] >> 4) * d + low;
        }
    }
}

static void decode_q5_0(const uint8_t *src, int64_t rows, int64_t n, float *dst) {
    for (int64_t b = 0; b < rows * n / 32; ++b, src += 22, dst += 32) {
        const float d = half_at(src);
        uint32_t high;
        std::memcpy(&high, src + 2, 4);
        for (int j = 0; j < 16; ++j) {
            dst[j] = (float)((int)((src[6 + j] & 15) | ((high >> j) & 1) << 4) - 16) * d;
            dst[j + 16] = (float)((int)((src[6 + j] >> 4) | ((high >> (j + 16)) & 1) << 4) - 16) * d;
        }
    }
}

static void decode_q5_1(const uint8_t *src, int64_t rows, int64_t n, float *dst) {
    for (int64_t b = 0; b < rows * n / 32; ++b, src += 24, dst += 32) {
        const float d = half_at(src), low = half_at(src + 2);
        uint32_t high;
        std::memcpy(&high, src + 4, 4);
        for (int j = 0; j < 16; ++j) {
            dst[j] = (float)(int)((src[8 + j] & 15) | ((high >> j) & 1) << 4) * d + low;
            dst[j + 16] = (float)(int)((src[8 + j] >> 4) | ((high >> (j + 16)) & 1) << 4) * d + low;
        }
    }
}

}  // namespace legacy
}  // namespace QUANT_ISA
}  // namespace quant
