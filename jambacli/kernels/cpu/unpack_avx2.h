// Unpacking of 256 values of each block format into eight AVX2 registers of 32 bytes, in the order of the values. Knows
// nothing of activations. Include only from files compiled for AVX2. The formats are described as in unpack_avx512.h.
#pragma once

#include <immintrin.h>

#include "blocks.h"

namespace jamba {
namespace {

struct Unpacked {
    __m256i w[8];
    __m256 scale[2], offset[2];  // of groups of 32: only the first of each
};

inline __m256i bytes(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
inline __m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline float half(const uint8_t* p) { return _cvtsh_ss(read_u16(p)); }
inline __m256i low_bits(__m256i x, int shift, int mask) {
    return _mm256_and_si256(_mm256_srli_epi16(x, shift), bytes(mask));
}

// 16 bytes to 32 nibbles: the low ones come first.
inline __m256i nibble_block(const uint8_t* p) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(x, 4), x), bytes(15));
}

// 32 bits to 32 bytes, 0 or `value`.
inline __m256i spread_bits(uint32_t bits, int value) {
    const __m256i order = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i each = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
    const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), order);
    return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(spread, each), each), bytes(value));
}

inline __m256 eight_halves(const uint8_t* p, int step) {
    const auto at = [&](int i) { return static_cast<short>(read_u16(p + i * step)); };
    return _mm256_cvtph_ps(_mm_setr_epi16(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)));
}

inline __m256 negated(__m256 x) { return _mm256_sub_ps(_mm256_setzero_ps(), x); }
inline __m256 times(__m256 x, float by) { return _mm256_mul_ps(x, _mm256_set1_ps(by)); }

struct Q4_0 {
    static constexpr int kBytes = 8 * 18, kGroup = 32;
    static constexpr bool kSigned = false, kOffset = true;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        for (int k = 0; k < 8; ++k) u.w[k] = nibble_block(p + 18 * k + 2);
        u.scale[0] = eight_halves(p, 18);
        u.offset[0] = times(u.scale[0], 8.0f);
    }
};

struct Q4_1 {
    static constexpr int kBytes = 8 * 20, kGroup = 32;
    static constexpr bool kSigned = false, kOffset = true;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        for (int k = 0; k < 8; ++k) u.w[k] = nibble_block(p + 20 * k + 4);
        u.scale[0] = eight_halves(p, 20);
        u.offset[0] = negated(eight_halves(p + 2, 20));
    }
};

struct Q5_0 {
    static constexpr int kBytes = 8 * 22, kGroup = 32;
    static constexpr bool kSigned = false, kOffset = true;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        for (int k = 0; k < 8; ++k) {
            const uint8_t* b = p + 22 * k;
            u.w[k] = _mm256_or_si256(nibble_block(b + 6), spread_bits(read_u32(b + 2), 16));
        }
        u.scale[0] = eight_halves(p, 22);
        u.offset[0] = times(u.scale[0], 16.0f);
    }
};

struct Q5_1 {
    static constexpr int kBytes = 8 * 24, kGroup = 32;
    static constexpr bool kSigned = false, kOffset = true;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        for (int k = 0; k < 8; ++k) {
            const uint8_t* b = p + 24 * k;
            u.w[k] = _mm256_or_si256(nibble_block(b + 8), spread_bits(read_u32(b + 4), 16));
        }
        u.scale[0] = eight_halves(p, 24);
        u.offset[0] = negated(eight_halves(p + 2, 24));
    }
};

struct Q8_0 {
    static constexpr int kBytes = 8 * 34, kGroup = 32;
    static constexpr bool kSigned = true, kOffset = false;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        for (int k = 0; k < 8; ++k) u.w[k] = load32(p + 34 * k + 2);
        u.scale[0] = eight_halves(p, 34);
    }
};

struct I8 {  // rows with one factor, applied to the finished sum
    static constexpr int kBytes = 256, kGroup = 32;
    static constexpr bool kSigned = true, kOffset = false;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        for (int k = 0; k < 8; ++k) u.w[k] = load32(p + 32 * k);
        u.scale[0] = _mm256_set1_ps(1.0f);
    }
};

inline __m256i iq4_values(__m256i codes) {
    const __m128i table = _mm_load_si128(reinterpret_cast<const __m128i*>(kIq4Values));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), codes);
}

struct IQ4_NL {
    static constexpr int kBytes = 8 * 18, kGroup = 32;
    static constexpr bool kSigned = true, kOffset = false;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        for (int k = 0; k < 8; ++k) u.w[k] = iq4_values(nibble_block(p + 18 * k + 2));
        u.scale[0] = eight_halves(p, 18);
    }
};

struct IQ4_XS {
    static constexpr int kBytes = 136, kGroup = 32;
    static constexpr bool kSigned = true, kOffset = false;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        for (int k = 0; k < 8; ++k) u.w[k] = iq4_values(nibble_block(p + 8 + 16 * k));
        const __m256i pairs = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
        const __m256i fours = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
        const __m256i high = _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(read_u16(p + 2)), pairs),
                                              _mm256_set1_epi32(3));
        const __m256i low = _mm256_and_si256(
            _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(read_u32(p + 4))), fours), _mm256_set1_epi32(15));
        const __m256i scale =
            _mm256_sub_epi32(_mm256_or_si256(low, _mm256_slli_epi32(high, 4)), _mm256_set1_epi32(32));
        u.scale[0] = times(_mm256_cvtepi32_ps(scale), half(p));
    }
};

inline __m256 byte_floats(uint64_t eight) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(eight))));
}

// The 6-bit scales and minimums of Q4_K and Q5_K, times their f16 factors.
inline void k_scales(const uint8_t* p, Unpacked& u) {
    const uint32_t a = read_u32(p + 4), b = read_u32(p + 8), c = read_u32(p + 12);
    const uint64_t scale_high = (c & 0x0f0f0f0fu) | ((a >> 2) & 0x30303030u);
    const uint64_t min_high = ((c >> 4) & 0x0f0f0f0fu) | ((b >> 2) & 0x30303030u);
    u.scale[0] = times(byte_floats((a & 0x3f3f3f3fu) | scale_high << 32), half(p));
    u.offset[0] = times(byte_floats((b & 0x3f3f3f3fu) | min_high << 32), half(p + 2));
}

struct Q4_K {
    static constexpr int kBytes = 144, kGroup = 32;
    static constexpr bool kSigned = false, kOffset = true;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        for (int k = 0; k < 4; ++k) {
            const __m256i x = load32(p + 16 + 32 * k);
            u.w[2 * k] = low_bits(x, 0, 15);
            u.w[2 * k + 1] = low_bits(x, 4, 15);
        }
        k_scales(p, u);
    }
};

struct Q5_K {
    static constexpr int kBytes = 176, kGroup = 32;
    static constexpr bool kSigned = false, kOffset = true;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        __m256i high = load32(p + 16);  // bit j of byte l: the fifth bit of value l of group j
        for (int k = 0; k < 4; ++k) {
            const __m256i x = load32(p + 48 + 32 * k);
            u.w[2 * k] = _mm256_or_si256(low_bits(x, 0, 15), _mm256_and_si256(_mm256_slli_epi16(high, 4), bytes(16)));
            u.w[2 * k + 1] =
                _mm256_or_si256(low_bits(x, 4, 15), _mm256_and_si256(_mm256_slli_epi16(high, 3), bytes(16)));
            high = _mm256_srli_epi16(high, 2);
        }
        k_scales(p, u);
    }
};

struct Q6_K {
    static constexpr int kBytes = 210, kGroup = 16;
    static constexpr bool kSigned = false, kOffset = true;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        for (int h = 0; h < 2; ++h) {
            const __m256i a = load32(p + 64 * h), b = load32(p + 64 * h + 32), high = load32(p + 128 + 32 * h);
            const __m256i top = bytes(0x30);
            u.w[4 * h] = _mm256_or_si256(low_bits(a, 0, 15), _mm256_and_si256(_mm256_slli_epi16(high, 4), top));
            u.w[4 * h + 1] = _mm256_or_si256(low_bits(b, 0, 15), _mm256_and_si256(_mm256_slli_epi16(high, 2), top));
            u.w[4 * h + 2] = _mm256_or_si256(low_bits(a, 4, 15), _mm256_and_si256(high, top));
            u.w[4 * h + 3] = _mm256_or_si256(low_bits(b, 4, 15), _mm256_and_si256(_mm256_srli_epi16(high, 2), top));
        }
        for (int h = 0; h < 2; ++h) {
            const __m128i eight = _mm_cvtsi64_si128(static_cast<int64_t>(read_u64(p + 192 + 8 * h)));
            u.scale[h] = times(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)), half(p + 208));
            u.offset[h] = times(u.scale[h], 32.0f);
        }
    }
};

struct Q3_K {
    static constexpr int kBytes = 110, kGroup = 16;
    static constexpr bool kSigned = false, kOffset = true;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        const __m256i high = load32(p);  // bit c of byte l: the third bit of value l of 32 values c
        for (int c = 0; c < 8; ++c) {
            const __m256i low = load32(p + 32 + 32 * (c / 4));
            const __m256i bit = c < 2 ? _mm256_slli_epi16(high, c < 2 ? 2 - c : 0) : _mm256_srli_epi16(high, c < 2 ? 0 : c - 2);
            u.w[c] = _mm256_or_si256(low_bits(low, 2 * (c % 4), 3), _mm256_and_si256(bit, bytes(4)));
        }
        const uint32_t a = read_u32(p + 96), b = read_u32(p + 100), c = read_u32(p + 104);
        const uint64_t first = (a & 0x0f0f0f0fu) | ((c << 4) & 0x30303030u);
        const uint64_t second = (b & 0x0f0f0f0fu) | ((c << 2) & 0x30303030u);
        const uint64_t third = ((a >> 4) & 0x0f0f0f0fu) | (c & 0x30303030u);
        const uint64_t fourth = ((b >> 4) & 0x0f0f0f0fu) | ((c >> 2) & 0x30303030u);
        const __m256 thirty_two = _mm256_set1_ps(32.0f);
        u.scale[0] = times(_mm256_sub_ps(byte_floats(first | second << 32), thirty_two), half(p + 108));
        u.scale[1] = times(_mm256_sub_ps(byte_floats(third | fourth << 32), thirty_two), half(p + 108));
        for (int h = 0; h < 2; ++h) u.offset[h] = times(u.scale[h], 4.0f);
    }
};

struct Q2_K {
    static constexpr int kBytes = 84, kGroup = 16;
    static constexpr bool kSigned = false, kOffset = true;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        for (int c = 0; c < 8; ++c) u.w[c] = low_bits(load32(p + 16 + 32 * (c / 4)), 2 * (c % 4), 3);
        for (int h = 0; h < 2; ++h) {
            const uint64_t eight = read_u64(p + 8 * h), low = 0x0f0f0f0f0f0f0f0fu;
            u.scale[h] = times(byte_floats(eight & low), half(p + 80));
            u.offset[h] = times(byte_floats((eight >> 4) & low), half(p + 82));
        }
    }
};

}  // namespace
}  // namespace jamba
