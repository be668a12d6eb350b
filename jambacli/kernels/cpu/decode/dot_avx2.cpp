// Block products for AVX2: byte pairs multiplied and added twice over.
//
// Order of the arithmetic for one output, the same for any number of tokens: per 256 values eight vectors of int32 sums,
// converted and scaled into two float accumulators; offsets into a third; one reduction at the end.
#include "decode/inner_kernels.h"
#include "decode/unpack_avx2.h"

namespace jamba {
namespace {

constexpr int kPrefetch = 2048;  // bytes ahead in the row's stream; hardware prefetchers stop at each page
constexpr int kTokens = 2;       // at a time: their accumulators fit the registers

template <int M>
struct Tokens {
    const int8_t *q[M], *fine[M];
    const float* d[M];
    const float* sums[M];

    Tokens(const Act& act, const int32_t* tokens, int first, int group) {
        for (int i = 0; i < M; ++i) {
            const int64_t token = tokens ? tokens[first + i] : first + i;
            q[i] = act.q + token * act.padded;
            fine[i] = act.fine + token * act.padded;
            d[i] = (group == 32 ? act.d + token * (act.padded / 32) : act.d16 + token * (act.padded / 16));
            sums[i] = (group == 32 ? act.sum32 : act.sum16) + token * (act.padded / group);
        }
    }
};

// The products of 32 weights with 128 * act + fine, summed in fours, as floats: below 2^24, so exact.
template <bool kSigned>
inline __m256 dot32(__m256i weight, __m256i act, __m256i fine) {
    if constexpr (kSigned) {  // |w| times a with w's sign: a sum of two products stays within int16
        act = _mm256_sign_epi8(act, weight);
        fine = _mm256_sign_epi8(fine, weight);
        weight = _mm256_abs_epi8(weight);
    }
    const __m256i coarse = _mm256_madd_epi16(_mm256_maddubs_epi16(weight, act), _mm256_set1_epi16(128));
    return _mm256_cvtepi32_ps(
        _mm256_add_epi32(coarse, _mm256_madd_epi16(_mm256_maddubs_epi16(weight, fine), _mm256_set1_epi16(1))));
}

template <class Fmt, int M>
struct Sums {
    __m256 even[M], odd[M], offset[M];

    void clear() {
        for (int t = 0; t < M; ++t) even[t] = odd[t] = offset[t] = _mm256_setzero_ps();
    }

    // Adds 256 values: `block` of the row, block `b` of the activations. kPart: only the first `blocks` groups of 32 belong to
    // the row. The activations of the others are zero, and their factors are cleared since they may not be finite.
    template <bool kPart>
    inline void step(const typename Fmt::Block* block, const Tokens<M>& a, int64_t b, int blocks) {
        Unpacked u;
        Fmt::unpack(block, u);
        if constexpr (kPart && Fmt::kGroup == 32) {
            const __m256i in_row = _mm256_cmpgt_epi32(_mm256_set1_epi32(blocks), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            u.scale[0] = _mm256_and_ps(u.scale[0], _mm256_castsi256_ps(in_row));
            if constexpr (Fmt::kOffset) u.offset[0] = _mm256_and_ps(u.offset[0], _mm256_castsi256_ps(in_row));
        }
        for (int t = 0; t < M; ++t) {
            const int8_t *q = a.q[t] + 256 * b, *fine = a.fine[t] + 256 * b;
            if constexpr (Fmt::kGroup == 32) {
                const __m256 scale = _mm256_mul_ps(u.scale[0], _mm256_loadu_ps(a.d[t] + 8 * b));
                for (int k = 0; k < 8; ++k) {
                    __m256& acc = k & 1 ? odd[t] : even[t];
                    const __m256 one = _mm256_permutevar8x32_ps(scale, _mm256_set1_epi32(k));
                    acc = _mm256_fmadd_ps(dot32<Fmt::kSigned>(u.w[k], load32(q + 32 * k), load32(fine + 32 * k)), one,
                                          acc);
                }
                if constexpr (Fmt::kOffset)
                    offset[t] = _mm256_fnmadd_ps(u.offset[0], _mm256_loadu_ps(a.sums[t] + 8 * b), offset[t]);
            } else {
                for (int h = 0; h < 2; ++h) {
                    const __m256 scale = _mm256_mul_ps(u.scale[h], _mm256_loadu_ps(a.d[t] + 16 * b + 8 * h));
                    for (int j = 0; j < 4; ++j) {
                        const int k = 4 * h + j;
                        const __m256i two = _mm256_setr_epi32(2 * j, 2 * j, 2 * j, 2 * j, 2 * j + 1, 2 * j + 1, 2 * j + 1,
                                                              2 * j + 1);
                        __m256& acc = k & 1 ? odd[t] : even[t];
                        acc = _mm256_fmadd_ps(dot32<Fmt::kSigned>(u.w[k], load32(q + 32 * k), load32(fine + 32 * k)),
                                              _mm256_permutevar8x32_ps(scale, two), acc);
                    }
                    if constexpr (Fmt::kOffset)
                        offset[t] = _mm256_fnmadd_ps(u.offset[h], _mm256_loadu_ps(a.sums[t] + 16 * b + 8 * h), offset[t]);
                }
            }
        }
    }

    inline float total(int t) const {
        const __m256 x = _mm256_add_ps(_mm256_add_ps(even[t], odd[t]), offset[t]);
        __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        s = _mm_add_ps(s, _mm_movehl_ps(s, s));
        return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
    }
};

}  // namespace
}  // namespace jamba

#include "decode/dot_rows.h"
