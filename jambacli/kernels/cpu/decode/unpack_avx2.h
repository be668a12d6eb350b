// Unpacking of 256 values of each block format into eight AVX2 registers of 32 bytes, in the order of the values. Include
// only from files compiled for AVX2. The formats are described as in prefill/unpack_avx512.h.
#pragma once

#include <immintrin.h>

#include "base/formats.h"

// Compilers leave functions out of line here that are used twice, with the unpacked weights in memory.
#define INLINE inline __attribute__((always_inline))

namespace jamba {
namespace {

struct Unpacked {
    __m256i w[8];
    __m256 scale[2], offset[2];  // of groups of 32: only the first of each
};

// A block whose scales are integers. The value is factor * scale * (w - kBias), less offset.
struct UnpackedIntegers {
    __m256i w[8];
    __m256i scale;    // int16: of groups of 32 each twice; of groups of 16 as even_and_odd() has them
    __m256i minimum;  // Q2_K: as even_and_odd() has them
    __m256 factor;    // in all lanes
    __m256 offset;    // of groups of 32: float; Q2_K: the factor of minimums, in all lanes
};

INLINE __m256i bytes(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
INLINE __m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
INLINE float to_float(const Half& half) { return _cvtsh_ss(read_u16(&half)); }

// The values of all f16. Loads have ports of their own; a conversion takes three operations on those that multiply.
alignas(64) float half_values[1 << 16];

inline void fill_half_values() {
    const __m128i eight = _mm_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7);
    for (int i = 0; i < 1 << 16; i += 8)
        _mm256_store_ps(half_values + i, _mm256_cvtph_ps(_mm_add_epi16(eight, _mm_set1_epi16(static_cast<short>(i)))));
}

INLINE __m256 repeated(const Half& half) { return _mm256_broadcast_ss(half_values + read_u16(&half)); }
INLINE __m256i low_bits(__m256i x, int shift, int mask) {
    return _mm256_and_si256(shift ? _mm256_srli_epi16(x, shift) : x, bytes(mask));
}

// x moved left by kLeft bits, right where it is negative; bits cross from byte to byte.
template <int kLeft>
INLINE __m256i moved(__m256i x) {
    if constexpr (kLeft > 0) return _mm256_slli_epi16(x, kLeft);
    if constexpr (kLeft < 0) return _mm256_srli_epi16(x, -kLeft);
    return x;
}

// 16 bytes to 32 nibbles: the low ones come first.
INLINE __m256i nibble_block(const uint8_t* p) {
    const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_and_si256(_mm256_srlv_epi64(twice, _mm256_setr_epi64x(0, 0, 4, 4)), bytes(15));
}

// 32 bits to 32 bytes, 0 or `value`.
INLINE __m256i spread_bits(uint32_t bits, int value) {
    const __m256i order = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i each = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
    const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), order);
    return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(spread, each), each), bytes(value));
}

// Sixteen signed bytes as int16, times 256: the even ones in the low lane, the odd ones in the high lane.
INLINE __m256i even_and_odd(__m128i bytes) {
    const __m256i order = _mm256_setr_epi8(-1, 0, -1, 2, -1, 4, -1, 6, -1, 8, -1, 10, -1, 12, -1, 14,  //
                                           -1, 1, -1, 3, -1, 5, -1, 7, -1, 9, -1, 11, -1, 13, -1, 15);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), order);
}

// One f16 field of each of eight blocks.
template <class Block>
INLINE __m256 eight_halves(const Block* b, Half Block::*field) {
    const auto at = [&](int i) { return static_cast<short>(read_u16(&(b[i].*field))); };
    return _mm256_cvtph_ps(_mm_setr_epi16(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)));
}

INLINE __m256 negated(__m256 x) { return _mm256_sub_ps(_mm256_setzero_ps(), x); }
INLINE __m256 times(__m256 x, float by) { return _mm256_mul_ps(x, _mm256_set1_ps(by)); }

struct Q4_0 : Of256<block_q4_0> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = false, kOffset = true, kIntegerScales = false;
    template <int k>
    static INLINE __m256i weight(const Block* b) {
        return nibble_block(b[k].qs);
    }
    static INLINE void factors(const Block* b, Unpacked& u) {
        u.scale[0] = eight_halves(b, &Block::d);
        u.offset[0] = times(u.scale[0], 8.0f);
    }
};

struct Q4_1 : Of256<block_q4_1> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = false, kOffset = true, kIntegerScales = false;
    template <int k>
    static INLINE __m256i weight(const Block* b) {
        return nibble_block(b[k].qs);
    }
    static INLINE void factors(const Block* b, Unpacked& u) {
        u.scale[0] = eight_halves(b, &Block::d);
        u.offset[0] = negated(eight_halves(b, &Block::m));
    }
};

struct Q5_0 : Of256<block_q5_0> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = false, kOffset = true, kIntegerScales = false;
    template <int k>
    static INLINE __m256i weight(const Block* b) {
        return _mm256_or_si256(nibble_block(b[k].qs), spread_bits(read_u32(b[k].qh), 16));
    }
    static INLINE void factors(const Block* b, Unpacked& u) {
        u.scale[0] = eight_halves(b, &Block::d);
        u.offset[0] = times(u.scale[0], 16.0f);
    }
};

struct Q5_1 : Of256<block_q5_1> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = false, kOffset = true, kIntegerScales = false;
    template <int k>
    static INLINE __m256i weight(const Block* b) {
        return _mm256_or_si256(nibble_block(b[k].qs), spread_bits(read_u32(b[k].qh), 16));
    }
    static INLINE void factors(const Block* b, Unpacked& u) {
        u.scale[0] = eight_halves(b, &Block::d);
        u.offset[0] = negated(eight_halves(b, &Block::m));
    }
};

struct Q8_0 : Of256<block_q8_0> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = true, kOffset = false, kIntegerScales = false;
    template <int k>
    static INLINE __m256i weight(const Block* b) {
        return load32(b[k].qs);
    }
    static INLINE void factors(const Block* b, Unpacked& u) { u.scale[0] = eight_halves(b, &Block::d); }
};

struct I8 : Of256<block_i8> {  // rows with one factor, applied to the finished sum
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = true, kOffset = false, kIntegerScales = false;
    template <int k>
    static INLINE __m256i weight(const Block* b) {
        return load32(b + 32 * k);
    }
    static INLINE void factors(const Block*, Unpacked& u) { u.scale[0] = _mm256_set1_ps(1.0f); }
};

INLINE __m256i iq4_values(__m256i codes) {
    const __m128i table = _mm_load_si128(reinterpret_cast<const __m128i*>(kIq4Values));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), codes);
}

struct IQ4_NL : Of256<block_iq4_nl> {
    static constexpr int kGroup = 32;
    static constexpr bool kSigned = true, kOffset = false, kIntegerScales = false;
    template <int k>
    static INLINE __m256i weight(const Block* b) {
        return iq4_values(nibble_block(b[k].qs));
    }
    static INLINE void factors(const Block* b, Unpacked& u) { u.scale[0] = eight_halves(b, &Block::d); }
};

struct IQ4_XS : Of256<block_iq4_xs> {
    static constexpr int kGroup = 32, kBias = 0;
    static constexpr bool kSigned = true, kOffset = false, kIntegerScales = true;
    template <int k>
    static INLINE __m256i weight(const Block* b) {
        return iq4_values(nibble_block(b->qs + 16 * k));
    }
    // The eight scales, int32.
    static INLINE __m256i scales(const Block* b) {
        const __m256i pairs = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
        const __m256i fours = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
        const __m256i high = _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(read_u16(b->scales_h) << 4), pairs),
                                              _mm256_set1_epi32(48));
        const __m256i low = _mm256_and_si256(
            _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(read_u32(b->scales_l))), fours), _mm256_set1_epi32(15));
        return _mm256_sub_epi32(_mm256_or_si256(low, high), _mm256_set1_epi32(32));
    }
    static INLINE void factors(const Block* b, Unpacked& u) {
        u.scale[0] = times(_mm256_cvtepi32_ps(scales(b)), to_float(b->d));
    }
    static INLINE void integers(const Block* b, UnpackedIntegers& u) {
        const __m256i twice = _mm256_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13,  //
                                               0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13);
        u.scale = _mm256_shuffle_epi8(scales(b), twice);
        u.factor = repeated(b->d);
    }
};

INLINE __m256 byte_floats(uint64_t eight) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(eight))));
}

// The eight 6-bit scales and minimums of Q4_K and Q5_K, a byte each.
struct SixBits {
    uint64_t scales, minimums;
};

INLINE SixBits six_bits(const uint8_t* packed) {
    const uint32_t a = read_u32(packed), b = read_u32(packed + 4), c = read_u32(packed + 8);
    const uint64_t scale_high = (c & 0x0f0f0f0fu) | ((a >> 2) & 0x30303030u);
    const uint64_t min_high = ((c >> 4) & 0x0f0f0f0fu) | ((b >> 2) & 0x30303030u);
    return {(a & 0x3f3f3f3fu) | scale_high << 32, (b & 0x3f3f3f3fu) | min_high << 32};
}

template <class Block>
INLINE void k_factors(const Block& block, Unpacked& u) {
    const SixBits six = six_bits(block.scales);
    u.scale[0] = times(byte_floats(six.scales), to_float(block.d));
    u.offset[0] = times(byte_floats(six.minimums), to_float(block.dmin));
}

template <class Block>
INLINE void k_integers(const Block& block, UnpackedIntegers& u) {
    // In each lane: scales 0-3, minimums 0-3, scales 4-7, minimums 4-7.
    constexpr int kSix = 0x3f3f3f3f, kFour = 0x0f0f0f0f, kTop = 0x30303030;
    const __m256i first = _mm256_set1_epi64x(static_cast<int64_t>(read_u64(block.scales)));
    const __m256i last = _mm256_set1_epi32(static_cast<int>(read_u32(block.scales + 8)));
    const __m256i bytes = _mm256_or_si256(
        _mm256_and_si256(_mm256_srlv_epi32(first, _mm256_setr_epi32(0, 0, 2, 2, 0, 0, 2, 2)),
                         _mm256_setr_epi32(kSix, kSix, kTop, kTop, kSix, kSix, kTop, kTop)),
        _mm256_and_si256(_mm256_srlv_epi32(last, _mm256_setr_epi32(0, 0, 0, 4, 0, 0, 0, 4)),
                         _mm256_setr_epi32(0, 0, kFour, kFour, 0, 0, kFour, kFour)));
    const __m256i twice = _mm256_setr_epi8(0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1,  //
                                           8, -1, 8, -1, 9, -1, 9, -1, 10, -1, 10, -1, 11, -1, 11, -1);
    const __m256i minimums = _mm256_setr_epi8(4, -1, -1, -1, 5, -1, -1, -1, 6, -1, -1, -1, 7, -1, -1, -1,  //
                                              12, -1, -1, -1, 13, -1, -1, -1, 14, -1, -1, -1, 15, -1, -1, -1);
    u.scale = _mm256_shuffle_epi8(bytes, twice);
    u.factor = repeated(block.d);
    u.offset = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_shuffle_epi8(bytes, minimums)), repeated(block.dmin));
}

struct Q4_K : Of256<block_q4_k> {
    static constexpr int kGroup = 32, kBias = 0;
    static constexpr bool kSigned = false, kOffset = true, kIntegerScales = true;
    template <int k>
    static INLINE __m256i weight(const Block* b) {
        return low_bits(load32(b->qs + 32 * (k / 2)), 4 * (k % 2), 15);
    }
    static INLINE void factors(const Block* b, Unpacked& u) { k_factors(*b, u); }
    static INLINE void integers(const Block* b, UnpackedIntegers& u) { k_integers(*b, u); }
};

struct Q5_K : Of256<block_q5_k> {
    static constexpr int kGroup = 32, kBias = 0;
    static constexpr bool kSigned = false, kOffset = true, kIntegerScales = true;
    template <int k>
    static INLINE __m256i weight(const Block* b) {  // bit j of byte i of qh: the fifth bit of value 32 j + i
        const __m256i fifth = _mm256_and_si256(moved<4 - k>(load32(b->qh)), bytes(16));
        return _mm256_or_si256(low_bits(load32(b->qs + 32 * (k / 2)), 4 * (k % 2), 15), fifth);
    }
    static INLINE void factors(const Block* b, Unpacked& u) { k_factors(*b, u); }
    static INLINE void integers(const Block* b, UnpackedIntegers& u) { k_integers(*b, u); }
};

struct Q6_K : Of256<block_q6_k> {
    static constexpr int kGroup = 16, kBias = 32;
    static constexpr bool kSigned = false, kOffset = true, kIntegerScales = true;
    template <int k>
    static INLINE __m256i weight(const Block* b) {
        constexpr int h = k / 4, j = k % 4;
        const __m256i top = _mm256_and_si256(moved<4 - 2 * j>(load32(b->qh + 32 * h)), bytes(0x30));
        return _mm256_or_si256(low_bits(load32(b->ql + 64 * h + 32 * (j % 2)), j / 2 * 4, 15), top);
    }
    static INLINE void factors(const Block* b, Unpacked& u) {
        for (int h = 0; h < 2; ++h) {
            const __m128i eight = _mm_cvtsi64_si128(static_cast<int64_t>(read_u64(b->scales + 8 * h)));
            u.scale[h] = times(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)), to_float(b->d));
            u.offset[h] = times(u.scale[h], 32.0f);
        }
    }
    static INLINE void integers(const Block* b, UnpackedIntegers& u) {
        u.scale = even_and_odd(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b->scales)));
        u.factor = repeated(b->d);
    }
};

struct Q3_K : Of256<block_q3_k> {
    static constexpr int kGroup = 16, kBias = 4;
    static constexpr bool kSigned = false, kOffset = true, kIntegerScales = true;
    template <int k>
    static INLINE __m256i weight(const Block* b) {  // bit j of byte i of hmask: the third bit of value 32 j + i
        const __m256i third = _mm256_and_si256(moved<2 - k>(load32(b->hmask)), bytes(4));
        return _mm256_or_si256(low_bits(load32(b->qs + 32 * (k / 4)), 2 * (k % 4), 3), third);
    }
    // The sixteen scales, plus 32.
    static INLINE __m128i scales(const Block* b) {
        const uint32_t low0 = read_u32(b->scales), low1 = read_u32(b->scales + 4), c = read_u32(b->scales + 8);
        const uint64_t first = (low0 & 0x0f0f0f0fu) | ((c << 4) & 0x30303030u);
        const uint64_t second = (low1 & 0x0f0f0f0fu) | ((c << 2) & 0x30303030u);
        const uint64_t third = ((low0 >> 4) & 0x0f0f0f0fu) | (c & 0x30303030u);
        const uint64_t fourth = ((low1 >> 4) & 0x0f0f0f0fu) | ((c >> 2) & 0x30303030u);
        return _mm_set_epi64x(static_cast<int64_t>(third | fourth << 32), static_cast<int64_t>(first | second << 32));
    }
    static INLINE void factors(const Block* b, Unpacked& u) {
        const __m128i all = scales(b);
        const __m256i thirty_two = _mm256_set1_epi32(32);
        for (int h = 0; h < 2; ++h) {
            const __m256i eight = _mm256_cvtepu8_epi32(h ? _mm_srli_si128(all, 8) : all);
            u.scale[h] = times(_mm256_cvtepi32_ps(_mm256_sub_epi32(eight, thirty_two)), to_float(b->d));
            u.offset[h] = times(u.scale[h], 4.0f);
        }
    }
    static INLINE void integers(const Block* b, UnpackedIntegers& u) {
        u.scale = even_and_odd(_mm_sub_epi8(scales(b), _mm_set1_epi8(32)));
        u.factor = repeated(b->d);
    }
};

struct Q2_K : Of256<block_q2_k> {
    static constexpr int kGroup = 16, kBias = 0;
    static constexpr bool kSigned = false, kOffset = true, kIntegerScales = true;
    template <int k>
    static INLINE __m256i weight(const Block* b) {
        return low_bits(load32(b->qs + 32 * (k / 4)), 2 * (k % 4), 3);
    }
    static INLINE void factors(const Block* b, Unpacked& u) {
        for (int h = 0; h < 2; ++h) {
            const uint64_t eight = read_u64(b->scales + 8 * h), low = 0x0f0f0f0f0f0f0f0fu;
            u.scale[h] = times(byte_floats(eight & low), to_float(b->d));
            u.offset[h] = times(byte_floats((eight >> 4) & low), to_float(b->dmin));
        }
    }
    static INLINE void integers(const Block* b, UnpackedIntegers& u) {
        const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b->scales)), low = _mm_set1_epi8(15);
        u.scale = even_and_odd(_mm_and_si128(packed, low));
        u.minimum = even_and_odd(_mm_and_si128(_mm_srli_epi16(packed, 4), low));
        u.factor = repeated(b->d);
        u.offset = repeated(b->dmin);
    }
};

}  // namespace
}  // namespace jamba
