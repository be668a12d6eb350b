// Products of block-quantized rows with int8 activations, 64 bytes at a time; included by dot_avx512.cpp (multiply-add of
// byte pairs) and dot_vnni.cpp (JAMBA_VNNI: one instruction for four). Knows nothing of threads.
//
// Order of the arithmetic for one output, the same for any number of tokens: per 256 values four vectors of int32 sums,
// converted and scaled into two float accumulators; offsets into a third; one reduction at the end.
#pragma once

#include "ops.h"
#include "unpack_avx512.h"

namespace jamba {
namespace {

constexpr int kPrefetch = 2048;  // bytes ahead in the row's stream; hardware prefetchers stop at each page
constexpr int kTokens = 4;  // whose accumulators fit the registers beside an unpacked block

// acc + the products of unsigned bytes with signed ones, summed in fours.
inline __m512i dot4(__m512i acc, __m512i u, __m512i s) {
#if defined(JAMBA_VNNI)
    return _mm512_dpbusd_epi32(acc, u, s);
#else
    return _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(u, s), _mm512_set1_epi16(1)));
#endif
}

// Which of the scales multiplies each lane of vector k.
template <int kGroup>
inline __m512i lane_groups(int k) {
    if constexpr (kGroup == 32) {
        const int a = 2 * k, b = 2 * k + 1;
        return _mm512_setr_epi32(a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b);
    } else {
        const int a = 4 * k, b = a + 1, c = a + 2, d = a + 3;
        return _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
    }
}

template <int M>
struct Tokens {
    const int8_t* q[M];
    const float* d[M];
    const float* sums[M];
};

template <class Fmt, int M>
struct Sums {
    __m512 even[M], odd[M], offset[M];

    void clear() {
        for (int t = 0; t < M; ++t) even[t] = odd[t] = offset[t] = _mm512_setzero_ps();
    }

    // Adds 256 values: p in the row, block `b` of the activations.
    inline void step(const uint8_t* p, const Tokens<M>& a, int64_t b) {
        Unpacked u;
        Fmt::unpack(p, u);
#if defined(JAMBA_VNNI)
        if constexpr (Fmt::kSigned) {  // as bytes + 128, taken off again through the activations' sums
            for (int k = 0; k < 4; ++k) u.w[k] = _mm512_xor_si512(u.w[k], bytes(0x80));
            u.offset = _mm512_mul_ps(u.scale, _mm512_set1_ps(128.0f));
        }
        constexpr bool has_offset = Fmt::kOffset || Fmt::kSigned;
#else
        constexpr bool has_offset = Fmt::kOffset;
#endif
        for (int t = 0; t < M; ++t) {
            __m512 d = widen(_mm256_loadu_ps(a.d[t] + 8 * b));
            if constexpr (Fmt::kGroup == 16)
                d = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7), d);
            const __m512 scale = _mm512_mul_ps(u.scale, d);
            for (int k = 0; k < 4; ++k) {
                __m512i act = load64(a.q[t] + 256 * b + 64 * k);
                __m512i weight = u.w[k];
#if !defined(JAMBA_VNNI)
                if constexpr (Fmt::kSigned) {  // |w| times a with w's sign: a sum of two stays within int16
                    act = _mm512_mask_sub_epi8(act, _mm512_movepi8_mask(weight), _mm512_setzero_si512(), act);
                    weight = _mm512_abs_epi8(weight);
                }
#endif
                const __m512 sum = _mm512_cvtepi32_ps(dot4(_mm512_setzero_si512(), weight, act));
                __m512& acc = k & 1 ? odd[t] : even[t];
                acc = _mm512_fmadd_ps(sum, _mm512_permutexvar_ps(lane_groups<Fmt::kGroup>(k), scale), acc);
            }
            if constexpr (has_offset) {
                const __m512 s = Fmt::kGroup == 16 ? _mm512_loadu_ps(a.sums[t] + 16 * b)
                                                   : widen(_mm256_loadu_ps(a.sums[t] + 8 * b));
                offset[t] = _mm512_fnmadd_ps(u.offset, s, offset[t]);
            }
        }
    }

    inline float total(int t) const {
        return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(even[t], odd[t]), offset[t]));
    }
};

#include "dot_rows.h"

}  // namespace
}  // namespace jamba
