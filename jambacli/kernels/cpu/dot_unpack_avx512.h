// Unpacking of 256 values of each block format into four AVX-512 registers of bytes for products with int8. Knows
// nothing of activations. Include only from files compiled for AVX-512.
//
// Each format has: kBytes, bytes of 256 values (eight blocks of the 32-value formats); kGroup, the values that share a
// scale (32 or 16); kSigned, whether the bytes are int8 (else unsigned); kLanes, how the lanes of the sums are to be
// scaled down at the end because a format's bits were left where they lie in the byte. `scale` holds, for groups of 16,
// sixteen factors; for groups of 32, [factors 0-3, offsets 0-3, factors 4-7, offsets 4-7]. The value is
// factor * byte - kBias * offset; where the offset is a multiple of the factor, `scale` repeats the factor.
//
// On the processors this is for, 512-bit operations have two ports: what a block costs is the number of vector
// operations, so scales are assembled in general registers, and offsets ride along with the scales.
//
// The including file sets kFullBytes: with VNNI bytes may use all eight bits; without it two products must fit 16 bits.
#pragma once

#include <immintrin.h>

#include "blocks.h"

namespace jamba {
namespace {

struct Unpacked {
    __m512i w[4];
    __m512 scale;
    __m512 offset16;  // of groups of 16: one a group, the factor itself where the offset is a multiple of it
};

// The scaling of the sums' lanes: none; lanes 8-15 by 1/16; lanes 4-7 and 12-15 by 1/16; by 4^-j for Q2_K.
enum class Lanes { kPlain, kHalves, kQuarters, kTwoBits };

inline __m512i bytes(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
inline __m512i load64(const void* p) { return _mm512_loadu_si512(p); }
inline __m512i load32x2(const void* p) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
inline float half(const uint8_t* p) { return _cvtsh_ss(read_u16(p)); }
// (x & mask) | y
inline __m512i and_or(__m512i x, __m512i mask, __m512i y) { return _mm512_ternarylogic_epi64(x, mask, y, 0xEA); }
// Lanes 0-3 shifted by a, lanes 4-7 by b.
inline __m512i halves(int64_t a, int64_t b) { return _mm512_setr_epi64(a, a, a, a, b, b, b, b); }
inline __m512i low_high_nibbles() { return _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4); }

// Four 16-bit words as one 64-bit number, kept out of the vector ports.
inline uint64_t four_words(const uint8_t* p, int step) {
    uint64_t x = read_u16(p);
    x |= static_cast<uint64_t>(read_u16(p + step)) << 16;
    x |= static_cast<uint64_t>(read_u16(p + 2 * step)) << 32;
    x |= static_cast<uint64_t>(read_u16(p + 3 * step)) << 48;
    return x;
}

inline __m128i two_longs(uint64_t low, uint64_t high) {
    return _mm_unpacklo_epi64(_mm_cvtsi64_si128(static_cast<int64_t>(low)), _mm_cvtsi64_si128(static_cast<int64_t>(high)));
}

// The f16 at the start of each of eight blocks `step` bytes apart, as `scale` of a format with a constant offset.
inline __m512 eight_scales(const uint8_t* p, int step) {
    const __m256 eight = _mm256_cvtph_ps(two_longs(four_words(p, step), four_words(p + 4 * step, step)));
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7);
    return _mm512_permutexvar_ps(order, _mm512_castps256_ps512(eight));
}

// The two f16 (scale, minimum) at the start of each of eight blocks.
inline __m512 eight_scales_and_minimums(const uint8_t* p, int step) {
    const auto pair = [&](int i) {
        return read_u32(p + i * step) | static_cast<uint64_t>(read_u32(p + (i + 1) * step)) << 32;
    };
    const __m256i all = _mm256_set_m128i(two_longs(pair(4), pair(6)), two_longs(pair(0), pair(2)));
    const __m512i order = _mm512_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    return _mm512_permutexvar_ps(order, _mm512_cvtph_ps(all));
}

// Two 16-byte halves of nibbles, each twice side by side.
inline __m512i two_halves(const uint8_t* a, const uint8_t* b) {
    const __m512i first = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a)));
    return _mm512_mask_broadcast_i32x4(first, 0xFF00, _mm_loadu_si128(reinterpret_cast<const __m128i*>(b)));
}

// The same as 64 values below 16: of each half the low nibbles come first.
inline __m512i two_nibble_blocks(const uint8_t* a, const uint8_t* b) {
    return _mm512_and_si512(_mm512_srlv_epi64(two_halves(a, b), low_high_nibbles()), bytes(15));
}

// The same with the high nibbles left in place, times 16 (Lanes::kQuarters).
inline __m512i two_nibble_blocks_in_place(const uint8_t* a, const uint8_t* b) {
    const int64_t low = 0x0f0f0f0f0f0f0f0f, high = static_cast<int64_t>(0xf0f0f0f0f0f0f0f0u);
    return _mm512_and_si512(two_halves(a, b), _mm512_setr_epi64(low, low, high, high, low, low, high, high));
}

// Adds `value` to the bytes whose bit is set.
inline __m512i add_where(__m512i x, uint64_t bits, int value) {
    return _mm512_mask_add_epi8(x, bits, x, bytes(value));
}

struct Q4_0 {
    static constexpr int kBytes = 8 * 18, kGroup = 32;
    static constexpr bool kSigned = false;
    static constexpr float kBias = 8.0f;
    static constexpr Lanes kLanes = kFullBytes ? Lanes::kQuarters : Lanes::kPlain;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        for (int k = 0; k < 4; ++k) {
            const uint8_t *a = p + 36 * k + 2, *b = a + 18;
            u.w[k] = kFullBytes ? two_nibble_blocks_in_place(a, b) : two_nibble_blocks(a, b);
        }
        u.scale = eight_scales(p, 18);
    }
};

struct Q4_1 {
    static constexpr int kBytes = 8 * 20, kGroup = 32;
    static constexpr bool kSigned = false;
    static constexpr float kBias = -1.0f;
    static constexpr Lanes kLanes = kFullBytes ? Lanes::kQuarters : Lanes::kPlain;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        for (int k = 0; k < 4; ++k) {
            const uint8_t *a = p + 40 * k + 4, *b = a + 20;
            u.w[k] = kFullBytes ? two_nibble_blocks_in_place(a, b) : two_nibble_blocks(a, b);
        }
        u.scale = eight_scales_and_minimums(p, 20);
    }
};

struct Q5_0 {
    static constexpr int kBytes = 8 * 22, kGroup = 32;
    static constexpr bool kSigned = false;
    static constexpr float kBias = 16.0f;
    static constexpr Lanes kLanes = Lanes::kPlain;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        for (int k = 0; k < 4; ++k) {
            const uint8_t *a = p + 44 * k, *b = a + 22;
            const uint64_t high = read_u32(a + 2) | static_cast<uint64_t>(read_u32(b + 2)) << 32;
            u.w[k] = add_where(two_nibble_blocks(a + 6, b + 6), high, 16);
        }
        u.scale = eight_scales(p, 22);
    }
};

struct Q5_1 {
    static constexpr int kBytes = 8 * 24, kGroup = 32;
    static constexpr bool kSigned = false;
    static constexpr float kBias = -1.0f;
    static constexpr Lanes kLanes = Lanes::kPlain;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        for (int k = 0; k < 4; ++k) {
            const uint8_t *a = p + 48 * k, *b = a + 24;
            const uint64_t high = read_u32(a + 4) | static_cast<uint64_t>(read_u32(b + 4)) << 32;
            u.w[k] = add_where(two_nibble_blocks(a + 8, b + 8), high, 16);
        }
        u.scale = eight_scales_and_minimums(p, 24);
    }
};

struct Q8_0 {
    static constexpr int kBytes = 8 * 34, kGroup = 32;
    static constexpr bool kSigned = true;
    static constexpr float kBias = 128.0f;
    static constexpr Lanes kLanes = Lanes::kPlain;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        for (int k = 0; k < 4; ++k) {
            const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 68 * k + 2));
            const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 68 * k + 36));
            u.w[k] = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
        }
        u.scale = eight_scales(p, 34);
    }
};

struct I8 {  // rows with one factor, applied to the finished sum
    static constexpr int kBytes = 256, kGroup = 32;
    static constexpr bool kSigned = true;
    static constexpr float kBias = 128.0f;
    static constexpr Lanes kLanes = Lanes::kPlain;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        for (int k = 0; k < 4; ++k) u.w[k] = load64(p + 64 * k);
        u.scale = _mm512_set1_ps(1.0f);
    }
};

// Codes 0-15 to the IQ4 values. (Bytes are int8, so kSigned.)
inline __m512i iq4_values(__m512i codes) {
    const __m512i table = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(kIq4Values)));
    return _mm512_shuffle_epi8(table, codes);
}

struct IQ4_NL {
    static constexpr int kBytes = 8 * 18, kGroup = 32;
    static constexpr bool kSigned = true;
    static constexpr float kBias = 128.0f;
    static constexpr Lanes kLanes = Lanes::kPlain;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        for (int k = 0; k < 4; ++k) u.w[k] = iq4_values(two_nibble_blocks(p + 36 * k + 2, p + 36 * k + 20));
        u.scale = eight_scales(p, 18);
    }
};

struct IQ4_XS {
    static constexpr int kBytes = 136, kGroup = 32;
    static constexpr bool kSigned = true;
    static constexpr float kBias = 128.0f;
    static constexpr Lanes kLanes = Lanes::kPlain;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        for (int k = 0; k < 4; ++k) u.w[k] = iq4_values(two_nibble_blocks(p + 8 + 32 * k, p + 24 + 32 * k));
        // Lanes as in `scale` of a format with a constant offset: groups 0-3 twice, then 4-7 twice.
        const __m512i pairs = _mm512_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6, 8, 10, 12, 14, 8, 10, 12, 14);
        const __m512i fours = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 16, 20, 24, 28, 16, 20, 24, 28);
        const __m512i high = _mm512_srlv_epi32(_mm512_set1_epi32(read_u16(p + 2) << 4), pairs);
        const __m512i low = _mm512_srlv_epi32(_mm512_set1_epi32(static_cast<int>(read_u32(p + 4))), fours);
        const __m512i six = and_or(high, _mm512_set1_epi32(48), _mm512_and_si512(low, _mm512_set1_epi32(15)));
        u.scale = _mm512_mul_ps(_mm512_set1_ps(half(p)), _mm512_cvtepi32_ps(_mm512_sub_epi32(six, _mm512_set1_epi32(32))));
    }
};

// The 6-bit scales and minimums of Q4_K and Q5_K, times their f16 factors.
inline __m512 k_scales(const uint8_t* p) {
    const uint64_t ab = read_u64(p + 4), c = read_u32(p + 12);
    const uint64_t low = ab & 0x3f3f3f3f3f3f3f3fu;
    const uint64_t high = ((c | c << 28) & 0x0f0f0f0f0f0f0f0fu) | ((ab >> 2) & 0x3030303030303030u);
    const __m512 six = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(two_longs(low, high)));
    const __m128 factors = _mm_cvtph_ps(_mm_cvtsi32_si128(static_cast<int>(read_u32(p))));
    const __m512i order = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1);
    return _mm512_mul_ps(six, _mm512_permutexvar_ps(order, _mm512_castps128_ps512(factors)));
}

struct Q4_K {
    static constexpr int kBytes = 144, kGroup = 32;
    static constexpr bool kSigned = false;
    static constexpr float kBias = 1.0f;
    static constexpr Lanes kLanes = kFullBytes ? Lanes::kHalves : Lanes::kPlain;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        const int64_t low = 0x0f0f0f0f0f0f0f0f, high = static_cast<int64_t>(0xf0f0f0f0f0f0f0f0u);
        for (int k = 0; k < 4; ++k) {
            const __m512i x = load32x2(p + 16 + 32 * k);
            u.w[k] = kFullBytes ? _mm512_and_si512(x, halves(low, high))
                           : _mm512_and_si512(_mm512_srlv_epi64(x, halves(0, 4)), bytes(15));
        }
        u.scale = k_scales(p);
    }
};

struct Q5_K {
    static constexpr int kBytes = 176, kGroup = 32;
    static constexpr bool kSigned = false;
    static constexpr float kBias = 1.0f;
    static constexpr Lanes kLanes = Lanes::kPlain;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        const __m512i high = load32x2(p + 16);  // bit j of byte l: the fifth bit of value l of group j
        for (int k = 0; k < 4; ++k) {
            const __m512i low =
                _mm512_and_si512(_mm512_srlv_epi64(load32x2(p + 48 + 32 * k), halves(0, 4)), bytes(15));
            const __m512i bit = _mm512_rolv_epi64(high, halves((64 + 4 - 2 * k) & 63, (64 + 3 - 2 * k) & 63));
            u.w[k] = and_or(bit, bytes(16), low);
        }
        u.scale = k_scales(p);
    }
};

struct Q6_K {
    static constexpr int kBytes = 210, kGroup = 16;
    static constexpr bool kSigned = false;
    static constexpr float kBias = 32.0f;
    static constexpr Lanes kLanes = Lanes::kPlain;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        for (int h = 0; h < 2; ++h) {
            const __m512i low = load64(p + 64 * h), high = load32x2(p + 128 + 32 * h);
            u.w[2 * h] = and_or(_mm512_rolv_epi64(high, halves(4, 2)), bytes(0x30), _mm512_and_si512(low, bytes(15)));
            u.w[2 * h + 1] = and_or(_mm512_rolv_epi64(high, halves(0, 62)), bytes(0x30),
                                    _mm512_and_si512(_mm512_srli_epi64(low, 4), bytes(15)));
        }
        const __m512i scale = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 192)));
        u.scale = u.offset16 = _mm512_mul_ps(_mm512_set1_ps(half(p + 208)), _mm512_cvtepi32_ps(scale));
    }
};

struct Q3_K {
    static constexpr int kBytes = 110, kGroup = 16;
    static constexpr bool kSigned = false;
    static constexpr float kBias = 4.0f;
    static constexpr Lanes kLanes = Lanes::kPlain;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        const __m512i high = load32x2(p);  // bit 4 h + j of byte l: the third bit of value 128 h + 32 j + l
        for (int h = 0; h < 2; ++h) {
            const __m512i low = load32x2(p + 32 + 32 * h);
            for (int j = 0; j < 2; ++j) {
                const int bit = 4 * h + 2 * j;
                const __m512i two = _mm512_and_si512(_mm512_srlv_epi64(low, halves(4 * j, 4 * j + 2)), bytes(3));
                u.w[2 * h + j] =
                    and_or(_mm512_rolv_epi64(high, halves((64 + 2 - bit) & 63, (64 + 1 - bit) & 63)), bytes(4), two);
            }
        }
        const uint32_t a = read_u32(p + 96), b = read_u32(p + 100), c = read_u32(p + 104);
        const uint64_t first = (a & 0x0f0f0f0fu) | ((c << 4) & 0x30303030u);
        const uint64_t second = (b & 0x0f0f0f0fu) | ((c << 2) & 0x30303030u);
        const uint64_t third = ((a >> 4) & 0x0f0f0f0fu) | (c & 0x30303030u);
        const uint64_t fourth = ((b >> 4) & 0x0f0f0f0fu) | ((c >> 2) & 0x30303030u);
        const __m128i six = two_longs(first | second << 32, third | fourth << 32);
        const __m512i scale = _mm512_sub_epi32(_mm512_cvtepu8_epi32(six), _mm512_set1_epi32(32));
        u.scale = u.offset16 = _mm512_mul_ps(_mm512_set1_ps(half(p + 108)), _mm512_cvtepi32_ps(scale));
    }
};

struct Q2_K {
    static constexpr int kBytes = 84, kGroup = 16;
    static constexpr bool kSigned = false;
    static constexpr float kBias = 1.0f;
    static constexpr Lanes kLanes = kFullBytes ? Lanes::kTwoBits : Lanes::kPlain;
    static inline void unpack(const uint8_t* p, Unpacked& u) {
        const int64_t mask = 0x0303030303030303;
        for (int h = 0; h < 2; ++h) {
            const __m512i low = load32x2(p + 16 + 32 * h);
            for (int j = 0; j < 2; ++j)
                u.w[2 * h + j] = kFullBytes ? _mm512_and_si512(low, halves(mask << 4 * j, mask << (4 * j + 2)))
                                       : _mm512_and_si512(_mm512_srlv_epi64(low, halves(4 * j, 4 * j + 2)), bytes(3));
        }
        const __m512i packed = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        const __m512i scale = _mm512_and_si512(packed, _mm512_set1_epi32(15)), minimum = _mm512_srli_epi32(packed, 4);
        u.scale = _mm512_mul_ps(_mm512_set1_ps(half(p + 80)), _mm512_cvtepi32_ps(scale));
        u.offset16 = _mm512_mul_ps(_mm512_set1_ps(half(p + 82)), _mm512_cvtepi32_ps(minimum));
    }
};

}  // namespace
}  // namespace jamba
