// Activations to int8 with a factor per 32, 256 values at a time, for AVX2: the reductions of the eight groups run side by
// side. Equal bit by bit to quantize_int8() of elementwise.cpp in plain operations, but for the order of sums of floats. Include
// only from files compiled for AVX2.
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

// The sum of each of eight vectors.
inline __m256 sums_of_each(const __m256* v) {
    const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
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

// Of 256 values: the factors of the eight groups as integers times `step` (unless each is its own), as floats, and their reciprocals.
struct Factors {
    float step;
    __m256i multiple;
    __m256 factor, inverse;
};

inline Factors factors_of_256(const float* x, float least, bool own) {
    constexpr float kMultiples = 127.0f;
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 most[8];
    for (int g = 0; g < 8; ++g) {
        most[g] = _mm256_setzero_ps();
        for (int i = 0; i < 32; i += 8) most[g] = _mm256_max_ps(most[g], _mm256_and_ps(_mm256_loadu_ps(x + 32 * g + i), magnitude));
    }
    const __m256 tops = largest_of_each(most);
    if (own) {
        const __m256 levels = _mm256_set1_ps(127.0f), enough = _mm256_cmp_ps(tops, _mm256_set1_ps(least), _CMP_GT_OQ);
        return {0.0f, _mm256_setzero_si256(), _mm256_and_ps(_mm256_div_ps(tops, levels), enough),
                _mm256_and_ps(_mm256_div_ps(levels, tops), enough)};
    }
    const float top = largest(tops);
    const float step = top > least ? top / (kMultiples * 127.0f) : 0.0f;
    const float by_top = top > least ? kMultiples / top : 0.0f;
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
    return {step, multiple, factor, inverse};
}

// Stores the integers of block `block` of a row, 256 floats at `x`, and their factors and sums in all layouts.
inline void round_256(const float* x, int64_t block, const Factors& f, const Quantized& out) {
    float inverses[8];
    _mm256_storeu_ps(inverses, f.inverse);
    __m256i sums[8];
    __m256 exact[8];
    for (int g = 0; g < 8; ++g) {
        const __m256 by = _mm256_broadcast_ss(inverses + g);
        __m256i q[4];
        __m256 v[4];
        for (int i = 0; i < 4; ++i) {
            v[i] = _mm256_loadu_ps(x + 32 * g + 8 * i);
            q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], by));
        }
        exact[g] = _mm256_add_ps(_mm256_add_ps(v[0], v[1]), _mm256_add_ps(v[2], v[3]));
        const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        const __m256i values = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.q + 256 * block + 32 * g), values);
        sums[g] = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), values), _mm256_set1_epi16(1));
    }
    __m256i first, second, words[2];
    half_sums(sums, first, second);
    // A value that is no number makes its group's factor NaN, and the step, and so all products.
    const __m256 of_group = sums_of_each(exact), poison = _mm256_mul_ps(of_group, _mm256_setzero_ps());
    const __m256 factor = _mm256_add_ps(f.factor, poison);
    if (out.step) {
        const __m256i halves[2] = {first, second}, by_128 = _mm256_slli_epi32(f.multiple, 7);
        const bool numbers = _mm256_movemask_ps(_mm256_cmp_ps(poison, poison, _CMP_UNORD_Q)) == 0;
        out.step[block] = numbers ? f.step : __builtin_nanf("");
        store_words(out.integer_sum16 + 16 * block, halves);
        interleave(f.multiple, f.multiple, words);
        store_words(out.multiple16 + 16 * block, words);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out.multiple128 + 8 * block),
                         _mm_packs_epi32(_mm256_castsi256_si128(by_128), _mm256_extracti128_si256(by_128, 1)));
    }
    interleave(first, second, words);
    __m256i factors[2];
    interleave(_mm256_castps_si256(factor), _mm256_castps_si256(factor), factors);
    for (int h = 0; h < 2; ++h) {
        const __m256 twice = _mm256_castsi256_ps(factors[h]);
        _mm256_storeu_ps(out.d16 + 16 * block + 8 * h, twice);
        _mm256_storeu_ps(out.sum16 + 16 * block + 8 * h, _mm256_mul_ps(twice, _mm256_cvtepi32_ps(words[h])));
    }
    const __m256 sum32 = _mm256_mul_ps(factor, _mm256_cvtepi32_ps(_mm256_add_epi32(first, second)));
    _mm256_storeu_ps(out.d + 8 * block, factor);
    _mm256_storeu_ps(out.sum32 + 8 * block, sum32);
    const __m256 lost = _mm256_sub_ps(of_group, sum32);
    _mm256_storeu_ps(out.lost32 + 8 * block, _mm256_mul_ps(_mm256_set1_ps(0.5f), lost));
    _mm256_storeu_ps(out.pairs + 16 * block, _mm256_permute2f128_ps(factor, sum32, 0x20));
    _mm256_storeu_ps(out.pairs + 16 * block + 8, _mm256_permute2f128_ps(factor, sum32, 0x31));
}

// Blocks [begin, end) of a row. Each of the two steps waits for itself: some blocks at a time take it side by side.
inline void quantize_blocks(const float* row, int64_t begin, int64_t end, float least, const Quantized& out) {
    constexpr int64_t kSome = 4;
    Factors f[kSome];
    for (int64_t block = begin; block < end; block += kSome) {
        const int64_t count = end - block < kSome ? end - block : kSome;
        for (int64_t i = 0; i < count; ++i) f[i] = factors_of_256(row + 256 * (block + i), least, !out.step);
        for (int64_t i = 0; i < count; ++i) round_256(row + 256 * (block + i), block + i, f[i], out);
    }
}

}  // namespace
}  // namespace jamba
