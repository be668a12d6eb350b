// Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 back to values; knows nothing of threads or files.
#pragma once

#include "bytes16.h"
#include "quant.h"

namespace quant {
namespace QUANT_ISA {
namespace legacy {

static void decode_q8_0(const uint8_t *src, int64_t rows, int64_t n, float *dst) {
    for (int64_t b = 0; b < rows * n / 32; ++b, src += 34, dst += 32) {
        const float d = half_at(src);
        store_scaled(load_bytes(src + 2), d, dst);
        store_scaled(load_bytes(src + 18), d, dst + 16);
    }
}

static void decode_q4_0(const uint8_t *src, int64_t rows, int64_t n, float *dst) {
    for (int64_t b = 0; b < rows * n / 32; ++b, src += 18, dst += 32) {
        const float d = half_at(src);
        const Bytes16 pairs = load_bytes(src + 2);
        store_scaled(low_nibbles(pairs) - 8, d, dst);
        store_scaled(high_nibbles(pairs) - 8, d, dst + 16);
    }
}

static void decode_q4_1(const uint8_t *src, int64_t rows, int64_t n, float *dst) {
    for (int64_t b = 0; b < rows * n / 32; ++b, src += 20, dst += 32) {
        const float d = half_at(src), low = half_at(src + 2);
        const Bytes16 pairs = load_bytes(src + 4);
        store_affine(low_nibbles(pairs), d, low, dst);
        store_affine(high_nibbles(pairs), d, low, dst + 16);
    }
}

static void decode_q5_0(const uint8_t *src, int64_t rows, int64_t n, float *dst) {
    for (int64_t b = 0; b < rows * n / 32; ++b, src += 22, dst += 32) {
        const float d = half_at(src);
        uint32_t fifth;
        std::memcpy(&fifth, src + 2, 4);
        const Bytes16 pairs = load_bytes(src + 6);
        store_scaled((low_nibbles(pairs) | sixteens(fifth)) - 16, d, dst);
        store_scaled((high_nibbles(pairs) | sixteens(fifth >> 16)) - 16, d, dst + 16);
    }
}

static void decode_q5_1(const uint8_t *src, int64_t rows, int64_t n, float *dst) {
    for (int64_t b = 0; b < rows * n / 32; ++b, src += 24, dst += 32) {
        const float d = half_at(src), low = half_at(src + 2);
        uint32_t fifth;
        std::memcpy(&fifth, src + 4, 4);
        const Bytes16 pairs = load_bytes(src + 8);
        store_affine(low_nibbles(pairs) | sixteens(fifth), d, low, dst);
        store_affine(high_nibbles(pairs) | sixteens(fifth >> 16), d, low, dst + 16);
    }
}

}  // namespace legacy
}  // namespace QUANT_ISA
}  // namespace quant
