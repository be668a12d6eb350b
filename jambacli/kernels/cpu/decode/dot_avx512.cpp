// Products of block-quantized rows with activations of one int8 or two, 64 bytes at a time: by multiply-add of byte pairs at
// level avx512, by one instruction for four products at level vnni.
//
// Order of the arithmetic for one output, the same for any number of tokens: per 256 values one vector of int32 sums over 16
// values each, converted and scaled into a float accumulator; offsets into a second; one reduction at the end.
#include <new>

#include "base/scratch.h"
#include "decode/inner_kernels.h"
#include "decode/row_blocks.h"
#include "decode/unpack_avx512.h"

namespace jamba {
namespace {

// sums + the products of 64 weights with activations, in fours.
template <bool kSigned>
inline __m512i add_products(__m512i sums, __m512i weight, __m512i act) {
#if defined(__AVX512VNNI__)
    return _mm512_dpbusd_epi32(sums, weight, act);
#else
    // |w| times a with w's sign: a sum of two products stays within int16.
    if constexpr (kSigned) {
        act = _mm512_mask_sub_epi8(act, _mm512_movepi8_mask(weight), _mm512_setzero_si512(), act);
        weight = _mm512_abs_epi8(weight);
    }
    return _mm512_add_epi32(sums, _mm512_madd_epi16(_mm512_maddubs_epi16(weight, act), _mm512_set1_epi16(1)));
#endif
}

// The same with activations `act`, or 128 * act + fine where kPrecise.
template <bool kSigned, bool kPrecise>
inline __m512i dot64(__m512i weight, const int8_t* act, const int8_t* fine) {
    __m512i sums = add_products<kSigned>(_mm512_setzero_si512(), weight, load64(act));
    if constexpr (kPrecise) sums = add_products<kSigned>(_mm512_slli_epi32(sums, 7), weight, load64(fine));
    return sums;
}

// Sums of four lanes each: lane 4 j + k is that of the lanes 4 j to 4 j + 3 of vector k, so of unit 4 k + j of 16 values.
inline __m512i unit_sums(const __m512i (&x)[4]) {
    const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
    const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

// Which of the factors multiplies each unit's lane.
template <int kGroup>
inline __m512i unit_lanes() {
    if constexpr (kGroup == 16) return _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_setr_epi32(0, 2, 8, 10, 0, 2, 8, 10, 1, 3, 9, 11, 1, 3, 9, 11);
}

// What the lanes of the sums are multiplied by at the end.
template <Lanes kLanes>
inline __m512 lane_factors() {
    const auto rows = [](float a, float b, float c, float d) {
        return _mm512_setr_ps(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
    };
    if (kLanes == Lanes::kQuarters) return rows(1.0f, 1.0f / 16, 1.0f, 1.0f / 16);
    if (kLanes == Lanes::kHalves) return rows(1.0f, 1.0f, 1.0f / 16, 1.0f / 16);
    const float a = 1.0f, b = 1.0f / 4, c = 1.0f / 16, d = 1.0f / 64;
    return _mm512_setr_ps(a, c, a, c, a, c, a, c, b, d, b, d, b, d, b, d);
}

// The sum of all lanes, in an order that LaneSums::total() follows.
inline float sum_lanes(__m512 x) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

template <class Fmt, bool kFine>
struct Products {
    using Format = Fmt;
    using Weights = Unpacked;
    static constexpr bool kAhead = false;
    static constexpr bool kPrecise = kFine, kSigned = Fmt::kSigned;
    static constexpr bool kOffset = kFullBytes || !kSigned;

    struct Token {
        const int8_t *q = nullptr, *fine = nullptr;
        const float* factors = nullptr;  // groups of 32: Act::pairs; of 16: Act::d16
        const float *d16 = nullptr, *sum32 = nullptr;
        const float* sums = nullptr;     // groups of 16: Act::sum16
        const float* lost = nullptr;
        Token() = default;
        Token(const Act& act, int64_t token) {
            q = act.q + token * act.padded;
            if (kPrecise) fine = act.fine + token * act.padded;
            d16 = act.d16 + token * (act.padded / 16);
            sum32 = act.sum32 + token * (act.padded / 32);
            factors = Fmt::kGroup == 32 ? act.pairs + token * (act.padded / 16) : d16;
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

    // The values of middle levels, where minimums are in `scale`.
    static inline __m512 middle(const Unpacked& u) {
        const __m512 scales = _mm512_shuffle_f32x4(u.scale, u.scale, 0xB1);
        return _mm512_fmadd_ps(scales, _mm512_set1_ps(Fmt::kMiddle), u.scale);
    }

    struct Sums {
        __m512 sum, offset;
        void clear() { sum = offset = _mm512_setzero_ps(); }

        inline void add(const typename Fmt::Block* block, const Token& a) { add(unpack<false>(block, 8), a, 0); }
        inline void add(const Unpacked& u, const Token& a, int64_t b) {
            __m512i dots[4];
            for (int k = 0; k < 4; ++k)
                dots[k] = dot64<kSigned, kPrecise>(u.w[k], a.q + 256 * b + 64 * k, kPrecise ? a.fine + 256 * b + 64 * k : nullptr);
            const __m512 factors = _mm512_loadu_ps(a.factors + 16 * b);
            const __m512 by = _mm512_permutexvar_ps(unit_lanes<Fmt::kGroup>(), _mm512_mul_ps(u.scale, factors));
            sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(unit_sums(dots)), by, sum);
            if constexpr (kOffset && Fmt::kGroup == 32)  // only the lanes that hold offsets count
                offset = _mm512_fmadd_ps(u.scale, factors, offset);
            else if constexpr (kOffset)
                offset = _mm512_fmadd_ps(u.offset16, _mm512_loadu_ps(a.sums + 16 * b), offset);
            if constexpr (Fmt::kMiddle != 0.0f) {
                const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7);
                const __m512 lost = _mm512_castps256_ps512(_mm256_loadu_ps(a.lost + 8 * b));
                offset = _mm512_fmadd_ps(middle(u), _mm512_permutexvar_ps(order, lost), offset);
            }
        }

        inline float total() const {
            __m512 all = sum;
            if constexpr (Fmt::kLanes != Lanes::kPlain) all = _mm512_mul_ps(all, lane_factors<Fmt::kLanes>());
            if constexpr (kOffset) {  // group 2 p + h beside unit 4 p + h
                const __m512i of_groups = _mm512_setr_epi32(4, 6, 12, 14, 5, 7, 13, 15, 4, 6, 12, 14, 5, 7, 13, 15);
                const __m512i order = Fmt::kGroup == 32 ? of_groups : unit_lanes<16>();
                const __mmask16 lanes = Fmt::kGroup == 32 ? 0x00FF : 0xFFFF;
                all = _mm512_mask3_fnmadd_ps(_mm512_permutexvar_ps(order, offset), _mm512_set1_ps(Fmt::kBias), all, lanes);
            }
            return sum_lanes(all);
        }
    };
};

void prepare() {}

}  // namespace
}  // namespace jamba

#include "decode/token_lanes.h"

#include "decode/dot_rows.h"
