// Vectors of floats at the width of the level that a source is compiled for, and the transcendental functions that kernels
// share.
//
// Everything lies in an anonymous namespace: each compiled source gets its own copy. The functions are the same
// formula at every width and lane by lane the same operations, so a result does not depend on where a value lies in a
// vector, and a token's state update is the same in a scan of thousands as in a step of one.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define SIMD_FN static inline __attribute__((always_inline, unused))

namespace jamba {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float vf __attribute__((vector_size(4 * kLanes), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * kLanes), may_alias));

SIMD_FN vf set1(float x) { return x - vf{}; }

SIMD_FN vf load(const float* p) {
    vf x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

SIMD_FN void store(float* p, vf x) { std::memcpy(p, &x, sizeof x); }

// The first n of kLanes values (n may be anything); the rest read as zero and are not written.
SIMD_FN vf load_part(const float* p, int64_t n) {
    if (n >= kLanes) return load(p);
    vf x{};
    if (n > 0) std::memcpy(&x, p, static_cast<size_t>(n) * 4);
    return x;
}

SIMD_FN void store_part(float* p, vf x, int64_t n) {
    if (n >= kLanes)
        store(p, x);
    else if (n > 0)
        std::memcpy(p, &x, static_cast<size_t>(n) * 4);
}

// a * b + c, rounded once where the processor can.
SIMD_FN vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

// The larger one; b where either is no number.
SIMD_FN vf vmax(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

// The smaller one; b where either is no number.
SIMD_FN vf vmin(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return a < b ? a : b;
#endif
}

SIMD_FN vf vabs(vf a) { return (vf)((vi)a & 0x7fffffff); }

SIMD_FN float sum(vf a) {
    float s = 0.0f;
    for (int i = 0; i < kLanes; ++i) s += a[i];
    return s;
}

// 2^t. The remainder after rounding to the nearest integer goes through a polynomial that is exactly 1 at 0, so that a
// decay close to one keeps its small distance from one (a scan multiplies thousands of them). Relative error under 8e-8;
// where there is no AVX-512, results below 2^-125 become 2^-125.
SIMD_FN vf exp2v(vf t) {
#if defined(__AVX512F__)
    const vf r = (vf)_mm512_reduce_ps((__m512)t, 8);
    const vf n = t - r;
#else
    t = vmin(set1(127.0f), vmax(set1(-125.0f), t));  // in this order NaN stays NaN
    const vf n = (t + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const vf r = t - n;
#endif
    vf p = fma(set1(0.00015353362f), r, set1(0.0013398875f));
    p = fma(p, r, set1(0.00961843692f));
    p = fma(p, r, set1(0.0555033237f));
    p = fma(p, r, set1(0.240226477f));
    p = fma(p, r, set1(0.693147182f));
    p = fma(p, r, set1(1.0f));
#if defined(__AVX512F__)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return (vf)((vi)p + (__builtin_convertvector(n, vi) << 23));
#endif
}

constexpr float kLog2e = 1.44269504f;

// e^x, cut at e^87 so that it and its reciprocal are normal floats; 0 below -104 (2^-125 without AVX-512).
SIMD_FN vf expv(vf x) {
    x = vmin(set1(87.0f), vmax(set1(-104.0f), x));
    // The product's rounding error times ln 2 is what is lost, so it is carried along: exact to 2e-7.
    const vf high = x * kLog2e;
#if defined(__AVX512F__) || defined(__AVX2__) || defined(__ARM_NEON)
    const vf low = fma(x, set1(kLog2e), -high) + x * 1.92596299e-8f;  // log2(e) - float(log2(e))
#else
    const vf low = x * 1.92596299e-8f;
#endif
    return exp2v(high) * fma(low, set1(0.693147182f), set1(1.0f));
}

// a / b for a normal b, to the last bit or the one before. A division of 16 floats takes as long as 16 additions: where
// there is an estimate of the reciprocal it is refined instead.
SIMD_FN vf quotient(vf a, vf b) {
#if defined(__AVX512F__)
    const vf r = (vf)_mm512_rcp14_ps((__m512)b);
    const vf reciprocal = fma(fma(-b, r, set1(1.0f)), r, r);
    const vf q = a * reciprocal;
    return fma(fma(-b, q, a), reciprocal, q);
#else
    return a / b;
#endif
}

// log(1 + e) for 0 <= e <= 1, relative error under 2e-7 down to the smallest e: 2 atanh(e / (2 + e)) as an odd series.
SIMD_FN vf log1p01(vf e) {
    const vf s = quotient(e, e + 2.0f);
    const vf t = s * s;
    vf p = fma(set1(0.121482931f), t, set1(0.107144572f));
    p = fma(p, t, set1(0.143083781f));
    p = fma(p, t, set1(0.199994415f));
    p = fma(p, t, set1(0.333333373f));
    p = fma(p, t, set1(1.0f));
    return 2.0f * s * p;
}

// log(1 + exp(x)), split so that neither a large x overflows nor a very negative one loses its relative precision.
SIMD_FN vf softplusv(vf x) { return vmax(set1(0.0f), x) + log1p01(expv(-vabs(x))); }

// x / (1 + exp(-x)). The exponent is cut where the reciprocal would stop being a normal float, and its rounding error is
// let through: it is |x| times 6e-8 of a factor that is one where |x| is large and positive, zero where negative.
SIMD_FN vf siluv(vf x) { return quotient(x, 1.0f + exp2v(vmin(set1(125.0f), x * -kLog2e))); }

}  // namespace
}  // namespace jamba
