// The block formats as these kernels read them: GGML type ids, bytes per block, and scalar float conversions. Knows
// nothing of any instruction set. Sizes and layouts are those of the GGUF specification.
#pragma once

#include <string.h>

#include "kernels.h"

namespace jamba {

enum Type : int32_t {
    kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8, kQ2_K = 10, kQ3_K = 11, kQ4_K = 12,
    kQ5_K = 13, kQ6_K = 14, kIQ4_NL = 20, kIQ4_XS = 23, kI8 = 24, kBF16 = 30, kTypes = 31
};

struct TypeInfo {
    int values;  // per block; 0: not a type of these kernels
    int bytes;
};

static inline TypeInfo type_info(int32_t type) {
    switch (type) {
        case kF32: return {1, 4};
        case kF16: case kBF16: return {1, 2};
        case kI8: return {1, 1};
        case kQ4_0: case kIQ4_NL: return {32, 18};
        case kQ4_1: return {32, 20};
        case kQ5_0: return {32, 22};
        case kQ5_1: return {32, 24};
        case kQ8_0: return {32, 34};
        case kQ2_K: return {256, 84};
        case kQ3_K: return {256, 110};
        case kQ4_K: return {256, 144};
        case kQ5_K: return {256, 176};
        case kQ6_K: return {256, 210};
        case kIQ4_XS: return {256, 136};
        default: return {0, 0};
    }
}

// Float weights multiply float activations; all others multiply activations quantized to int8.
static inline bool is_float_type(int32_t type) { return type == kF32 || type == kF16 || type == kBF16; }

// The sixteen values of the IQ4 formats' codes.
alignas(16) constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

static inline uint16_t read_u16(const uint8_t* p) {
    uint16_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline uint32_t read_u32(const uint8_t* p) {
    uint32_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline uint64_t read_u64(const uint8_t* p) {
    uint64_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline float half_to_float(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
    const uint32_t exponent = (h >> 10) & 31u, mantissa = h & 1023u;
    uint32_t bits;
    if (exponent == 31)
        bits = sign | 0x7f800000u | (mantissa << 13);
    else if (exponent)
        bits = sign | ((exponent + 112u) << 23) | (mantissa << 13);
    else {  // zero or subnormal: mantissa * 2^-24, exact in a float
        const float value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
        memcpy(&bits, &value, sizeof bits);
        bits |= sign;
    }
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

// Round to nearest even; overflow goes to infinity, NaN stays NaN.
static inline uint16_t float_to_half(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    bits &= 0x7fffffffu;
    if (bits >= 0x7f800000u) return static_cast<uint16_t>(sign | 0x7c00u | (bits > 0x7f800000u ? 0x200u : 0u));
    if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
    if (bits < 0x38800000u) {  // below the normal halves: adding 0.5 leaves value * 2^24 in the low mantissa bits, rounded
        float value;
        memcpy(&value, &bits, sizeof value);
        value += 0.5f;
        memcpy(&bits, &value, sizeof bits);
        return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
    }
    bits += 0xfffu + ((bits >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((bits - 0x38000000u) >> 13));
}

static inline float bf16_to_float(uint16_t h) {
    const uint32_t bits = static_cast<uint32_t>(h) << 16;
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

static inline uint16_t float_to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace jamba
