// Sixteen levels at a time, from bytes to scaled values.
#pragma once

#include "lanes.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace quant {
namespace JAMBA_VARIANT {

typedef int8_t Bytes16 __attribute__((vector_size(16)));

LANE_FN Bytes16 load_bytes(const void *p) {
    Bytes16 b;
    std::memcpy(&b, p, 16);
    return b;
}

LANE_FN Bytes16 low_nibbles(Bytes16 b) { return b & 15; }
LANE_FN Bytes16 high_nibbles(Bytes16 b) { return (b >> 4) & 15; }

// Byte i is table[index[i]], index 0..15.
LANE_FN Bytes16 look_up_bytes(Bytes16 table, Bytes16 index) {
#if defined(__SSSE3__)
    return (Bytes16)_mm_shuffle_epi8((__m128i)table, (__m128i)index);
#elif defined(__aarch64__)
    return (Bytes16)vqtbl1q_s8((int8x16_t)table, (uint8x16_t)index);
#else
    Bytes16 out;
    for (int i = 0; i < 16; ++i) out[i] = table[index[i]];
    return out;
#endif
}

// Byte i is 16 where bit i is set, else 0.
LANE_FN Bytes16 sixteens(uint32_t set) {
    const Bytes16 bit = {1, 2, 4, 8, 16, 32, 64, -128, 1, 2, 4, 8, 16, 32, 64, -128};
    const int8_t low = (int8_t)set, high = (int8_t)(set >> 8);
    const Bytes16 spread = {low, low, low, low, low, low, low, low, high, high, high, high, high, high, high, high};
    return ((spread & bit) == bit) & 16;
}

// dst[i] = q[i] * d
LANE_FN void store_scaled(Bytes16 q, float d, float *dst) {
#if QUANT_LANES == 16
    store(dst, to_float((vi)_mm512_cvtepi8_epi32((__m128i)q)) * d);
#elif QUANT_LANES == 8
    store(dst, to_float((vi)_mm256_cvtepi8_epi32((__m128i)q)) * d);
    store(dst + 8, to_float((vi)_mm256_cvtepi8_epi32(_mm_srli_si128((__m128i)q, 8))) * d);
#else
    for (int i = 0; i < 16; ++i) dst[i] = (float)q[i] * d;
#endif
}

// dst[i] = q[i] * d + low
LANE_FN void store_affine(Bytes16 q, float d, float low, float *dst) {
#if QUANT_LANES == 16
    store(dst, to_float((vi)_mm512_cvtepi8_epi32((__m128i)q)) * d + low);
#elif QUANT_LANES == 8
    store(dst, to_float((vi)_mm256_cvtepi8_epi32((__m128i)q)) * d + low);
    store(dst + 8, to_float((vi)_mm256_cvtepi8_epi32(_mm_srli_si128((__m128i)q, 8))) * d + low);
#else
    for (int i = 0; i < 16; ++i) dst[i] = (float)q[i] * d + low;
#endif
}

}  // namespace JAMBA_VARIANT
}  // namespace quant
