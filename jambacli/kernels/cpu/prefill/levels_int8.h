// Blocks of every format as bytes and scales, 32 values at a time, for products of int8. Include only from files compiled
// for AVX2 or more.
//
// Each format has: kGroup, the values that share a scale (32 or 16); kMinimum, whether the value is scale * level - offset
// (else it is scale * (level - kBias)); kMost, the largest level, or 255 where levels are signed bytes. chunk() writes
// chunk c of a block: 32 levels, and the scales and offsets of its one or two groups.
#pragma once

#include <immintrin.h>

#include "base/formats.h"

namespace jamba {
namespace {

struct Scales {
    float scale[2], offset[2];
};

inline float to_float(const Half& half) { return _cvtsh_ss(read_u16(&half)); }
inline __m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline void store32(void* p, __m256i x) { _mm256_store_si256(static_cast<__m256i*>(p), x); }

// (x >> shift) & mask of each byte.
inline __m256i bits(__m256i x, int shift, int mask) {
    return _mm256_and_si256(_mm256_srl_epi16(x, _mm_cvtsi32_si128(shift)), _mm256_set1_epi8(static_cast<char>(mask)));
}

// 16 bytes of two nibbles each: the low ones, then the high ones.
inline __m256i nibbles(const uint8_t* p) {
    const __m128i x = load16(p);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(x, 4), x), _mm256_set1_epi8(15));
}

// 16 where the bit of a byte is set, else 0.
inline __m256i fifth_bits(const uint8_t* p) {
    const __m256i order = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i each = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
    const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(read_u32(p))), order);
    return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(spread, each), each), _mm256_set1_epi8(16));
}

inline __m256i iq4_values(const uint8_t* p) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load16(kIq4Values)), nibbles(p));
}

struct Q4_0 {
    using Block = block_q4_0;
    static constexpr int kGroup = 32, kBias = 8, kMost = 15;
    static constexpr bool kMinimum = false;
    static inline void chunk(const Block& b, int, uint8_t* y, Scales& s) {
        store32(y, nibbles(b.qs));
        s.scale[0] = to_float(b.d);
    }
};

struct Q4_1 {
    using Block = block_q4_1;
    static constexpr int kGroup = 32, kBias = 0, kMost = 15;
    static constexpr bool kMinimum = true;
    static inline void chunk(const Block& b, int, uint8_t* y, Scales& s) {
        store32(y, nibbles(b.qs));
        s.scale[0] = to_float(b.d);
        s.offset[0] = -to_float(b.m);
    }
};

struct Q5_0 {
    using Block = block_q5_0;
    static constexpr int kGroup = 32, kBias = 16, kMost = 31;
    static constexpr bool kMinimum = false;
    static inline void chunk(const Block& b, int, uint8_t* y, Scales& s) {
        store32(y, _mm256_or_si256(nibbles(b.qs), fifth_bits(b.qh)));
        s.scale[0] = to_float(b.d);
    }
};

struct Q5_1 {
    using Block = block_q5_1;
    static constexpr int kGroup = 32, kBias = 0, kMost = 31;
    static constexpr bool kMinimum = true;
    static inline void chunk(const Block& b, int, uint8_t* y, Scales& s) {
        store32(y, _mm256_or_si256(nibbles(b.qs), fifth_bits(b.qh)));
        s.scale[0] = to_float(b.d);
        s.offset[0] = -to_float(b.m);
    }
};

struct Q8_0 {
    using Block = block_q8_0;
    static constexpr int kGroup = 32, kBias = 0, kMost = 255;
    static constexpr bool kMinimum = false;
    static inline void chunk(const Block& b, int, uint8_t* y, Scales& s) {
        store32(y, load32(b.qs));
        s.scale[0] = to_float(b.d);
    }
};

struct Q2_K {
    using Block = block_q2_k;
    static constexpr int kGroup = 16, kBias = 0, kMost = 3;
    static constexpr bool kMinimum = true;
    static inline void chunk(const Block& b, int c, uint8_t* y, Scales& s) {
        const float d = to_float(b.d), dmin = to_float(b.dmin);
        store32(y, bits(load32(b.qs + c / 4 * 32), 2 * (c % 4), 3));
        for (int half = 0; half < 2; ++half) {
            const int sc = b.scales[2 * c + half];
            s.scale[half] = d * static_cast<float>(sc & 15);
            s.offset[half] = dmin * static_cast<float>(sc >> 4);
        }
    }
};

struct Q3_K {
    using Block = block_q3_k;
    static constexpr int kGroup = 16, kBias = 4, kMost = 7;
    static constexpr bool kMinimum = false;
    static inline void chunk(const Block& b, int c, uint8_t* y, Scales& s) {
        const float d = to_float(b.d);
        const __m256i high = _mm256_slli_epi16(bits(load32(b.hmask), c, 1), 2);
        store32(y, _mm256_or_si256(bits(load32(b.qs + c / 4 * 32), 2 * (c % 4), 3), high));
        for (int half = 0; half < 2; ++half) s.scale[half] = d * static_cast<float>(q3_scale(b.scales, 2 * c + half));
    }
};

struct Q4_K {
    using Block = block_q4_k;
    static constexpr int kGroup = 32, kBias = 0, kMost = 15;
    static constexpr bool kMinimum = true;
    static inline void chunk(const Block& b, int c, uint8_t* y, Scales& s) {
        int scale, minimum;
        k_scale_and_minimum(b.scales, c, scale, minimum);
        store32(y, bits(load32(b.qs + c / 2 * 32), 4 * (c % 2), 15));
        s.scale[0] = to_float(b.d) * static_cast<float>(scale);
        s.offset[0] = to_float(b.dmin) * static_cast<float>(minimum);
    }
};

struct Q5_K {
    using Block = block_q5_k;
    static constexpr int kGroup = 32, kBias = 0, kMost = 31;
    static constexpr bool kMinimum = true;
    static inline void chunk(const Block& b, int c, uint8_t* y, Scales& s) {
        int scale, minimum;
        k_scale_and_minimum(b.scales, c, scale, minimum);
        const __m256i high = _mm256_slli_epi16(bits(load32(b.qh), c, 1), 4);
        store32(y, _mm256_or_si256(bits(load32(b.qs + c / 2 * 32), 4 * (c % 2), 15), high));
        s.scale[0] = to_float(b.d) * static_cast<float>(scale);
        s.offset[0] = to_float(b.dmin) * static_cast<float>(minimum);
    }
};

struct Q6_K {
    using Block = block_q6_k;
    static constexpr int kGroup = 16, kBias = 32, kMost = 63;
    static constexpr bool kMinimum = false;
    static inline void chunk(const Block& b, int c, uint8_t* y, Scales& s) {
        const float d = to_float(b.d);
        const __m256i low = bits(load32(b.ql + c / 4 * 64 + c % 2 * 32), c % 4 / 2 * 4, 15);
        const __m256i high = _mm256_slli_epi16(bits(load32(b.qh + c / 4 * 32), 2 * (c % 4), 3), 4);
        store32(y, _mm256_or_si256(low, high));
        for (int half = 0; half < 2; ++half) s.scale[half] = d * static_cast<float>(b.scales[2 * c + half]);
    }
};

struct IQ4_NL {
    using Block = block_iq4_nl;
    static constexpr int kGroup = 32, kBias = 0, kMost = 255;
    static constexpr bool kMinimum = false;
    static inline void chunk(const Block& b, int, uint8_t* y, Scales& s) {
        store32(y, iq4_values(b.qs));
        s.scale[0] = to_float(b.d);
    }
};

struct IQ4_XS {
    using Block = block_iq4_xs;
    static constexpr int kGroup = 32, kBias = 0, kMost = 255;
    static constexpr bool kMinimum = false;
    static inline void chunk(const Block& b, int c, uint8_t* y, Scales& s) {
        store32(y, iq4_values(b.qs + 16 * c));
        s.scale[0] = to_float(b.d) * static_cast<float>(iq4_xs_scale(b, c));
    }
};

}  // namespace
}  // namespace jamba
