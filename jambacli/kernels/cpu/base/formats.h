// The stored formats as these kernels read them: the blocks of quant/native/block_formats.h, and scalar float conversions.
#pragma once

#include "base/abi.h"
#include "quant/native/block_formats.h"

namespace jamba {

// Float weights multiply float activations; all others multiply activations quantized to int8.
static inline bool is_float_type(int32_t type) { return type == kF32 || type == kF16 || type == kBF16; }

// The middle level of blocks of 32 values with a minimum, whose values may have a mean far from zero; else 0.
template <class B>
constexpr float kMiddleLevel = 0.0f;
template <>
inline constexpr float kMiddleLevel<block_q4_1> = 8.0f;
template <>
inline constexpr float kMiddleLevel<block_q5_1> = 16.0f;

// Whether keys and values of this type are blocks of 32 values of a head.
static inline bool is_block_kv(int32_t type) { return type == kQ8_0 || type == kQ5_1 || type == kQ4_0; }
// Whether they are stored rotated: see base/rotate.h.
static inline bool is_rotated_kv(int32_t type) { return type == kQ5_1 || type == kQ4_0; }
static inline bool is_kv_type(int32_t type) { return is_float_type(type) || is_block_kv(type); }

// Bytes of a row of n stored values.
static inline int64_t kv_bytes(int32_t type, int64_t n) {
    const auto blocks = [n](size_t bytes) { return n / 32 * static_cast<int64_t>(bytes); };
    switch (type) {
        case kQ8_0: return blocks(sizeof(block_q8_0));
        case kQ5_1: return blocks(sizeof(block_q5_1));
        case kQ4_0: return blocks(sizeof(block_q4_0));
        default: return type == kF32 ? 4 * n : 2 * n;
    }
}

// What kernels handle at a time: 256 values, one super-block or eight blocks of 32. A base of the formats' descriptions.
template <class B>
struct Of256 {
    using Block = B;
    static constexpr int kBytes = 256 / Block::kValues * static_cast<int>(sizeof(Block));
    static constexpr float kMiddle = kMiddleLevel<B>;
};

// kOk, or why the kernels cannot multiply this matrix.
static inline Status check_matrix(const Matrix& w) {
    const TypeInfo info = type_info(w.type);
    if (!info.values) return kBadType;
    if (w.rows <= 0 || w.cols <= 0 || w.cols % info.values || w.row_bytes != w.cols / info.values * info.bytes)
        return kBadShape;
    if (!w.data || (w.type == kI8) != (w.scale != nullptr)) return kBadShape;
    for (int32_t i = 0; i < w.n_low; ++i)
        if (w.low[i].rank <= 0 || w.low[i].b_stride < w.rows || w.low[i].b_stride % 32) return kBadShape;
    return kOk;
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
