// Unpacking of 256 values of each block format into sixteen NEON registers of int8, in the order of the values, and the scales
// of groups of kGroup values. The value is scale * w, less offset where the format has minimums. Include only from files
// compiled for neon or i8mm.
#pragma once

#include <arm_neon.h>

#include "base/formats.h"

namespace jamba {
namespace {

struct Factors {
    float scale[16], offset[16];  // of groups: only the first 256 / kGroup of each
};

inline float to_float(const Half& half) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(read_u16(&half)))), 0);
}

// Bits of each byte: its low four, its high four, `count` (2) ones from `shift` on.
inline uint8x16_t low_nibbles(uint8x16_t x) { return vandq_u8(x, vdupq_n_u8(15)); }
inline uint8x16_t high_nibbles(uint8x16_t x) { return vshrq_n_u8(x, 4); }
inline uint8x16_t two_bits(uint8x16_t x, int shift) { return vandq_u8(vshlq_u8(x, vdupq_n_s8(static_cast<int8_t>(-shift))), vdupq_n_u8(3)); }
inline uint8x16_t one_bit(uint8x16_t x, int shift) { return vandq_u8(vshlq_u8(x, vdupq_n_s8(static_cast<int8_t>(-shift))), vdupq_n_u8(1)); }
inline int8x16_t less(uint8x16_t x, int by) { return vsubq_s8(vreinterpretq_s8_u8(x), vdupq_n_s8(static_cast<int8_t>(by))); }

// Sixteen bits to bytes of 0 or 16.
inline uint8x16_t spread_bits(uint32_t bits) {
    const uint8x16_t each = vcombine_u8(vcreate_u8(0x8040201008040201u), vcreate_u8(0x8040201008040201u));
    const uint8x16_t both = vcombine_u8(vdup_n_u8(static_cast<uint8_t>(bits)), vdup_n_u8(static_cast<uint8_t>(bits >> 8)));
    return vandq_u8(vtstq_u8(both, each), vdupq_n_u8(16));
}

// A format of blocks of 32 values. One::values(block, w) writes two registers, One::factors(block, scale, offset) the factors.
template <class B, class One, bool kHasOffset>
struct Of32 : Of256<B> {
    using Block = B;
    static constexpr int kGroup = 32;
    static constexpr bool kOffset = kHasOffset;
    static inline void weights(const Block* b, int8x16_t* w) {
        for (int k = 0; k < 8; ++k) One::values(b[k], w + 2 * k);
    }
    static inline void factors(const Block* b, Factors& f) {
        for (int k = 0; k < 8; ++k) One::factors(b[k], f.scale[k], f.offset[k]);
    }
};

inline void nibbles(const uint8_t* p, int minus, int8x16_t* w) {
    const uint8x16_t x = vld1q_u8(p);
    w[0] = less(low_nibbles(x), minus);
    w[1] = less(high_nibbles(x), minus);
}

inline void five_bits(const uint8_t* p, uint32_t high, int minus, int8x16_t* w) {
    const uint8x16_t x = vld1q_u8(p);
    w[0] = less(vorrq_u8(low_nibbles(x), spread_bits(high)), minus);
    w[1] = less(vorrq_u8(high_nibbles(x), spread_bits(high >> 16)), minus);
}

inline void iq4_values(const uint8_t* p, int8x16_t* w) {
    const uint8x16_t x = vld1q_u8(p);
    const int8x16_t values = vld1q_s8(kIq4Values);
    w[0] = vqtbl1q_s8(values, low_nibbles(x));
    w[1] = vqtbl1q_s8(values, high_nibbles(x));
}

template <class Block>
inline void scale_only(const Block& b, float& scale, float& offset) {
    scale = to_float(b.d);
    offset = 0.0f;
}

template <class Block>
inline void scale_and_minimum(const Block& b, float& scale, float& offset) {
    scale = to_float(b.d);
    offset = -to_float(b.m);
}

struct OneQ4_0 {
    static inline void values(const block_q4_0& b, int8x16_t* w) { nibbles(b.qs, 8, w); }
    static inline void factors(const block_q4_0& b, float& scale, float& offset) { scale_only(b, scale, offset); }
};
struct OneQ4_1 {
    static inline void values(const block_q4_1& b, int8x16_t* w) { nibbles(b.qs, 0, w); }
    static inline void factors(const block_q4_1& b, float& scale, float& offset) { scale_and_minimum(b, scale, offset); }
};
struct OneQ5_0 {
    static inline void values(const block_q5_0& b, int8x16_t* w) { five_bits(b.qs, read_u32(b.qh), 16, w); }
    static inline void factors(const block_q5_0& b, float& scale, float& offset) { scale_only(b, scale, offset); }
};
struct OneQ5_1 {
    static inline void values(const block_q5_1& b, int8x16_t* w) { five_bits(b.qs, read_u32(b.qh), 0, w); }
    static inline void factors(const block_q5_1& b, float& scale, float& offset) { scale_and_minimum(b, scale, offset); }
};
struct OneQ8_0 {
    static inline void values(const block_q8_0& b, int8x16_t* w) { w[0] = vld1q_s8(b.qs), w[1] = vld1q_s8(b.qs + 16); }
    static inline void factors(const block_q8_0& b, float& scale, float& offset) { scale_only(b, scale, offset); }
};
struct OneIQ4_NL {
    static inline void values(const block_iq4_nl& b, int8x16_t* w) { iq4_values(b.qs, w); }
    static inline void factors(const block_iq4_nl& b, float& scale, float& offset) { scale_only(b, scale, offset); }
};

using Q4_0 = Of32<block_q4_0, OneQ4_0, false>;
using Q4_1 = Of32<block_q4_1, OneQ4_1, true>;
using Q5_0 = Of32<block_q5_0, OneQ5_0, false>;
using Q5_1 = Of32<block_q5_1, OneQ5_1, true>;
using Q8_0 = Of32<block_q8_0, OneQ8_0, false>;
using IQ4_NL = Of32<block_iq4_nl, OneIQ4_NL, false>;

struct I8 : Of256<block_i8> {
    static constexpr int kGroup = 32;
    static constexpr bool kOffset = false;
    static inline void weights(const Block* b, int8x16_t* w) {
        for (int k = 0; k < 16; ++k) w[k] = vld1q_s8(&b[16 * k].q);
    }
    static inline void factors(const Block*, Factors& f) {
        for (int k = 0; k < 8; ++k) f.scale[k] = 1.0f;
    }
};

struct IQ4_XS : Of256<block_iq4_xs> {
    static constexpr int kGroup = 32;
    static constexpr bool kOffset = false;
    static inline void weights(const Block* b, int8x16_t* w) {
        for (int k = 0; k < 8; ++k) iq4_values(b->qs + 16 * k, w + 2 * k);
    }
    static inline void factors(const Block* b, Factors& f) {
        const float d = to_float(b->d);
        for (int k = 0; k < 8; ++k) f.scale[k] = d * static_cast<float>(iq4_xs_scale(*b, k));
    }
};

template <class Block>
inline void k_factors(const Block& b, Factors& f) {
    const float d = to_float(b.d), dmin = to_float(b.dmin);
    for (int k = 0; k < 8; ++k) {
        int scale, minimum;
        k_scale_and_minimum(b.scales, k, scale, minimum);
        f.scale[k] = d * static_cast<float>(scale);
        f.offset[k] = dmin * static_cast<float>(minimum);
    }
}

struct Q4_K : Of256<block_q4_k> {
    static constexpr int kGroup = 32;
    static constexpr bool kOffset = true;
    static inline void weights(const Block* b, int8x16_t* w) {
        for (int c = 0; c < 4; ++c)
            for (int h = 0; h < 2; ++h) {
                const uint8x16_t x = vld1q_u8(b->qs + 32 * c + 16 * h);
                w[4 * c + h] = less(low_nibbles(x), 0);
                w[4 * c + 2 + h] = less(high_nibbles(x), 0);
            }
    }
    static inline void factors(const Block* b, Factors& f) { k_factors(*b, f); }
};

struct Q5_K : Of256<block_q5_k> {
    static constexpr int kGroup = 32;
    static constexpr bool kOffset = true;
    static inline void weights(const Block* b, int8x16_t* w) {
        const uint8x16_t high[2] = {vld1q_u8(b->qh), vld1q_u8(b->qh + 16)};
        for (int c = 0; c < 4; ++c)
            for (int h = 0; h < 2; ++h) {
                const uint8x16_t x = vld1q_u8(b->qs + 32 * c + 16 * h);
                w[4 * c + h] = less(vorrq_u8(low_nibbles(x), vshlq_n_u8(one_bit(high[h], 2 * c), 4)), 0);
                w[4 * c + 2 + h] = less(vorrq_u8(high_nibbles(x), vshlq_n_u8(one_bit(high[h], 2 * c + 1), 4)), 0);
            }
    }
    static inline void factors(const Block* b, Factors& f) { k_factors(*b, f); }
};

struct Q6_K : Of256<block_q6_k> {
    static constexpr int kGroup = 16;
    static constexpr bool kOffset = false;
    static inline void weights(const Block* b, int8x16_t* w) {
        for (int half = 0; half < 2; ++half)
            for (int h = 0; h < 2; ++h) {
                const uint8x16_t first = vld1q_u8(b->ql + 64 * half + 16 * h), second = vld1q_u8(b->ql + 64 * half + 32 + 16 * h);
                const uint8x16_t high = vld1q_u8(b->qh + 32 * half + 16 * h);
                int8x16_t* to = w + 8 * half + h;
                to[0] = less(vorrq_u8(low_nibbles(first), vshlq_n_u8(two_bits(high, 0), 4)), 32);
                to[2] = less(vorrq_u8(low_nibbles(second), vshlq_n_u8(two_bits(high, 2), 4)), 32);
                to[4] = less(vorrq_u8(high_nibbles(first), vshlq_n_u8(two_bits(high, 4), 4)), 32);
                to[6] = less(vorrq_u8(high_nibbles(second), vshlq_n_u8(two_bits(high, 6), 4)), 32);
            }
    }
    static inline void factors(const Block* b, Factors& f) {
        const float d = to_float(b->d);
        for (int k = 0; k < 16; ++k) f.scale[k] = d * static_cast<float>(b->scales[k]);
    }
};

struct Q3_K : Of256<block_q3_k> {
    static constexpr int kGroup = 16;
    static constexpr bool kOffset = false;
    static inline void weights(const Block* b, int8x16_t* w) {
        for (int h = 0; h < 2; ++h) {
            const uint8x16_t high = vld1q_u8(b->hmask + 16 * h);
            for (int c = 0; c < 8; ++c) {
                const uint8x16_t low = two_bits(vld1q_u8(b->qs + 32 * (c / 4) + 16 * h), 2 * (c % 4));
                w[2 * c + h] = less(vorrq_u8(low, vshlq_n_u8(one_bit(high, c), 2)), 4);
            }
        }
    }
    static inline void factors(const Block* b, Factors& f) {
        const float d = to_float(b->d);
        for (int k = 0; k < 16; ++k) f.scale[k] = d * static_cast<float>(q3_scale(b->scales, k));
    }
};

struct Q2_K : Of256<block_q2_k> {
    static constexpr int kGroup = 16;
    static constexpr bool kOffset = true;
    static inline void weights(const Block* b, int8x16_t* w) {
        for (int c = 0; c < 8; ++c)
            for (int h = 0; h < 2; ++h)
                w[2 * c + h] = less(two_bits(vld1q_u8(b->qs + 32 * (c / 4) + 16 * h), 2 * (c % 4)), 0);
    }
    static inline void factors(const Block* b, Factors& f) {
        const float d = to_float(b->d), dmin = to_float(b->dmin);
        for (int k = 0; k < 16; ++k) {
            f.scale[k] = d * static_cast<float>(b->scales[k] & 15);
            f.offset[k] = dmin * static_cast<float>(b->scales[k] >> 4);
        }
    }
};

}  // namespace
}  // namespace jamba
