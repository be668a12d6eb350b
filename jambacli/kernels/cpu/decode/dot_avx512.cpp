// Products of block-quantized rows with activations of one int8 or two, 64 bytes at a time: by multiply-add of byte pairs at
// level avx512, by one instruction for four products at level vnni.
//
// Order of the arithmetic for one output, the same for any number of tokens: per 256 values four vectors of int32 sums,
// converted and scaled into two float accumulators; offsets into a third; one reduction at the end.
#include "decode/inner_kernels.h"
#include "decode/unpack_avx512.h"

namespace jamba {
namespace {

constexpr int kPrefetch = 2048;  // bytes ahead in the row's stream; hardware prefetchers stop at each page

// The products of 64 weights with activations, summed in fours, as floats: below 2^24, so exact. The activations are `act`,
// or 128 * act + fine where kPrecise.
template <bool kSigned, bool kPrecise>
inline __m512 dot64(__m512i weight, const int8_t* act, const int8_t* fine) {
#if defined(__AVX512VNNI__)
    const __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weight, load64(act));
    if constexpr (!kPrecise) return _mm512_cvtepi32_ps(sums);
    return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_slli_epi32(sums, 7), weight, load64(fine)));
#else
    // |w| times a with w's sign: a sum of two products stays within int16.
    const __mmask64 negative = kSigned ? _mm512_movepi8_mask(weight) : 0;
    if constexpr (kSigned) weight = _mm512_abs_epi8(weight);
    const auto pairs = [&](const int8_t* p) {
        __m512i q = load64(p);
        if constexpr (kSigned) q = _mm512_mask_sub_epi8(q, negative, _mm512_setzero_si512(), q);
        return _mm512_maddubs_epi16(weight, q);
    };
    const __m512i one = _mm512_set1_epi16(1);
    if constexpr (!kPrecise) return _mm512_cvtepi32_ps(_mm512_madd_epi16(pairs(act), one));
    return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_madd_epi16(pairs(act), _mm512_set1_epi16(128)),
                                               _mm512_madd_epi16(pairs(fine), one)));
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

template <class Fmt, bool kPrecise>
struct Products {
    using Format = Fmt;
    using Weights = Unpacked;
    static constexpr bool kOffset = kFullBytes || !Fmt::kSigned;

    struct Token {
        const int8_t *q = nullptr, *fine = nullptr;
        const float* factors = nullptr;  // groups of 32: Act::pairs; of 16: Act::d16
        const float* sums = nullptr;     // groups of 16: Act::sum16
        const float* lost = nullptr;
        Token() = default;
        Token(const Act& act, int64_t token) {
            q = act.q + token * act.padded;
            if (kPrecise) fine = act.fine + token * act.padded;
            factors = (Fmt::kGroup == 32 ? act.pairs : act.d16) + token * (act.padded / 16);
            sums = act.sum16 + token * (act.padded / 16);
            lost = act.lost32 + token * (act.padded / 32);
        }
        void next() {
            q += 256, factors += 16, sums += 16, lost += 8;
            if (kPrecise) fine += 256;
        }
    };

    // kPart: the factors behind the row are cleared since they may not be finite.
    template <bool kPart>
    static inline Unpacked unpack(const typename Fmt::Block* block, int blocks) {
        Unpacked u;
        Fmt::unpack(block, u);
        if constexpr (kPart && Fmt::kGroup == 32) {
            const __m512i group = _mm512_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7);
            u.scale = _mm512_maskz_mov_ps(_mm512_cmplt_epi32_mask(group, _mm512_set1_epi32(blocks)), u.scale);
        }
        if constexpr (kFullBytes && Fmt::kSigned)  // as bytes + 128, which the offset subtracts again
            for (int k = 0; k < 4; ++k) u.w[k] = _mm512_xor_si512(u.w[k], bytes(0x80));
        return u;
    }

    struct Sums {
        __m512 even, odd, offset;
        void clear() { even = odd = offset = _mm512_setzero_ps(); }

        inline void add(const typename Fmt::Block* block, const Token& a) { add(unpack<false>(block, 8), a, 0); }
        inline void add(const Unpacked& u, const Token& a, int64_t b) {
            const int8_t* q = a.q + 256 * b;
            const __m512 factors = _mm512_loadu_ps(a.factors + 16 * b);
            const __m512 scale = _mm512_mul_ps(u.scale, factors);
            for (int k = 0; k < 4; ++k) {
                const int8_t* fine = kPrecise ? a.fine + 256 * b + 64 * k : nullptr;
                const __m512 by = _mm512_permutexvar_ps(lane_groups<Fmt::kGroup>(k), scale);
                __m512& acc = k & 1 ? odd : even;
                acc = _mm512_fmadd_ps(dot64<Fmt::kSigned, kPrecise>(u.w[k], q + 64 * k, fine), by, acc);
            }
            if constexpr (kOffset && Fmt::kGroup == 32)  // only the lanes that hold offsets count
                offset = _mm512_fmadd_ps(u.scale, factors, offset);
            else if constexpr (kOffset)
                offset = _mm512_fmadd_ps(u.offset16, _mm512_loadu_ps(a.sums + 16 * b), offset);
            if constexpr (Fmt::kMiddle != 0.0f) {  // the values of middle levels, where minimums are
                const __m512 scales = _mm512_shuffle_f32x4(u.scale, u.scale, 0xB1);
                const __m512 middle = _mm512_fmadd_ps(scales, _mm512_set1_ps(Fmt::kMiddle), u.scale);
                const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7);
                const __m512 lost = _mm512_castps256_ps512(_mm256_loadu_ps(a.lost + 8 * b));
                offset = _mm512_fmadd_ps(middle, _mm512_permutexvar_ps(order, lost), offset);
            }
        }

        inline float total() const {
            __m512 sum;
            if constexpr (Fmt::kLanes == Lanes::kPlain)
                sum = _mm512_add_ps(even, odd);
            else
                sum = _mm512_fmadd_ps(even, lane_factors<Fmt::kLanes>(false),
                                      _mm512_mul_ps(odd, lane_factors<Fmt::kLanes>(true)));
            if constexpr (kOffset) {
                const __mmask16 lanes = Fmt::kGroup == 32 ? 0xF0F0 : 0xFFFF;
                sum = _mm512_mask3_fnmadd_ps(offset, _mm512_set1_ps(Fmt::kBias), sum, lanes);
            }
            return _mm512_reduce_add_ps(sum);
        }
    };
};

void prepare() {}

}  // namespace
}  // namespace jamba

#include "decode/dot_rows.h"
