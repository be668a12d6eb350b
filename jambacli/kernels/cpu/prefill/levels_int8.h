// Blocks of every format as bytes and scales, 32 values at a time, for products of int8. Include only from files compiled
// for AVX2 or more.
//
// Each format has: kGroup, the values that share a scale (32 or 16); kMinimum, whether the value is scale * level - offset
// (else it is scale * (level - kBias)); kMost, the largest level, or 255 where levels are signed bytes; levels(), chunk c of a
// block; planes(), where levels are signed bytes, the same in two parts; scales(), the scales and offsets of a block's groups; units(), where 16 groups have no offsets, their scales over the
// block's factor d.
#pragma once

#include <immintrin.h>

#include "base/formats.h"

namespace jamba {
namespace {

inline float to_float(const Half& half) { return _cvtsh_ss(read_u16(&half)); }
inline __m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline void store32(void* p, __m256i x) { _mm256_store_si256(static_cast<__m256i*>(p), x); }

// to[i] = d * byte i for eight or sixteen bytes.
inline void scale_bytes(float d, __m128i bytes, float* to) {
    _mm256_storeu_ps(to, _mm256_mul_ps(_mm256_set1_ps(d), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))));
}

inline void scale_sixteen(float d, __m128i bytes, float* to) {
    scale_bytes(d, bytes, to);
    scale_bytes(d, _mm_srli_si128(bytes, 8), to + 8);
}

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

inline __m256i from_table(const int8_t* table, __m256i codes) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load16(table)), codes);
}

inline __m256i iq4_values(const uint8_t* p) { return from_table(kIq4Values, nibbles(p)); }

// Bytes as 16 * high + low, both from -8 to 8.
struct Planes {
    __m256i low, high;
};

inline Planes planes_of(__m256i x) {
    const __m256i eight = _mm256_set1_epi8(8);
    const __m256i high = _mm256_sub_epi8(_mm256_xor_si256(bits(x, 4, 15), eight), eight);
    return {_mm256_sub_epi8(_mm256_xor_si256(bits(x, 0, 15), eight), eight), _mm256_add_epi8(high, bits(x, 3, 1))};
}

// The same of the sixteen values of IQ4_NL and IQ4_XS.
struct Iq4Planes {
    int8_t low[16], high[16];
    constexpr Iq4Planes() : low{}, high{} {
        for (int i = 0; i < 16; ++i) {
            low[i] = static_cast<int8_t>((kIq4Values[i] + 136) % 16 - 8);
            high[i] = static_cast<int8_t>((kIq4Values[i] - low[i]) / 16);
        }
    }
};
constexpr Iq4Planes kIq4Planes;

inline Planes iq4_planes(const uint8_t* p) {
    const __m256i codes = nibbles(p);
    return {from_table(kIq4Planes.low, codes), from_table(kIq4Planes.high, codes)};
}

// The eight six-bit scales and minimums of Q4_K and Q5_K.
template <class Block>
inline void k_scales(const Block& b, float* scale, float* offset) {
    const uint32_t x = read_u32(b.scales), y = read_u32(b.scales + 4), z = read_u32(b.scales + 8);
    const auto six = [](uint32_t low, uint32_t high) {
        return static_cast<int32_t>((low & 0x0f0f0f0fu) | (high >> 6 & 0x03030303u) << 4);
    };
    const auto first = [](uint32_t low) { return static_cast<int32_t>(low & 0x3f3f3f3fu); };
    scale_bytes(to_float(b.d), _mm_setr_epi32(first(x), six(z, x), 0, 0), scale);
    scale_bytes(to_float(b.dmin), _mm_setr_epi32(first(y), six(z >> 4, y), 0, 0), offset);
}

struct Q4_0 {
    using Block = block_q4_0;
    static constexpr int kGroup = 32, kBias = 8, kMost = 15;
    static constexpr bool kMinimum = false;
    static inline __m256i levels(const Block& b, int) { return nibbles(b.qs); }
    static inline void scales(const Block& b, float* scale, float*) { *scale = to_float(b.d); }
};

struct Q4_1 {
    using Block = block_q4_1;
    static constexpr int kGroup = 32, kBias = 0, kMost = 15;
    static constexpr bool kMinimum = true;
    static inline __m256i levels(const Block& b, int) { return nibbles(b.qs); }
    static inline void scales(const Block& b, float* scale, float* offset) {
        *scale = to_float(b.d);
        *offset = -to_float(b.m);
    }
};

struct Q5_0 {
    using Block = block_q5_0;
    static constexpr int kGroup = 32, kBias = 16, kMost = 31;
    static constexpr bool kMinimum = false;
    static inline __m256i levels(const Block& b, int) { return _mm256_or_si256(nibbles(b.qs), fifth_bits(b.qh)); }
    static inline void scales(const Block& b, float* scale, float*) { *scale = to_float(b.d); }
};

struct Q5_1 {
    using Block = block_q5_1;
    static constexpr int kGroup = 32, kBias = 0, kMost = 31;
    static constexpr bool kMinimum = true;
    static inline __m256i levels(const Block& b, int) { return _mm256_or_si256(nibbles(b.qs), fifth_bits(b.qh)); }
    static inline void scales(const Block& b, float* scale, float* offset) {
        *scale = to_float(b.d);
        *offset = -to_float(b.m);
    }
};

struct Q8_0 {
    using Block = block_q8_0;
    static constexpr int kGroup = 32, kBias = 0, kMost = 255;
    static constexpr bool kMinimum = false;
    static inline __m256i levels(const Block& b, int) { return load32(b.qs); }
    static inline Planes planes(const Block& b, int) { return planes_of(load32(b.qs)); }
    static inline void scales(const Block& b, float* scale, float*) { *scale = to_float(b.d); }
};

struct Q2_K {
    using Block = block_q2_k;
    static constexpr int kGroup = 16, kBias = 0, kMost = 3;
    static constexpr bool kMinimum = true;
    static inline __m256i levels(const Block& b, int c) {
        return bits(load32(b.qs + c / 4 * 32), 2 * (c % 4), 3);
    }
    static inline void scales(const Block& b, float* scale, float* offset) {
        const __m128i both = load16(b.scales), low = _mm_set1_epi8(15);
        scale_sixteen(to_float(b.d), _mm_and_si128(both, low), scale);
        scale_sixteen(to_float(b.dmin), _mm_and_si128(_mm_srli_epi16(both, 4), low), offset);
    }
};

struct Q3_K {
    using Block = block_q3_k;
    static constexpr int kGroup = 16, kBias = 4, kMost = 7;
    static constexpr bool kMinimum = false;
    static inline __m256i levels(const Block& b, int c) {
        const __m256i high = _mm256_slli_epi16(bits(load32(b.hmask), c, 1), 2);
        return _mm256_or_si256(bits(load32(b.qs + c / 4 * 32), 2 * (c % 4), 3), high);
    }
    static inline __m128i units(const Block& b) {
        const uint32_t x = read_u32(b.scales), y = read_u32(b.scales + 4), high = read_u32(b.scales + 8);
        const auto six = [](uint32_t low, uint32_t two) {
            return static_cast<int32_t>((low & 0x0f0f0f0fu) | (two & 0x03030303u) << 4);
        };
        const __m128i all = _mm_setr_epi32(six(x, high), six(y, high >> 2), six(x >> 4, high >> 4), six(y >> 4, high >> 6));
        return _mm_sub_epi8(all, _mm_set1_epi8(32));
    }
    static inline void scales(const Block& b, float* scale, float*) { scale_sixteen(to_float(b.d), units(b), scale); }
};

struct Q4_K {
    using Block = block_q4_k;
    static constexpr int kGroup = 32, kBias = 0, kMost = 15;
    static constexpr bool kMinimum = true;
    static inline __m256i levels(const Block& b, int c) {
        return bits(load32(b.qs + c / 2 * 32), 4 * (c % 2), 15);
    }
    static inline void scales(const Block& b, float* scale, float* offset) { k_scales(b, scale, offset); }
};

struct Q5_K {
    using Block = block_q5_k;
    static constexpr int kGroup = 32, kBias = 0, kMost = 31;
    static constexpr bool kMinimum = true;
    static inline __m256i levels(const Block& b, int c) {
        const __m256i high = _mm256_slli_epi16(bits(load32(b.qh), c, 1), 4);
        return _mm256_or_si256(bits(load32(b.qs + c / 2 * 32), 4 * (c % 2), 15), high);
    }
    static inline void scales(const Block& b, float* scale, float* offset) { k_scales(b, scale, offset); }
};

struct Q6_K {
    using Block = block_q6_k;
    static constexpr int kGroup = 16, kBias = 32, kMost = 63;
    static constexpr bool kMinimum = false;
    static inline __m256i levels(const Block& b, int c) {
        const __m256i low = bits(load32(b.ql + c / 4 * 64 + c % 2 * 32), c % 4 / 2 * 4, 15);
        return _mm256_or_si256(low, _mm256_slli_epi16(bits(load32(b.qh + c / 4 * 32), 2 * (c % 4), 3), 4));
    }
    static inline __m128i units(const Block& b) { return load16(b.scales); }
    static inline void scales(const Block& b, float* scale, float*) { scale_sixteen(to_float(b.d), units(b), scale); }
};

struct IQ4_NL {
    using Block = block_iq4_nl;
    static constexpr int kGroup = 32, kBias = 0, kMost = 255;
    static constexpr bool kMinimum = false;
    static inline __m256i levels(const Block& b, int) { return iq4_values(b.qs); }
    static inline Planes planes(const Block& b, int) { return iq4_planes(b.qs); }
    static inline void scales(const Block& b, float* scale, float*) { *scale = to_float(b.d); }
};

struct IQ4_XS {
    using Block = block_iq4_xs;
    static constexpr int kGroup = 32, kBias = 0, kMost = 255;
    static constexpr bool kMinimum = false;
    static inline __m256i levels(const Block& b, int c) { return iq4_values(b.qs + 16 * c); }
    static inline Planes planes(const Block& b, int c) { return iq4_planes(b.qs + 16 * c); }
    static inline void scales(const Block& b, float* scale, float*) {
        const __m256i low = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(read_u32(b.scales_l))),
                                              _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
        const __m256i high =
            _mm256_srlv_epi32(_mm256_set1_epi32(read_u16(b.scales_h) << 4), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
        const __m256i units = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(15)), _mm256_and_si256(high, _mm256_set1_epi32(48)));
        const __m256 whole = _mm256_cvtepi32_ps(_mm256_sub_epi32(units, _mm256_set1_epi32(32)));
        _mm256_storeu_ps(scale, _mm256_mul_ps(_mm256_set1_ps(to_float(b.d)), whole));
    }
};

}  // namespace
}  // namespace jamba
