// Block products for AVX2: byte pairs multiplied and added twice over; at level avxvnni one instruction does it.
//
// Order of the arithmetic for one output, the same for any number of tokens. With int8 activations and formats of 256 values
// the scales are integers too: one vector of int32 sums per 256 values, one conversion, and one float accumulator. Otherwise
// per 256 values eight vectors of int32 sums, converted and scaled into two float accumulators. Offsets have an accumulator
// of their own; one reduction at the end.
#include <type_traits>

#include "decode/inner_kernels.h"
#include "decode/row_blocks.h"
#include "decode/unpack_avx2.h"

// sum + products of unsigned with signed bytes in fours, of int16 in twos. A test defines them as plain functions.
#if defined(__AVXVNNI__)
#define DOT_BYTES _mm256_dpbusd_avx_epi32
#define DOT_WORDS _mm256_dpwssd_avx_epi32
#endif

namespace jamba {
namespace {

INLINE float sum_lanes(__m256 x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// 32 products of weights with activations, added in pairs. |w| is multiplied by a with w's sign, so the sum of two products
// stays within int16.
template <bool kSigned>
INLINE __m256i pair_sums(__m256i weight, const int8_t* act) {
    if constexpr (kSigned) return _mm256_maddubs_epi16(_mm256_abs_epi8(weight), _mm256_sign_epi8(load32(act), weight));
    return _mm256_maddubs_epi16(weight, load32(act));
}

// The products of 32 weights with `act`, or with 128 * act + fine where kPrecise, summed in fours, as floats: below 2^24,
// so exact.
template <bool kSigned, bool kPrecise>
INLINE __m256 dot32(__m256i weight, const int8_t* act, const int8_t* fine) {
#if defined(DOT_BYTES)
    const __m256i positive = kSigned ? _mm256_abs_epi8(weight) : weight;
    const auto with_sign = [&](const int8_t* p) { return kSigned ? _mm256_sign_epi8(load32(p), weight) : load32(p); };
    const __m256i sums = DOT_BYTES(_mm256_setzero_si256(), positive, with_sign(act));
    if constexpr (!kPrecise) return _mm256_cvtepi32_ps(sums);
    return _mm256_cvtepi32_ps(DOT_BYTES(_mm256_slli_epi32(sums, 7), positive, with_sign(fine)));
#else
    const __m256i one = _mm256_set1_epi16(1);
    const __m256i pairs = pair_sums<kSigned>(weight, act);
    if constexpr (!kPrecise) return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, one));
    return _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_madd_epi16(pairs, _mm256_set1_epi16(128)),
                                               _mm256_madd_epi16(pair_sums<kSigned>(weight, fine), one)));
#endif
}

// f(Constant<0>{}) to f(Constant<7>{}): for instructions that take a number.
template <class F>
INLINE void each_of_8(F f) {
    f(Constant<0>{}), f(Constant<1>{}), f(Constant<2>{}), f(Constant<3>{});
    f(Constant<4>{}), f(Constant<5>{}), f(Constant<6>{}), f(Constant<7>{});
}

// Products scaled as floats: every format with 15-bit activations, formats of 32 values with int8.
template <class Fmt, bool kPrecise>
struct FloatProducts {
    using Format = Fmt;
    using Weights = Unpacked;
    static constexpr bool kAhead = false;

    struct Token {
        const int8_t *q = nullptr, *fine = nullptr;
        const float *d = nullptr, *sums = nullptr, *lost = nullptr;  // of groups
        Token() = default;
        Token(const Act& act, int64_t token) {
            constexpr int kGroup = Fmt::kGroup;
            q = act.q + token * act.padded;
            if (kPrecise) fine = act.fine + token * act.padded;
            d = (kGroup == 32 ? act.d : act.d16) + token * (act.padded / kGroup);
            sums = (kGroup == 32 ? act.sum32 : act.sum16) + token * (act.padded / kGroup);
            lost = act.lost32 + token * (act.padded / 32);
        }
        INLINE void next() {
            q += 256, d += 256 / Fmt::kGroup, sums += 256 / Fmt::kGroup, lost += 8;
            if (kPrecise) fine += 256;
        }
    };

    // kPart: the factors behind the row are cleared since they may not be finite.
    template <bool kPart>
    static INLINE Unpacked unpack(const typename Fmt::Block* block, int blocks) {
        Unpacked u;
        each_of_8([&](auto k) { u.w[k.value] = Fmt::template weight<k.value>(block); });
        Fmt::factors(block, u);
        if constexpr (kPart && Fmt::kGroup == 32) {
            const __m256i in_row = _mm256_cmpgt_epi32(_mm256_set1_epi32(blocks), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            u.scale[0] = _mm256_and_ps(u.scale[0], _mm256_castsi256_ps(in_row));
            if constexpr (Fmt::kOffset) u.offset[0] = _mm256_and_ps(u.offset[0], _mm256_castsi256_ps(in_row));
        }
        return u;
    }

    struct Sums {
        __m256 even, odd, offset;
        INLINE void clear() { even = odd = offset = _mm256_setzero_ps(); }

        INLINE void add(const Unpacked& u, const Token& a, int64_t b) {
            add_block(u, [&](auto k) { return u.w[k.value]; }, a, b);
        }
        INLINE void add(const typename Fmt::Block* block, const Token& a) {
            Unpacked u;
            Fmt::factors(block, u);
            add_block(u, [&](auto k) { return Fmt::template weight<k.value>(block); }, a, 0);
        }
        INLINE float total() const { return sum_lanes(_mm256_add_ps(_mm256_add_ps(even, odd), offset)); }

       private:
        template <class Weight>
        INLINE void add_block(const Unpacked& u, Weight weight, const Token& a, int64_t b) {
            const int8_t* q = a.q + 256 * b;
            const int8_t* fine = kPrecise ? a.fine + 256 * b : nullptr;
            constexpr int kVectors = 256 / Fmt::kGroup / 8;  // of factors
            __m256 scale;
            const auto add = [&](auto number) __attribute__((always_inline)) {
                constexpr int k = decltype(number)::value, kEach = 8 / kVectors, h = k / kEach, j = k % kEach;
                constexpr int first = kVectors * j, last = first + kVectors - 1;
                if (j == 0) scale = _mm256_mul_ps(u.scale[h], _mm256_loadu_ps(a.d + 8 * (kVectors * b + h)));
                const __m256 by = _mm256_permutevar8x32_ps(
                    scale, _mm256_setr_epi32(first, first, first, first, last, last, last, last));
                __m256& acc = k & 1 ? odd : even;
                acc = _mm256_fmadd_ps(dot32<Fmt::kSigned, kPrecise>(weight(number), q + 32 * k, fine + 32 * k), by, acc);
                if constexpr (Fmt::kOffset && j == kEach - 1)
                    offset = _mm256_fnmadd_ps(u.offset[h], _mm256_loadu_ps(a.sums + 8 * (kVectors * b + h)), offset);
            };
            each_of_8(add);
            if constexpr (Fmt::kMiddle != 0.0f) {
                const __m256 middle = _mm256_fmsub_ps(u.scale[0], _mm256_set1_ps(Fmt::kMiddle), u.offset[0]);
                offset = _mm256_fmadd_ps(middle, _mm256_loadu_ps(a.lost + 8 * b), offset);
            }
        }
    };
};

// Products scaled as integers: formats of 256 values, whose scales are integers below 128, with int8 activations, whose
// factors are multiples of up to 128 of one per 256 values. A lane of int32 holds a block's sum: IQ4_XS comes closest to
// 2^31 with 32 products of 127 * 127 * 32 * 127 (where a multiple is 128, activations are below 127); the scales of Q6_K are larger, so each half of its block has its own sum.
template <class Fmt>
struct IntegerProducts {
    static constexpr bool kHalves = std::is_same_v<Fmt, Q6_K>;
    using Format = Fmt;
    using Weights = UnpackedIntegers;
    static constexpr bool kAhead = Fmt::kGroup == 32;

    struct Factors {
        alignas(32) int32_t scales[8];  // of groups of 32, each twice in int16
        float factor;
    };

    struct Token {
        const int8_t* q = nullptr;
        const int16_t *multiple = nullptr, *sums = nullptr;
        const float *step = nullptr, *sum32 = nullptr;
        Token() = default;
        Token(const Act& act, int64_t token) {
            q = act.q + token * act.padded;
            multiple = Fmt::kGroup == 32 ? act.multiple16 + token * (act.padded / 16) : act.multiple128 + token * (act.padded / 32);
            sums = act.integer_sum16 + token * (act.padded / 16);
            step = act.step + token * (act.padded / 256);
            sum32 = act.sum32 + token * (act.padded / 32);
        }
        INLINE void next() { q += 256, multiple += Fmt::kGroup == 32 ? 16 : 8, sums += 16, ++step, sum32 += 8; }
    };

    template <bool kPart>
    static INLINE UnpackedIntegers unpack(const typename Fmt::Block* block, int) {
        UnpackedIntegers u;
        each_of_8([&](auto k) { u.w[k.value] = Fmt::template weight<k.value>(block); });
        Fmt::integers(block, u);
        return u;
    }

    struct Sums {
        __m256 sum, offset;
        INLINE void clear() { sum = offset = _mm256_setzero_ps(); }

        INLINE void add(const UnpackedIntegers& u, const Token& a, int64_t b) {
            add_block<false>(u, [&](auto k) { return u.w[k.value]; }, a, b);
        }
        // The same for a single token: weights do not go by way of memory.
        INLINE void add(const typename Fmt::Block* block, const Token& a) {
            UnpackedIntegers u;
            Fmt::integers(block, u);
            add_block<true>(u, [&](auto k) { return Fmt::template weight<k.value>(block); }, a, 0);
        }
        // The same in two steps for groups of 32: no product waits for its factor. prepare() is for block i from `block`.
        INLINE void prepare(const typename Fmt::Block* block, const Token& a, int i, Factors& f) {
            UnpackedIntegers u;
            Fmt::integers(block + i, u);
            _mm256_store_si256(reinterpret_cast<__m256i*>(f.scales), multiplied(u.scale, a, i));
            f.factor = _mm256_cvtss_f32(_mm256_mul_ps(u.factor, _mm256_broadcast_ss(a.step + i)));
            if constexpr (Fmt::kOffset) offset = _mm256_fnmadd_ps(u.offset, _mm256_loadu_ps(a.sum32 + 8 * i), offset);
        }
        INLINE void add(const typename Fmt::Block* block, const Token& a, const Factors& f) {
            __m256i total = _mm256_setzero_si256();
            each_of_8([&](auto k) __attribute__((always_inline)) {
                const __m256i pairs = pair_sums<Fmt::kSigned>(Fmt::template weight<k.value>(block), a.q + 32 * k.value);
                total = add_products(total, pairs, _mm256_set1_epi32(f.scales[k.value]));
            });
            sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), _mm256_broadcast_ss(&f.factor), sum);
        }
        INLINE float total() const { return sum_lanes(_mm256_add_ps(sum, offset)); }

       private:
        // kByLoads: where weights do not come from memory, loads take the place of shuffles (groups of 16).
        template <bool kByLoads, class Weight>
        INLINE void add_block(const UnpackedIntegers& u, Weight weight, const Token& a, int64_t b) {
            const int8_t* q = a.q + 256 * b;
            const __m256i scale = multiplied(u.scale, a, b);
            __m256i total = _mm256_setzero_si256(), first_half;
            if constexpr (Fmt::kGroup == 32) {  // each scale twice
                const __m256i four[2] = {_mm256_permute2x128_si256(scale, scale, 0x00),
                                         _mm256_permute2x128_si256(scale, scale, 0x11)};
                each_of_8([&](auto number) __attribute__((always_inline)) {
                    constexpr int k = decltype(number)::value;
                    const __m256i pairs = pair_sums<Fmt::kSigned>(weight(number), q + 32 * k);
                    total = add_products(total, pairs, _mm256_shuffle_epi32(four[k / 4], k % 4 * 0x55));
                });
            } else {
                alignas(32) float twice[4][8];  // of vectors 2 j and 2 j + 1 in turn: each scale in two int16, two of each
                if constexpr (kByLoads) {
                    for (int j = 0; j < 4; ++j) {
                        const __m256i pick = _mm256_set1_epi64x(0x0302030201000100 + 0x0404040404040404 * j);
                        _mm256_store_ps(twice[j], _mm256_castsi256_ps(_mm256_shuffle_epi8(scale, pick)));
                    }
                    __asm__("" : "+m"(twice));
                }
                each_of_8([&](auto number) __attribute__((always_inline)) {
                    constexpr int k = decltype(number)::value;
                    if (kHalves && k == 4) {
                        first_half = total;
                        total = _mm256_setzero_si256();
                    }
                    const __m256i pairs = pair_sums<Fmt::kSigned>(weight(number), q + 32 * k);
                    __m256i by;
                    if constexpr (kByLoads) {  // loads that repeat every other float
                        const __m256 both = _mm256_load_ps(twice[k / 2]);
                        by = _mm256_castps_si256(k % 2 ? _mm256_movehdup_ps(both) : _mm256_moveldup_ps(both));
                    } else {
                        by = _mm256_shuffle_epi8(scale, _mm256_set1_epi16(static_cast<short>(0x0100 + 0x0202 * k)));
                    }
                    total = add_products(total, pairs, by);
                });
            }
            const __m256 step = _mm256_broadcast_ss(a.step + b);
            __m256 value = _mm256_cvtepi32_ps(total);
            if constexpr (kHalves) value = _mm256_add_ps(value, _mm256_cvtepi32_ps(first_half));
            if constexpr (Fmt::kBias != 0) {  // the offset is a multiple of the scale
                const __m256i biased = _mm256_madd_epi16(scale, load32(a.sums + 16 * b));
                value = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(biased), _mm256_set1_ps(Fmt::kBias), value);
            } else if constexpr (Fmt::kOffset && Fmt::kGroup == 32) {
                offset = _mm256_fnmadd_ps(u.offset, _mm256_loadu_ps(a.sum32 + 8 * b), offset);
            } else if constexpr (Fmt::kOffset) {
                const __m256i products = _mm256_madd_epi16(multiplied(u.minimum, a, b), load32(a.sums + 16 * b));
                offset = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(products), _mm256_mul_ps(u.offset, step), offset);
            }
            sum = _mm256_fmadd_ps(value, _mm256_mul_ps(u.factor, step), sum);
        }
        // A block's scales times the integers of the activations' factors.
        static INLINE __m256i multiplied(__m256i scale, const Token& a, int64_t b) {
            if constexpr (Fmt::kGroup == 32) return _mm256_mullo_epi16(scale, load32(a.multiple + 16 * b));
            // 256 times the one by 128 times the other, over 2^15: exact.
            const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a.multiple + 8 * b));
            return _mm256_mulhrs_epi16(scale, _mm256_broadcastsi128_si256(eight));
        }
        static INLINE __m256i add_products(__m256i total, __m256i pairs, __m256i scale) {
#if defined(DOT_WORDS)
            return DOT_WORDS(total, pairs, scale);
#else
            return _mm256_add_epi32(total, _mm256_madd_epi16(pairs, scale));
#endif
        }
    };
};

void prepare() { fill_half_values(); }

template <class Fmt, bool kPrecise>
using Products =
    std::conditional_t<Fmt::kIntegerScales && !kPrecise, IntegerProducts<Fmt>, FloatProducts<Fmt, kPrecise>>;

// Every token is multiplied along the rows.
template <class P>
struct TokensInLanes {
    template <class Pick>
    TokensInLanes(const Act&, const int32_t*, int, const Pick&) {}
    int multiply(const Rows&, int64_t, int64_t, float*, int64_t) const { return 0; }
};

}  // namespace
}  // namespace jamba

#include "decode/dot_rows.h"
