// Unpacking of 256 values of each block format into four AVX-512 registers of bytes, in the order of the values. Include
// only from files compiled for AVX-512.
//
// Each format has, besides Of256: kGroup, the values that share a scale (32 or 16); kSigned, whether the bytes are int8
// (else they are below 64); kOffset, whether `offset` is used. The value is scale * byte - offset, with `scale` and `offset`
// holding one float per group (8 or 16 of them).
#pragma once

#include <immintrin.h>

#include "base/formats.h"

namespace jamba {
namespace {

struct Unpacked {
    __m512i w[4];
    __m512 scale, offset;
};

inline __m512 widen(__m256 x) { return _mm512_zextps256_ps512(x); }
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

// The factors of eight blocks.
template <class Block>
inline __m256 eight_scales(const Block* b) {
    __m128i h = _mm_cvtsi32_si128(read_u16(&b[0].d));
    h = _mm_insert_epi16(h, read_u16(&b[1].d), 1);
    h = _mm_insert_epi16(h, read_u16(&b[2].d), 2);
    h = _mm_insert_epi16(h, read_u16(&b[3].d), 3);
    h = _mm_insert_epi16(h, read_u16(&b[4].d), 4);
    h = _mm_insert_epi16(h, read_u16(&b[5].d), 5);
    h = _mm_insert_epi16(h, read_u16(&b[6].d), 6);
    h = _mm_insert_epi16(h, read_u16(&b[7].d), 7);
    return _mm256_cvtph_ps(h);
}

// The factor and the minimum, which follow each other, of each of eight blocks.
template <class Block>
inline void eight_scales_and_minimums(const Block* b, __m256& first, __m256& second) {
    const auto word = [&](int i) { return static_cast<int>(read_u32(b + i)); };
    const __m256i x = _mm256_setr_epi32(word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7));
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,  //
                                           0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    const __m256i split = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(x, order), 0xD8);
    first = _mm256_cvtph_ps(_mm256_castsi256_si128(split));
    second = _mm256_cvtph_ps(_mm256_extracti128_si256(split, 1));
}

// Nibbles of two 16-byte halves, 32 values each: the low nibbles come first.
inline __m512i two_nibble_blocks(const uint8_t* a, const uint8_t* b) {
    const __m512i first = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a)));
    const __m512i both =
        _mm512_mask_broadcast_i32x4(first, 0xFF00, _mm_loadu_si128(reinterpret_cast<const __m128i*>(b)));
    return _mm512_and_si512(_mm512_srlv_epi64(both, low_high_nibbles()), bytes(15));
}

// 64 bits to 64 bytes, 0 or `value`.
inline __m512i spread_bits(uint64_t bits, int value) { return _mm512_maskz_mov_epi8(bits, bytes(value)); }

struct Q4_0 : Of256<block_q4_0> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = false, kOffset = true;
    static inline void unpack(const Block* b, Unpacked& u) {
        for (int k = 0; k < 4; ++k) u.w[k] = two_nibble_blocks(b[2 * k].qs, b[2 * k + 1].qs);
        u.scale = widen(eight_scales(b));
        u.offset = _mm512_mul_ps(u.scale, _mm512_set1_ps(8.0f));
    }
};

struct Q4_1 : Of256<block_q4_1> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = false, kOffset = true;
    static inline void unpack(const Block* b, Unpacked& u) {
        for (int k = 0; k < 4; ++k) u.w[k] = two_nibble_blocks(b[2 * k].qs, b[2 * k + 1].qs);
        __m256 scale, minimum;
        eight_scales_and_minimums(b, scale, minimum);
        u.scale = widen(scale);
        u.offset = _mm512_sub_ps(_mm512_setzero_ps(), widen(minimum));
    }
};

struct Q5_0 : Of256<block_q5_0> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = false, kOffset = true;
    static inline void unpack(const Block* b, Unpacked& u) {
        for (int k = 0; k < 4; ++k) {
            const Block &first = b[2 * k], &second = b[2 * k + 1];
            const uint64_t high = read_u32(first.qh) | static_cast<uint64_t>(read_u32(second.qh)) << 32;
            u.w[k] = _mm512_or_si512(two_nibble_blocks(first.qs, second.qs), spread_bits(high, 16));
        }
        u.scale = widen(eight_scales(b));
        u.offset = _mm512_mul_ps(u.scale, _mm512_set1_ps(16.0f));
    }
};

struct Q5_1 : Of256<block_q5_1> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = false, kOffset = true;
    static inline void unpack(const Block* b, Unpacked& u) {
        for (int k = 0; k < 4; ++k) {
            const Block &first = b[2 * k], &second = b[2 * k + 1];
            const uint64_t high = read_u32(first.qh) | static_cast<uint64_t>(read_u32(second.qh)) << 32;
            u.w[k] = _mm512_or_si512(two_nibble_blocks(first.qs, second.qs), spread_bits(high, 16));
        }
        __m256 scale, minimum;
        eight_scales_and_minimums(b, scale, minimum);
        u.scale = widen(scale);
        u.offset = _mm512_sub_ps(_mm512_setzero_ps(), widen(minimum));
    }
};

struct Q8_0 : Of256<block_q8_0> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = true, kOffset = false;
    static inline void unpack(const Block* b, Unpacked& u) {
        for (int k = 0; k < 4; ++k) {
            const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b[2 * k].qs));
            const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b[2 * k + 1].qs));
            u.w[k] = _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
        }
        u.scale = widen(eight_scales(b));
    }
};

struct I8 : Of256<block_i8> {  // rows with one factor, applied to the finished sum
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = true, kOffset = false;
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
    static constexpr bool kSigned = true, kOffset = false;
    static inline void unpack(const Block* b, Unpacked& u) {
        for (int k = 0; k < 4; ++k) u.w[k] = iq4_values(two_nibble_blocks(b[2 * k].qs, b[2 * k + 1].qs));
        u.scale = widen(eight_scales(b));
    }
};

struct IQ4_XS : Of256<block_iq4_xs> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = true, kOffset = false;
    static inline void unpack(const Block* b, Unpacked& u) {
        for (int k = 0; k < 4; ++k) u.w[k] = iq4_values(two_nibble_blocks(b->qs + 32 * k, b->qs + 32 * k + 16));
        const __m256i shifts = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
        const __m256i high = _mm256_slli_epi32(
            _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(read_u16(b->scales_h)), shifts), _mm256_set1_epi32(3)), 4);
        const __m256i nibble = _mm256_slli_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), 2);
        const __m256i low = _mm256_and_si256(
            _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(read_u32(b->scales_l))), nibble), _mm256_set1_epi32(15));
        const __m256i scale = _mm256_sub_epi32(_mm256_or_si256(low, high), _mm256_set1_epi32(32));
        u.scale = widen(_mm256_mul_ps(_mm256_set1_ps(to_float(b->d)), _mm256_cvtepi32_ps(scale)));
    }
};

// The 6-bit scales and minimums of Q4_K and Q5_K, times their f16 factors.
template <class Block>
inline void k_scales(const Block& block, Unpacked& u) {
    const uint32_t a = read_u32(block.scales), b = read_u32(block.scales + 4), c = read_u32(block.scales + 8);
    const uint64_t scale_low = a & 0x3f3f3f3fu, min_low = b & 0x3f3f3f3fu;
    const uint64_t scale_high = (c & 0x0f0f0f0fu) | ((a >> 2) & 0x30303030u);
    const uint64_t min_high = ((c >> 4) & 0x0f0f0f0fu) | ((b >> 2) & 0x30303030u);
    const __m128i packed = _mm_set_epi64x(static_cast<int64_t>(min_low | min_high << 32),
                                          static_cast<int64_t>(scale_low | scale_high << 32));
    const __m512 both = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(packed));
    const __m256 scale = _mm512_castps512_ps256(both), minimum = _mm512_extractf32x8_ps(both, 1);
    u.scale = widen(_mm256_mul_ps(scale, _mm256_set1_ps(to_float(block.d))));
    u.offset = widen(_mm256_mul_ps(minimum, _mm256_set1_ps(to_float(block.dmin))));
}

struct Q4_K : Of256<block_q4_k> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = false, kOffset = true;
    static inline void unpack(const Block* b, Unpacked& u) {
        for (int k = 0; k < 4; ++k)
            u.w[k] = _mm512_and_si512(_mm512_srlv_epi64(load32x2(b->qs + 32 * k), halves(0, 4)), bytes(15));
        k_scales(*b, u);
    }
};

struct Q5_K : Of256<block_q5_k> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = false, kOffset = true;
    static inline void unpack(const Block* b, Unpacked& u) {
        const __m512i high = load32x2(b->qh);  // bit j of byte i: the fifth bit of value 32 j + i
        for (int k = 0; k < 4; ++k) {
            const __m512i low =
                _mm512_and_si512(_mm512_srlv_epi64(load32x2(b->qs + 32 * k), halves(0, 4)), bytes(15));
            const __m512i bit = _mm512_rolv_epi64(high, halves((64 + 4 - 2 * k) & 63, (64 + 3 - 2 * k) & 63));
            u.w[k] = and_or(bit, bytes(16), low);
        }
        k_scales(*b, u);
    }
};

struct Q6_K : Of256<block_q6_k> {
    static constexpr int kGroup = 16;
    static constexpr bool kSigned = false, kOffset = true;
    static inline void unpack(const Block* b, Unpacked& u) {
        for (int h = 0; h < 2; ++h) {
            const __m512i low = load64(b->ql + 64 * h), high = load32x2(b->qh + 32 * h);
            u.w[2 * h] = and_or(_mm512_rolv_epi64(high, halves(4, 2)), bytes(0x30), _mm512_and_si512(low, bytes(15)));
            u.w[2 * h + 1] = and_or(_mm512_rolv_epi64(high, halves(0, 62)), bytes(0x30),
                                    _mm512_and_si512(_mm512_srli_epi64(low, 4), bytes(15)));
        }
        const __m512i scale = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b->scales)));
        u.scale = _mm512_mul_ps(_mm512_set1_ps(to_float(b->d)), _mm512_cvtepi32_ps(scale));
        u.offset = _mm512_mul_ps(u.scale, _mm512_set1_ps(32.0f));
    }
};

struct Q3_K : Of256<block_q3_k> {
    static constexpr int kGroup = 16;
    static constexpr bool kSigned = false, kOffset = true;
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
        const __m128i six = _mm_set_epi64x(static_cast<int64_t>(third | fourth << 32),
                                           static_cast<int64_t>(first | second << 32));
        const __m512i scale = _mm512_sub_epi32(_mm512_cvtepu8_epi32(six), _mm512_set1_epi32(32));
        u.scale = _mm512_mul_ps(_mm512_set1_ps(to_float(b->d)), _mm512_cvtepi32_ps(scale));
        u.offset = _mm512_mul_ps(u.scale, _mm512_set1_ps(4.0f));
    }
};

struct Q2_K : Of256<block_q2_k> {
    static constexpr int kGroup = 16;
    static constexpr bool kSigned = false, kOffset = true;
    static inline void unpack(const Block* b, Unpacked& u) {
        for (int h = 0; h < 2; ++h) {
            const __m512i low = load32x2(b->qs + 32 * h);
            for (int j = 0; j < 2; ++j)
                u.w[2 * h + j] = _mm512_and_si512(_mm512_srlv_epi64(low, halves(4 * j, 4 * j + 2)), bytes(3));
        }
        const __m512i packed = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b->scales)));
        const __m512i scale = _mm512_and_si512(packed, _mm512_set1_epi32(15)), minimum = _mm512_srli_epi32(packed, 4);
        u.scale = _mm512_mul_ps(_mm512_set1_ps(to_float(b->d)), _mm512_cvtepi32_ps(scale));
        u.offset = _mm512_mul_ps(_mm512_set1_ps(to_float(b->dmin)), _mm512_cvtepi32_ps(minimum));
    }
};

}  // namespace
}  // namespace jamba
