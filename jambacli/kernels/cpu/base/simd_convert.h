// Stored types to vectors of floats, floats to int8, and sums across a vector, at the width of simd.h.
#pragma once

#include "base/formats.h"
#include "base/simd.h"

namespace jamba {
namespace {

// The first 0 < n < kLanes values; the rest zero.
SIMD_FN vf load_few(const float* p, int n) {
#if defined(__AVX512F__)
    return (vf)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p);
#else
    vf x{};
    for (int i = 0; i < n; ++i) x[i] = p[i];
    return x;
#endif
}

SIMD_FN void store_few(float* p, vf x, int n) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), (__m512)x);
#else
    for (int i = 0; i < n; ++i) p[i] = x[i];
#endif
}

// The sum of all lanes, halves first: one fixed order at each width.
SIMD_FN float hsum(vf x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#elif defined(__AVX2__)
    __m128 s = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
#else
    return (x[0] + x[2]) + (x[1] + x[3]);
#endif
}

// The sums of four vectors at once, for fewer operations than four hsum(). Not the same order of addition.
SIMD_FN void hsum4(const vf* x, float* out, int64_t step) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
    const auto pairs = [](__m512 a, __m512 b) {
        return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    };
    const __m512d ab = _mm512_castps_pd(pairs((__m512)x[0], (__m512)x[1]));
    const __m512d cd = _mm512_castps_pd(pairs((__m512)x[2], (__m512)x[3]));
    const __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                                     _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
#else
    const __m256 half = _mm256_hadd_ps(_mm256_hadd_ps((__m256)x[0], (__m256)x[1]),
                                       _mm256_hadd_ps((__m256)x[2], (__m256)x[3]));
#endif
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    float sums[4];
    _mm_storeu_ps(sums, four);
    for (int i = 0; i < 4; ++i) out[i * step] = sums[i];
#else
    for (int i = 0; i < 4; ++i) out[i * step] = hsum(x[i]);
#endif
}

SIMD_FN float hmax(vf x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    float m = x[0];
    for (int i = 1; i < kLanes; ++i) m = m > x[i] ? m : x[i];
    return m;
#endif
}

SIMD_FN vf load_f16(const uint16_t* p) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__ARM_NEON)
    return (vf)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
    return vf{half_to_float(p[0]), half_to_float(p[1]), half_to_float(p[2]), half_to_float(p[3])};
#endif
}

SIMD_FN vf load_bf16(const uint16_t* p) {
#if defined(__AVX512F__)
    const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16);
#elif defined(__AVX2__)
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16);
#else
    return (vf)vi{p[0] << 16, p[1] << 16, p[2] << 16, p[3] << 16};
#endif
}

SIMD_FN vf load_i8(const int8_t* p) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
    return __builtin_convertvector((vi{p[0], p[1], p[2], p[3]}), vf);
#endif
}

// Levels of a block of 32 from level i on, kLanes of them: four bits each, level j low and level j + 16 high in byte j.
SIMD_FN vf load_nibbles(const uint8_t* qs, int64_t i) {
    const uint8_t* p = qs + i % 16;
    const int shift = i < 16 ? 0 : 4;
#if defined(__AVX512F__)
    const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return (vf)_mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srl_epi32(bytes, _mm_cvtsi32_si128(shift)), _mm512_set1_epi32(15)));
#elif defined(__AVX2__)
    const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    return (vf)_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(bytes, _mm_cvtsi32_si128(shift)), _mm256_set1_epi32(15)));
#else
    return __builtin_convertvector((vi{p[0], p[1], p[2], p[3]} >> shift) & 15, vf);
#endif
}

// 16 where bit i + lane of `high` is set, else 0.
SIMD_FN vf load_fifth_bits(uint32_t high, int64_t i) {
    high >>= i;
#if defined(__AVX512F__)
    return (vf)_mm512_maskz_mov_ps(static_cast<__mmask16>(high), _mm512_set1_ps(16.0f));
#elif defined(__AVX2__)
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(high)), bit), bit);
    return (vf)_mm256_and_ps(_mm256_castsi256_ps(set), _mm256_set1_ps(16.0f));
#else
    const vi bit{1, 2, 4, 8};
    return (vf)(((static_cast<int32_t>(high) & bit) == bit) & (vi)set1(16.0f));
#endif
}

// Rounds to nearest even and stores bytes; values must lie within [-127, 127]. Returns the rounded values.
SIMD_FN vf store_i8(int8_t* p, vf x) {
#if defined(__AVX512F__)
    const __m512i i = _mm512_cvtps_epi32((__m512)x);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(i));
    return (vf)_mm512_cvtepi32_ps(i);
#elif defined(__AVX2__)
    const __m256i i = _mm256_cvtps_epi32((__m256)x);
    const __m128i h = _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(h, h));
    return (vf)_mm256_cvtepi32_ps(i);
#else
    const vf rounded = (x + 12582912.0f) - 12582912.0f;
    const vi i = __builtin_convertvector(rounded, vi);
    for (int lane = 0; lane < kLanes; ++lane) p[lane] = static_cast<int8_t>(i[lane]);
    return rounded;
#endif
}

}  // namespace
}  // namespace jamba
