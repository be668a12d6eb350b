// Products of block-quantized rows with activations of two int8 each, 64 bytes at a time: by multiply-add of byte pairs at
// level avx512, by one instruction for four products at level vnni.
//
// Order of the arithmetic for one output, the same for any number of tokens: per 256 values four vectors of int32 sums,
// converted and scaled into two float accumulators; offsets into a third; one reduction at the end.
#include "decode/inner_kernels.h"
#include "decode/unpack_avx512.h"

namespace jamba {
namespace {

constexpr int kPrefetch = 2048;  // bytes ahead in the row's stream; hardware prefetchers stop at each page
constexpr int kTokens = 4;       // at a time: their accumulators fit the registers beside an unpacked block

// The products of unsigned bytes with 128 * s + fine, summed in fours, as floats: below 2^24, so exact.
inline __m512 dot4(__m512i u, __m512i s, __m512i fine) {
#if defined(__AVX512VNNI__)
    const __m512i coarse = _mm512_dpbusd_epi32(_mm512_setzero_si512(), u, s);
    return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_slli_epi32(coarse, 7), u, fine));
#else
    const __m512i coarse = _mm512_madd_epi16(_mm512_maddubs_epi16(u, s), _mm512_set1_epi16(128));
    return _mm512_cvtepi32_ps(
        _mm512_add_epi32(coarse, _mm512_madd_epi16(_mm512_maddubs_epi16(u, fine), _mm512_set1_epi16(1))));
#endif
}

// Which of the factors multiplies each lane of vector k.
template <int kGroup>
inline __m512i lane_groups(int k) {
    if constexpr (kGroup == 32) {
        const int a = 2 * k + (k < 2 ? 0 : 4), b = a + 1;
        return _mm512_setr_epi32(a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b);
    } else {
        const int a = 4 * k, b = a + 1, c = a + 2, d = a + 3;
        return _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
    }
}

// What the lanes of the sums of even and odd vectors are multiplied by at the end.
template <Lanes kLanes>
inline __m512 lane_factors(bool odd) {
    const auto quarters = [](float a, float b, float c, float d) {
        return _mm512_setr_ps(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
    };
    if (kLanes == Lanes::kQuarters) return quarters(1.0f, 1.0f / 16, 1.0f, 1.0f / 16);
    if (kLanes == Lanes::kHalves) return quarters(1.0f, 1.0f, 1.0f / 16, 1.0f / 16);
    return odd ? quarters(1.0f / 16, 1.0f / 16, 1.0f / 64, 1.0f / 64) : quarters(1.0f, 1.0f, 1.0f / 4, 1.0f / 4);
}

template <int M>
struct Tokens {
    const int8_t *q[M], *fine[M];
    const float* factors[M];  // groups of 32: Act::pairs; of 16: Act::d16
    const float* sums[M];     // groups of 16: Act::sum16

    Tokens(const Act& act, const int32_t* tokens, int first, int group) {
        for (int i = 0; i < M; ++i) {
            const int64_t token = tokens ? tokens[first + i] : first + i;
            q[i] = act.q + token * act.padded;
            fine[i] = act.fine + token * act.padded;
            factors[i] = (group == 32 ? act.pairs : act.d16) + token * (act.padded / 16);
            sums[i] = act.sum16 + token * (act.padded / 16);
        }
    }
};

template <class Fmt, int M>
struct Sums {
    static constexpr bool kOffset = kFullBytes || !Fmt::kSigned;
    __m512 even[M], odd[M], offset[M];

    void clear() {
        for (int t = 0; t < M; ++t) even[t] = odd[t] = offset[t] = _mm512_setzero_ps();
    }

    // Adds 256 values: `block` of the row, block `b` of the activations. kPart: only the first `blocks` groups of 32 belong to
    // the row. The activations of the others are zero, and their factors are cleared since they may not be finite.
    template <bool kPart>
    inline void step(const typename Fmt::Block* block, const Tokens<M>& a, int64_t b, int blocks) {
        Unpacked u;
        Fmt::unpack(block, u);
        if constexpr (kPart && Fmt::kGroup == 32) {
            const __m512i group = _mm512_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7);
            u.scale = _mm512_maskz_mov_ps(_mm512_cmplt_epi32_mask(group, _mm512_set1_epi32(blocks)), u.scale);
        }
        if constexpr (kFullBytes && Fmt::kSigned)  // as bytes + 128, which the offset subtracts again
            for (int k = 0; k < 4; ++k) u.w[k] = _mm512_xor_si512(u.w[k], bytes(0x80));
        for (int t = 0; t < M; ++t) {
            const __m512 factors = _mm512_loadu_ps(a.factors[t] + 16 * b);
            const __m512 scale = _mm512_mul_ps(u.scale, factors);
            for (int k = 0; k < 4; ++k) {
                __m512i act = load64(a.q[t] + 256 * b + 64 * k), fine = load64(a.fine[t] + 256 * b + 64 * k);
                __m512i weight = u.w[k];
                if constexpr (!kFullBytes && Fmt::kSigned) {  // |w| times a with w's sign: a sum of two stays within int16
                    const __mmask64 negative = _mm512_movepi8_mask(weight);
                    act = _mm512_mask_sub_epi8(act, negative, _mm512_setzero_si512(), act);
                    fine = _mm512_mask_sub_epi8(fine, negative, _mm512_setzero_si512(), fine);
                    weight = _mm512_abs_epi8(weight);
                }
                const __m512 by = _mm512_permutexvar_ps(lane_groups<Fmt::kGroup>(k), scale);
                __m512& acc = k & 1 ? odd[t] : even[t];
                acc = _mm512_fmadd_ps(dot4(weight, act, fine), by, acc);
            }
            if constexpr (kOffset && Fmt::kGroup == 32)  // only the lanes that hold offsets count
                offset[t] = _mm512_fmadd_ps(u.scale, factors, offset[t]);
            else if constexpr (kOffset)
                offset[t] = _mm512_fmadd_ps(u.offset16, _mm512_loadu_ps(a.sums[t] + 16 * b), offset[t]);
        }
    }

    inline float total(int t) const {
        __m512 sum;
        if constexpr (Fmt::kLanes == Lanes::kPlain)
            sum = _mm512_add_ps(even[t], odd[t]);
        else
            sum = _mm512_fmadd_ps(even[t], lane_factors<Fmt::kLanes>(false),
                                  _mm512_mul_ps(odd[t], lane_factors<Fmt::kLanes>(true)));
        if constexpr (kOffset) {
            const __mmask16 lanes = Fmt::kGroup == 32 ? 0xF0F0 : 0xFFFF;
            sum = _mm512_mask3_fnmadd_ps(offset[t], _mm512_set1_ps(Fmt::kBias), sum, lanes);
        }
        return _mm512_reduce_add_ps(sum);
    }
};

}  // namespace
}  // namespace jamba

#include "decode/dot_rows.h"
