// Activations to int8 with a factor per 32, 256 values at a time, for AVX2: the reductions of the eight groups run side by
// side. Equal bit by bit to quantize_int8() of elementwise.cpp in plain operations. Include only from files compiled for AVX2.
#pragma once

#include <immintrin.h>

#include "decode/inner_kernels.h"

namespace jamba {
namespace {

// The largest of the lanes of each of eight vectors.
inline __m256 largest_of_each(const __m256* v) {
    __m256 fours[2];
    for (int h = 0; h < 2; ++h) {
        const __m256* x = v + 4 * h;
        const __m256 a = _mm256_max_ps(_mm256_unpacklo_ps(x[0], x[1]), _mm256_unpackhi_ps(x[0], x[1]));
        const __m256 b = _mm256_max_ps(_mm256_unpacklo_ps(x[2], x[3]), _mm256_unpackhi_ps(x[2], x[3]));
        fours[h] = _mm256_max_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xEE));
    }
    return _mm256_max_ps(_mm256_permute2f128_ps(fours[0], fours[1], 0x20), _mm256_permute2f128_ps(fours[0], fours[1], 0x31));
}

inline float largest(__m256 x) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

// The sums of lanes 0-3 and of lanes 4-7 of each of eight vectors.
inline void half_sums(const __m256i* v, __m256i& first, __m256i& second) {
    const __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    const __m256i b = _mm256_hadd_epi32(_mm256_hadd_epi32(v[4], v[5]), _mm256_hadd_epi32(v[6], v[7]));
    first = _mm256_permute2x128_si256(a, b, 0x20);
    second = _mm256_permute2x128_si256(a, b, 0x31);
}

// a[0] b[0] a[1] b[1] ... as two vectors.
inline void interleave(__m256i a, __m256i b, __m256i* out) {
    const __m256i low = _mm256_unpacklo_epi32(a, b), high = _mm256_unpackhi_epi32(a, b);
    out[0] = _mm256_permute2x128_si256(low, high, 0x20);
    out[1] = _mm256_permute2x128_si256(low, high, 0x31);
}

inline void store_words(int16_t* p, const __m256i* x) {
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(x[0], x[1]), 0xD8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), packed);
}

// Block `block` of a row: 256 floats at `x`.
inline void quantize_256(const float* x, int64_t block, float least, const Quantized& out) {
    constexpr float kMultiples = 127.0f;
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 most[8];
    for (int g = 0; g < 8; ++g) {
        most[g] = _mm256_setzero_ps();
        for (int i = 0; i < 32; i += 8) most[g] = _mm256_max_ps(most[g], _mm256_and_ps(_mm256_loadu_ps(x + 32 * g + i), magnitude));
    }
    const __m256 tops = largest_of_each(most);
    const float top = largest(tops);
    const float step = top > least ? top / (kMultiples * 127.0f) : 0.0f;
    const float by_top = top > least ? kMultiples / top : 0.0f;
    out.step[block] = step;

    // The least integer that is not below `exact`; 0 where that is no number of the range.
    const __m256 exact = _mm256_mul_ps(tops, _mm256_set1_ps(by_top)), zero = _mm256_setzero_ps();
    const __m256 in_range =
        _mm256_and_ps(_mm256_cmp_ps(exact, zero, _CMP_GT_OQ), _mm256_cmp_ps(exact, _mm256_set1_ps(128.0f), _CMP_LT_OQ));
    const __m256i whole = _mm256_and_si256(_mm256_cvttps_epi32(exact), _mm256_castps_si256(in_range));
    const __m256 more = _mm256_cmp_ps(_mm256_cvtepi32_ps(whole), exact, _CMP_LT_OQ);
    const __m256i multiple = _mm256_sub_epi32(whole, _mm256_castps_si256(more));
    const __m256 count = _mm256_cvtepi32_ps(multiple);
    const __m256 factor = _mm256_mul_ps(_mm256_set1_ps(step), count);
    const __m256 inverse =
        _mm256_and_ps(_mm256_div_ps(_mm256_set1_ps(127.0f * by_top), count), _mm256_cmp_ps(count, zero, _CMP_GT_OQ));

    float inverses[8];
    _mm256_storeu_ps(inverses, inverse);
    __m256i sums[8];
    for (int g = 0; g < 8; ++g) {
        const __m256 by = _mm256_broadcast_ss(inverses + g);
        __m256i q[4];
        for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 32 * g + 8 * i), by));
        const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        const __m256i values = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.q + 256 * block + 32 * g), values);
        sums[g] = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), values), _mm256_set1_epi16(1));
    }
    __m256i first, second, words[2];
    half_sums(sums, first, second);
    interleave(first, second, words);
    store_words(out.integer_sum16 + 16 * block, words);
    __m256i factors[2];
    interleave(_mm256_castps_si256(factor), _mm256_castps_si256(factor), factors);
    for (int h = 0; h < 2; ++h) {
        const __m256 twice = _mm256_castsi256_ps(factors[h]);
        _mm256_storeu_ps(out.d16 + 16 * block + 8 * h, twice);
        _mm256_storeu_ps(out.sum16 + 16 * block + 8 * h, _mm256_mul_ps(twice, _mm256_cvtepi32_ps(words[h])));
    }
    interleave(multiple, multiple, words);
    store_words(out.multiple16 + 16 * block, words);
    const __m256 sum32 = _mm256_mul_ps(factor, _mm256_cvtepi32_ps(_mm256_add_epi32(first, second)));
    _mm256_storeu_ps(out.d + 8 * block, factor);
    _mm256_storeu_ps(out.sum32 + 8 * block, sum32);
    _mm256_storeu_ps(out.pairs + 16 * block, _mm256_permute2f128_ps(factor, sum32, 0x20));
    _mm256_storeu_ps(out.pairs + 16 * block + 8, _mm256_permute2f128_ps(factor, sum32, 0x31));
}

}  // namespace
}  // namespace jamba
