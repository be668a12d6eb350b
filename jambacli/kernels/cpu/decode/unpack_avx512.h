// Unpacking of 256 values of each block format into four AVX-512 registers of bytes for products with int8. Include only
// from files compiled for AVX-512.
//
// Each format has, besides Of256: kGroup, the values that share a scale (32 or 16); kSigned, whether the bytes are int8
// (else unsigned); kLanes, by what the lanes of the sums are divided at the end, since a format's bits stay where they lie in
// the byte. `scale` holds, for groups of 16, sixteen factors; for groups of 32, [factors 0-3, offsets 0-3, factors 4-7,
// offsets 4-7]. The value is factor * byte - kBias * offset; where the offset is a multiple of the factor, `scale` repeats
// the factor.
//
// These processors have two ports for 512-bit operations, so the number of vector operations is what a block costs: scales
// are assembled in general registers, and offsets share a vector with the scales.
//
// With VNNI bytes may use all eight bits (kFullBytes); without it two products must fit 16 bits.
#pragma once

#include <immintrin.h>

#include "base/formats.h"

namespace jamba {
namespace {

#if defined(__AVX512VNNI__)
constexpr bool kFullBytes = true;
#else
constexpr bool kFullBytes = false;
#endif

struct Unpacked {
    __m512i w[4];
    __m512 scale;
    __m512 offset16;  // of groups of 16: one per group, the factor itself where the offset is a multiple of it
};

// The scaling of the sums' lanes: none; lanes 8-15 by 1/16; lanes 4-7 and 12-15 by 1/16; by 4^-j for Q2_K.
enum class Lanes { kPlain, kHalves, kQuarters, kTwoBits };

inline __m512i bytes(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
inline __m512i load64(const void* p) { return _mm512_loadu_si512(p); }
inline __m512i load32x2(const void* p) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
inline float to_float(const Half& half) { return _cvtsh_ss(read_u16(&half)); }
// (x & mask) | y
inline __m512i and_or(__m512i x, __m512i mask, __m512i y) { return _mm512_ternarylogic_epi64(x, mask, y, 0xEA); }
// Lanes 0-3 shifted by a, lanes 4-7 by b.
inline __m512i halves(int64_t a, int64_t b) { return _mm512_setr_epi64(a, a, a, a, b, b, b, b); }
inline __m512i low_high_nibbles() { return _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4); }

// The f16 factors of four blocks as one 64-bit number, kept out of the vector ports.
template <class Block>
inline uint64_t four_factors(const Block* b) {
    uint64_t x = read_u16(&b[0].d);
    x |= static_cast<uint64_t>(read_u16(&b[1].d)) << 16;
    x |= static_cast<uint64_t>(read_u16(&b[2].d)) << 32;
    x |= static_cast<uint64_t>(read_u16(&b[3].d)) << 48;
    return x;
}

inline __m128i two_longs(uint64_t low, uint64_t high) {
    return _mm_unpacklo_epi64(_mm_cvtsi64_si128(static_cast<int64_t>(low)), _mm_cvtsi64_si128(static_cast<int64_t>(high)));
}

// The factors of eight blocks, as `scale` of a format with a constant offset.
template <class Block>
inline __m512 eight_scales(const Block* b) {
    const __m256 eight = _mm256_cvtph_ps(two_longs(four_factors(b), four_factors(b + 4)));
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7);
    return _mm512_permutexvar_ps(order, _mm512_castps256_ps512(eight));
}

// The factor and the minimum, which follow each other, of each of eight blocks.
template <class Block>
inline __m512 eight_scales_and_minimums(const Block* b) {
    const auto pair = [&](int i) { return read_u32(b + i) | static_cast<uint64_t>(read_u32(b + i + 1)) << 32; };
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

struct Q4_0 : Of256<block_q4_0> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = false;
    static constexpr float kBias = 8.0f;
    static constexpr Lanes kLanes = kFullBytes ? Lanes::kQuarters : Lanes::kPlain;
    static inline void unpack(const Block* b, Unpacked& u) {
        for (int k = 0; k < 4; ++k) {
            const uint8_t *first = b[2 * k].qs, *second = b[2 * k + 1].qs;
            u.w[k] = kFullBytes ? two_nibble_blocks_in_place(first, second) : two_nibble_blocks(first, second);
        }
        u.scale = eight_scales(b);
    }
};

struct Q4_1 : Of256<block_q4_1> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = false;
    static constexpr float kBias = -1.0f;
    static constexpr Lanes kLanes = kFullBytes ? Lanes::kQuarters : Lanes::kPlain;
    static inline void unpack(const Block* b, Unpacked& u) {
        for (int k = 0; k < 4; ++k) {
            const uint8_t *first = b[2 * k].qs, *second = b[2 * k + 1].qs;
            u.w[k] = kFullBytes ? two_nibble_blocks_in_place(first, second) : two_nibble_blocks(first, second);
        }
        u.scale = eight_scales_and_minimums(b);
    }
};

struct Q5_0 : Of256<block_q5_0> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = false;
    static constexpr float kBias = 16.0f;
    static constexpr Lanes kLanes = Lanes::kPlain;
    static inline void unpack(const Block* b, Unpacked& u) {
        for (int k = 0; k < 4; ++k) {
            const Block &first = b[2 * k], &second = b[2 * k + 1];
            const uint64_t high = read_u32(first.qh) | static_cast<uint64_t>(read_u32(second.qh)) << 32;
            u.w[k] = add_where(two_nibble_blocks(first.qs, second.qs), high, 16);
        }
        u.scale = eight_scales(b);
    }
};

struct Q5_1 : Of256<block_q5_1> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = false;
    static constexpr float kBias = -1.0f;
    static constexpr Lanes kLanes = Lanes::kPlain;
    static inline void unpack(const Block* b, Unpacked& u) {
        for (int k = 0; k < 4; ++k) {
            const Block &first = b[2 * k], &second = b[2 * k + 1];
            const uint64_t high = read_u32(first.qh) | static_cast<uint64_t>(read_u32(second.qh)) << 32;
            u.w[k] = add_where(two_nibble_blocks(first.qs, second.qs), high, 16);
        }
        u.scale = eight_scales_and_minimums(b);
    }
};

struct Q8_0 : Of256<block_q8_0> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = true;
    static constexpr float kBias = 128.0f;
    static constexpr Lanes kLanes = Lanes::kPlain;
    static inline void unpack(const Block* b, Unpacked& u) {
        for (int k = 0; k < 4; ++k) {
            const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b[2 * k].qs));
            const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b[2 * k + 1].qs));
            u.w[k] = _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
        }
        u.scale = eight_scales(b);
    }
};

struct I8 : Of256<block_i8> {  // rows with one factor, applied to the finished sum
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = true;
    static constexpr float kBias = 128.0f;
    static constexpr Lanes kLanes = Lanes::kPlain;
    static inline void unpack(const Block* b, Unpacked& u) {
        for (int k = 0; k < 4; ++k) u.w[k] = load64(b + 64 * k);
        u.scale = _mm512_set1_ps(1.0f);
    }
};

// Codes 0-15 to the IQ4 values. (Bytes are int8, so kSigned.)
inline __m512i iq4_values(__m512i codes) {
    const __m512i table = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(kIq4Values)));
    return _mm512_shuffle_epi8(table, codes);
}

struct IQ4_NL : Of256<block_iq4_nl> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = true;
    static constexpr float kBias = 128.0f;
    static constexpr Lanes kLanes = Lanes::kPlain;
    static inline void unpack(const Block* b, Unpacked& u) {
        for (int k = 0; k < 4; ++k) u.w[k] = iq4_values(two_nibble_blocks(b[2 * k].qs, b[2 * k + 1].qs));
        u.scale = eight_scales(b);
    }
};

struct IQ4_XS : Of256<block_iq4_xs> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = true;
    static constexpr float kBias = 128.0f;
    static constexpr Lanes kLanes = Lanes::kPlain;
    static inline void unpack(const Block* b, Unpacked& u) {
        for (int k = 0; k < 4; ++k) u.w[k] = iq4_values(two_nibble_blocks(b->qs + 32 * k, b->qs + 32 * k + 16));
        // Lanes as in `scale` of a format with a constant offset: groups 0-3 twice, then 4-7 twice.
        const __m512i pairs = _mm512_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6, 8, 10, 12, 14, 8, 10, 12, 14);
        const __m512i fours = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 16, 20, 24, 28, 16, 20, 24, 28);
        const __m512i high = _mm512_srlv_epi32(_mm512_set1_epi32(read_u16(b->scales_h) << 4), pairs);
        const __m512i low = _mm512_srlv_epi32(_mm512_set1_epi32(static_cast<int>(read_u32(b->scales_l))), fours);
        const __m512i six = and_or(high, _mm512_set1_epi32(48), _mm512_and_si512(low, _mm512_set1_epi32(15)));
        u.scale = _mm512_mul_ps(_mm512_set1_ps(to_float(b->d)), _mm512_cvtepi32_ps(_mm512_sub_epi32(six, _mm512_set1_epi32(32))));
    }
};

// The 6-bit scales and minimums of Q4_K and Q5_K, times their f16 factors.
template <class Block>
inline __m512 k_scales(const Block* b) {
    const uint64_t ab = read_u64(b->scales), c = read_u32(b->scales + 8);
    const uint64_t low = ab & 0x3f3f3f3f3f3f3f3fu;
    const uint64_t high = ((c | c << 28) & 0x0f0f0f0f0f0f0f0fu) | ((ab >> 2) & 0x3030303030303030u);
    const __m512 six = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(two_longs(low, high)));
    const __m128 factors = _mm_cvtph_ps(_mm_cvtsi32_si128(static_cast<int>(read_u32(b))));  // d, dmin
    const __m512i order = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1);
    return _mm512_mul_ps(six, _mm512_permutexvar_ps(order, _mm512_castps128_ps512(factors)));
}

struct Q4_K : Of256<block_q4_k> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = false;
    static constexpr float kBias = 1.0f;
    static constexpr Lanes kLanes = kFullBytes ? Lanes::kHalves : Lanes::kPlain;
    static inline void unpack(const Block* b, Unpacked& u) {
        const int64_t low = 0x0f0f0f0f0f0f0f0f, high = static_cast<int64_t>(0xf0f0f0f0f0f0f0f0u);
        for (int k = 0; k < 4; ++k) {
            const __m512i x = load32x2(b->qs + 32 * k);
            u.w[k] = kFullBytes ? _mm512_and_si512(x, halves(low, high))
                           : _mm512_and_si512(_mm512_srlv_epi64(x, halves(0, 4)), bytes(15));
        }
        u.scale = k_scales(b);
    }
};

struct Q5_K : Of256<block_q5_k> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = false;
    static constexpr float kBias = 1.0f;
    static constexpr Lanes kLanes = Lanes::kPlain;
    static inline void unpack(const Block* b, Unpacked& u) {
        const __m512i high = load32x2(b->qh);  // bit j of byte i: the fifth bit of value 32 j + i
        for (int k = 0; k < 4; ++k) {
            const __m512i low =
                _mm512_and_si512(_mm512_srlv_epi64(load32x2(b->qs + 32 * k), halves(0, 4)), bytes(15));
            const __m512i bit = _mm512_rolv_epi64(high, halves((64 + 4 - 2 * k) & 63, (64 + 3 - 2 * k) & 63));
            u.w[k] = and_or(bit, bytes(16), low);
        }
        u.scale = k_scales(b);
    }
};

struct Q6_K : Of256<block_q6_k> {
    static constexpr int kGroup = 16;
    static constexpr bool kSigned = false;
    static constexpr float kBias = 32.0f;
    static constexpr Lanes kLanes = Lanes::kPlain;
    static inline void unpack(const Block* b, Unpacked& u) {
        for (int h = 0; h < 2; ++h) {
            const __m512i low = load64(b->ql + 64 * h), high = load32x2(b->qh + 32 * h);
            u.w[2 * h] = and_or(_mm512_rolv_epi64(high, halves(4, 2)), bytes(0x30), _mm512_and_si512(low, bytes(15)));
            u.w[2 * h + 1] = and_or(_mm512_rolv_epi64(high, halves(0, 62)), bytes(0x30),
                                    _mm512_and_si512(_mm512_srli_epi64(low, 4), bytes(15)));
        }
        const __m512i scale = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b->scales)));
        u.scale = u.offset16 = _mm512_mul_ps(_mm512_set1_ps(to_float(b->d)), _mm512_cvtepi32_ps(scale));
    }
};

struct Q3_K : Of256<block_q3_k> {
    static constexpr int kGroup = 16;
    static constexpr bool kSigned = false;
    static constexpr float kBias = 4.0f;
    static constexpr Lanes kLanes = Lanes::kPlain;
    static inline void unpack(const Block* b, Unpacked& u) {
        const __m512i high = load32x2(b->hmask);  // bit 4 h + j of byte i: the third bit of value 128 h + 32 j + i
        for (int h = 0; h < 2; ++h) {
            const __m512i low = load32x2(b->qs + 32 * h);
            for (int j = 0; j < 2; ++j) {
                const int bit = 4 * h + 2 * j;
                const __m512i two = _mm512_and_si512(_mm512_srlv_epi64(low, halves(4 * j, 4 * j + 2)), bytes(3));
                u.w[2 * h + j] =
                    and_or(_mm512_rolv_epi64(high, halves((64 + 2 - bit) & 63, (64 + 1 - bit) & 63)), bytes(4), two);
            }
        }
        const uint32_t low0 = read_u32(b->scales), low1 = read_u32(b->scales + 4), c = read_u32(b->scales + 8);
        const uint64_t first = (low0 & 0x0f0f0f0fu) | ((c << 4) & 0x30303030u);
        const uint64_t second = (low1 & 0x0f0f0f0fu) | ((c << 2) & 0x30303030u);
        const uint64_t third = ((low0 >> 4) & 0x0f0f0f0fu) | (c & 0x30303030u);
        const uint64_t fourth = ((low1 >> 4) & 0x0f0f0f0fu) | ((c >> 2) & 0x30303030u);
        const __m128i six = two_longs(first | second << 32, third | fourth << 32);
        const __m512i scale = _mm512_sub_epi32(_mm512_cvtepu8_epi32(six), _mm512_set1_epi32(32));
        u.scale = u.offset16 = _mm512_mul_ps(_mm512_set1_ps(to_float(b->d)), _mm512_cvtepi32_ps(scale));
    }
};

struct Q2_K : Of256<block_q2_k> {
    static constexpr int kGroup = 16;
    static constexpr bool kSigned = false;
    static constexpr float kBias = 1.0f;
    static constexpr Lanes kLanes = kFullBytes ? Lanes::kTwoBits : Lanes::kPlain;
    static inline void unpack(const Block* b, Unpacked& u) {
        const int64_t mask = 0x0303030303030303;
        for (int h = 0; h < 2; ++h) {
            const __m512i low = load32x2(b->qs + 32 * h);
            for (int j = 0; j < 2; ++j)
                u.w[2 * h + j] = kFullBytes ? _mm512_and_si512(low, halves(mask << 4 * j, mask << (4 * j + 2)))
                                       : _mm512_and_si512(_mm512_srlv_epi64(low, halves(4 * j, 4 * j + 2)), bytes(3));
        }
        const __m512i packed = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b->scales)));
        const __m512i scale = _mm512_and_si512(packed, _mm512_set1_epi32(15)), minimum = _mm512_srli_epi32(packed, 4);
        u.scale = _mm512_mul_ps(_mm512_set1_ps(to_float(b->d)), _mm512_cvtepi32_ps(scale));
        u.offset16 = _mm512_mul_ps(_mm512_set1_ps(to_float(b->dmin)), _mm512_cvtepi32_ps(minimum));
    }
};

}  // namespace
}  // namespace jamba
