// int8 panels: inputs rounded to unsigned bytes with a factor and a zero point for every 32, weights as signed levels with their
// blocks' scales, sums of 32 products as integers. Four products an instruction with VNNI; elsewhere pairs of products, added
// up as int16 while the format's levels are small enough.
//
// An input is x = factor * u + zero, a weight w = scale * level + offset, so their products add up to
//   factor * scale * sum(u level) + zero * scale * sum(level) + offset * sum(x).
// Formats whose factor of ggml is one for 256 inputs have zero = -128 * factor ("balanced"): the second term then is part of where
// the sum of integers starts, and costs nothing. The others, where ggml has a factor for 32 inputs too, lose a sixth less by
// bytes that reach from the smallest to the largest input ("ranged").
//
// One sum of integers becomes a float by its bits: it starts at the bits of 1.5 * 2^23, whose last place counts ones, and
// scale * (1.5 * 2^23 + sum) - scale * 1.5 * 2^23 is one multiply-add, exact since a scale has at most 22 bits.
#include <cstddef>

#include "prefill/levels_int8.h"
#include "prefill/tiles.h"

// sum + products of unsigned with signed bytes in fours; level avxvnni's may be defined by a test as a plain function.
#if defined(__AVX512VNNI__)
#define DOT_BYTES _mm512_dpbusd_epi32
#elif defined(__AVXVNNI__)
#define DOT_BYTES _mm256_dpbusd_avx_epi32
#endif

namespace jamba {
namespace {

#if defined(DOT_BYTES)
constexpr bool kVnni = true;
#else
constexpr bool kVnni = false;
#endif

// Without VNNI, bytes of eight bits take two products, of four bits each. On the three vector ports of AVX2 they are faster than
// f32 products, on the two of AVX-512 they are not.
#if defined(__AVX512F__) || defined(DOT_BYTES)
constexpr bool kHalves = false;
#else
constexpr bool kHalves = true;
#endif

constexpr int kPart = 4;                      // rows of inputs that a microkernel takes
constexpr int kVectors = 2;                   // vectors of rows of weights that it takes
constexpr int kPartRows = kVectors * kLanes;  // 32 or 16
constexpr float kMagic = 12582912.0f;         // 1.5 * 2^23
constexpr int32_t kMagicBits = 0x4b400000;
constexpr int32_t kMiddle = 128;  // the byte of zero in balanced inputs

// Four rows of inputs, 32 values each: bytes u, x = factor * u + zero, and sums of x over both groups of 16 and each.
struct alignas(64) InputPart {
    uint8_t u[kPart][kChunk];
    float factor[kPart], zero[kPart], sum[kPart];
    float half_sum[2][kPart];
    float unused[12];
};
static_assert(sizeof(InputPart) == 256, "four cache lines");
constexpr int64_t kInputChunk = kGroup / kPart * sizeof(InputPart);

// Of 16 rows of weights, for one or two groups of a chunk. `third` is the scale times the sum of levels for ranged inputs; for
// balanced ones where integers start: -128 times the sum of levels, and the magic number's bits.
struct alignas(64) GroupScales {
    float scale[kGroup], minus_magic[kGroup];
    union {
        float sum[kGroup];
        int32_t start[kGroup];
    } third;
    float offset[kGroup];
};
// The same where levels' sums are multiplied by integer scales: those of the two groups, twice 16 bits in every place, where
// integers start, and what all are multiplied by.
struct alignas(64) IntegerScales {
    int32_t pair[2][kGroup], start[kGroup];
    float factor[kGroup];
};
struct PanelScales {
    union {
        GroupScales group[2];
        IntegerScales integers;
    };
};
// Levels [k / 4][16 rows][4 k] of all chunks (halved: the low four bits, then the high ones of all chunks), then scales.
constexpr int64_t kPanelChunk = (kHalves ? 2 : 1) * kChunkSize + sizeof(PanelScales);

// The largest of 32 values' sizes, as bits: larger than those of infinity where one is no number.
inline int32_t largest_bits(const float* x) {
#if defined(__AVX512F__)
    const __m512i size = _mm512_set1_epi32(0x7fffffff);
    const __m512i a = _mm512_and_si512(_mm512_loadu_si512(x), size), b = _mm512_and_si512(_mm512_loadu_si512(x + 16), size);
    const __m512i both = _mm512_max_epi32(a, b);
    const __m256i eight = _mm256_max_epi32(_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64(both, 1));
#else
    const auto part = [x](int i) { return _mm256_and_si256(load32(x + 8 * i), _mm256_set1_epi32(0x7fffffff)); };
    const __m256i eight = _mm256_max_epi32(_mm256_max_epi32(part(0), part(1)), _mm256_max_epi32(part(2), part(3)));
#endif
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

// The smallest and the largest of 32 numbers.
inline void range_of(const float* x, float& smallest, float& largest) {
    const auto part = [x](int i) { return _mm256_loadu_ps(x + 8 * i); };
    const __m256 low = _mm256_min_ps(_mm256_min_ps(part(0), part(1)), _mm256_min_ps(part(2), part(3)));
    const __m256 high = _mm256_max_ps(_mm256_max_ps(part(0), part(1)), _mm256_max_ps(part(2), part(3)));
    // Both at once: the lower two places of the smallest and of the largest's opposites.
    const __m256 minus = _mm256_xor_ps(high, _mm256_set1_ps(-0.0f));
    const __m128 a = _mm_min_ps(_mm256_castps256_ps128(low), _mm256_extractf128_ps(low, 1));
    const __m128 b = _mm_min_ps(_mm256_castps256_ps128(minus), _mm256_extractf128_ps(minus, 1));
    const __m128 two = _mm_min_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
    const __m128 one = _mm_min_ps(two, _mm_shuffle_ps(two, two, 0xb1));
    smallest = _mm_cvtss_f32(one);
    largest = -_mm_cvtss_f32(_mm_movehl_ps(one, one));
}

inline float sum_of(const float* x) {
    const auto part = [x](int i) { return _mm256_loadu_ps(x + 8 * i); };
    const __m256 eight = _mm256_add_ps(_mm256_add_ps(part(0), part(1)), _mm256_add_ps(part(2), part(3)));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

// x * factor rounded to the nearest integers, plus zero: from 0 to 255.
inline __m256i rounded(const float* x, float factor, int32_t zero) {
#if defined(__AVX512F__)
    const __m512 f = _mm512_set1_ps(factor);
    const __m512i z = _mm512_set1_epi32(zero);
    const auto part = [&](int i) {
        const __m512i n = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16 * i), f)), z);
        return _mm512_cvtusepi32_epi8(_mm512_max_epi32(n, _mm512_setzero_si512()));
    };
    return _mm256_set_m128i(part(1), part(0));
#else
    const __m256 f = _mm256_set1_ps(factor);
    const __m256i z = _mm256_set1_epi32(zero);
    const auto part = [&](int i) {
        return _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), f)), z);
    };
    const __m256i mixed = _mm256_packus_epi16(_mm256_packs_epi32(part(0), part(1)), _mm256_packs_epi32(part(2), part(3)));
    return _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#endif
}

// Rounds 32 values to bytes for row `i` of a part. A value that is no number makes the factor NaN, and so all products.
template <bool kRanged>
inline void quantize(const float* x, InputPart& to, int i) {
    const int32_t most = largest_bits(x);
    float largest, factor = 0.0f, inverse = 0.0f;
    int32_t zero = kMiddle;  // the byte of 0
    std::memcpy(&largest, &most, 4);
    if (most >= 0x7f800000) {
        factor = __builtin_nanf("");
    } else if (largest > 1e-30f) {
        if constexpr (kRanged) {
            // Ends fall between bytes since 0 is one exactly, hence 254. A zero point far outside would cost places of x.
            float low, high;
            range_of(x, low, high);
            factor = high * (1.0f / 254.0f) - low * (1.0f / 254.0f);
            const float least = largest * (1.0f / 65536.0f);
            if (factor < least) factor = least;
            inverse = 1.0f / factor;
            zero = -_mm_cvtss_si32(_mm_set_ss(low * inverse));
        } else {
            factor = largest * (1.0f / 127.0f);
            inverse = 127.0f / largest;
        }
    }
    const __m256i u = rounded(x, inverse, zero);
    _mm256_store_si256(reinterpret_cast<__m256i*>(to.u[i]), u);
    const __m256i eights = _mm256_sad_epu8(u, _mm256_setzero_si256());  // sums of eight, 64 bits each
    const __m128i first = _mm256_castsi256_si128(eights), second = _mm256_extracti128_si256(eights, 1);
    const __m128i sums = _mm_add_epi64(_mm_unpacklo_epi64(first, second), _mm_unpackhi_epi64(first, second));
    const int32_t half[2] = {_mm_cvtsi128_si32(sums) - 16 * zero, _mm_extract_epi32(sums, 2) - 16 * zero};
    const float sum = factor * static_cast<float>(half[0] + half[1]);
    to.factor[i] = factor;
    to.zero[i] = factor * static_cast<float>(-zero);
    to.sum[i] = sum;
    for (int h = 0; h < 2; ++h) to.half_sum[h][i] = factor * static_cast<float>(half[h]);
    if constexpr (kRanged) {  // as far off as makes the sum right: what weights have in common then loses nothing
        to.sum[i] = sum_of(x);
        to.zero[i] += (to.sum[i] - sum) * (1.0f / kChunk);
    }
}

template <bool kRanged>
void pack_int8(const float* const* rows, int64_t k, void* out) {
    alignas(64) float last[kChunk] = {};
    const int64_t rest = k % kChunk;
    for (int m = 0; m < kGroup; ++m) {
        InputPart* part = static_cast<InputPart*>(out) + m / kPart;
        if (rest && rows[m]) std::memcpy(last, rows[m] + k - rest, static_cast<size_t>(rest) * 4);
        alignas(64) static constexpr float kZeros[kChunk] = {};
        for (int64_t i = 0; i < k; i += kChunk, part += kGroup / kPart)
            quantize<kRanged>(!rows[m] ? kZeros : k - i < kChunk ? last : rows[m] + i, *part, m % kPart);
    }
}

// The products of a group of weights with one row of inputs lie side by side: silu(g) * u, 32 values of k from two groups.
template <bool kRanged>
void gate_int8(const float* g, const float* u, int64_t n_groups, int64_t m_groups, void* out, int64_t stride) {
    alignas(64) float gated[kChunk];
    for (int64_t m = 0; m < m_groups * kGroup; ++m) {
        auto* part = reinterpret_cast<InputPart*>(static_cast<uint8_t*>(out) + m / kGroup * stride) + m % kGroup / kPart;
        for (int64_t n = 0; n < n_groups; n += 2, part += kGroup / kPart) {
            for (int i = 0; i < kChunk; i += kLanes) {
                const int64_t at = (n + i / kGroup) * m_groups * kTile + m * kGroup + i % kGroup;
                store(gated + i, siluv(load(g + at)) * load(u + at));
            }
            quantize<kRanged>(gated, *part, static_cast<int>(m % kPart));
        }
    }
}

void store_int8(const float* c, int64_t n_groups, int64_t m_groups, int64_t n_valid, int64_t m_valid, const Output& to) {
    for (int64_t m = 0; m < m_valid; ++m) {
        float* row = to.out + (to.rows ? to.rows[m] : m) * to.stride;
        for (int64_t n = 0; n < n_groups * kGroup && n < n_valid; n += kLanes) {
            vf y = load(c + n / kGroup * m_groups * kTile + m * kGroup + n % kGroup);
            if (to.weights) y = fma(y, set1(to.weights[m]), load_part(row + n, n_valid - n));
            store_part(row + n, y, n_valid - n);
        }
    }
}

// Planes of levels: two of four bits where bytes have eight and are multiplied as pairs.
template <class Fmt>
constexpr int planes() {
    return !kVnni && Fmt::kMost > 63 ? 2 : 1;
}

// What makes unsigned levels signed ones.
template <class Fmt>
constexpr int middle() {
    return Fmt::kMost == 255 ? 0 : (Fmt::kMost + 1) / 2;
}

// Whether inputs reach from the smallest to the largest value: where ggml's have a factor for every 32 as well.
template <class Fmt>
constexpr bool ranged() {
    return Fmt::Block::kValues <= 32;
}

// Whether sums of pairs are multiplied by scales as integers: saves operations where two groups share a chunk and pairs are
// widened anyway.
template <class Fmt>
constexpr bool integer_scales() {
    return !kVnni && Fmt::kGroup == 16 && !Fmt::kMinimum;
}

// Whether this level multiplies the format as bytes.
template <class Fmt>
constexpr bool has_products() {
    return kHalves || planes<Fmt>() == 1;
}

// A scale whose product with the magic number is exact.
inline float short_scale(float x) {
    uint32_t b;
    std::memcpy(&b, &x, 4);
    b = (b + 2) & ~3u;
    std::memcpy(&x, &b, 4);
    return x;
}

#if defined(__AVX512F__)
typedef __m512i vbytes;
inline vbytes load_bytes(const void* p) { return _mm512_loadu_si512(p); }
inline vbytes set_ints(int32_t x) { return _mm512_set1_epi32(x); }
inline vbytes pairs(vbytes u, vbytes s) { return _mm512_maddubs_epi16(u, s); }
inline vbytes add_pairs(vbytes a, vbytes b) { return _mm512_add_epi16(a, b); }
inline vbytes set_words(int x) { return _mm512_set1_epi16(static_cast<int16_t>(x)); }
inline vbytes widen_pairs(vbytes a, vbytes factors) { return _mm512_madd_epi16(a, factors); }
inline vbytes add_ints(vbytes a, vbytes b) { return _mm512_add_epi32(a, b); }
#else
typedef __m256i vbytes;
inline vbytes load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline vbytes set_ints(int32_t x) { return _mm256_set1_epi32(x); }
inline vbytes pairs(vbytes u, vbytes s) { return _mm256_maddubs_epi16(u, s); }
inline vbytes add_pairs(vbytes a, vbytes b) { return _mm256_add_epi16(a, b); }
inline vbytes set_words(int x) { return _mm256_set1_epi16(static_cast<int16_t>(x)); }
inline vbytes widen_pairs(vbytes a, vbytes factors) { return _mm256_madd_epi16(a, factors); }
inline vbytes add_ints(vbytes a, vbytes b) { return _mm256_add_epi32(a, b); }
#endif

inline void store_ints(int32_t* p, vi x) { std::memcpy(p, &x, sizeof x); }

// Of a vector of rows, the sums of 4 * kSteps levels.
template <int kSteps>
inline vi level_sums(const uint8_t* w) {
    const vbytes ones = set_ints(0x01010101);
    vbytes words = pairs(ones, load_bytes(w));
    for (int k = 1; k < kSteps; ++k) words = add_pairs(words, pairs(ones, load_bytes(w + k * kGroup * 4)));
    return (vi)widen_pairs(words, set_words(1));
}

// ExpertsInt8: a block is one value, and the row has the scale.
struct I8 {
    using Block = block_i8;
    static constexpr int kGroup = 32, kBias = 0, kMost = 255;
    static constexpr bool kMinimum = false;
    static inline __m256i levels(const Block& b, int) { return load32(&b); }
    static inline Planes planes(const Block& b, int) { return planes_of(load32(&b)); }
};

// 16 rows of 256 levels, two chunks to a line.
using Levels = uint8_t[4][kGroup][64];

// Levels and scales of up to 256 values of row r, from `p` on.
template <class Fmt>
inline void unpack_row(const uint8_t* p, int64_t n, const float* row_scale, int r, Levels* levels, float* scales, float* offsets) {
    const auto store_row = [levels, r](int plane, int64_t c, __m256i x) { store32(levels[plane][c / 2][r] + c % 2 * kChunk, x); };
    const auto put = [&](int64_t c, const typename Fmt::Block* block, int i) {
        if constexpr (planes<Fmt>() == 2) {
            const Planes both = Fmt::planes(*block, i);
            store_row(0, c, both.low);
            store_row(1, c, both.high);
        } else {
            store_row(0, c, _mm256_sub_epi8(Fmt::levels(*block, i), _mm256_set1_epi8(static_cast<char>(middle<Fmt>()))));
        }
    };
    if constexpr (Fmt::Block::kValues == 1) {
        for (int64_t c = 0; c * kChunk < n; ++c) {
            alignas(32) uint8_t last[kChunk] = {};
            const int64_t left = n - c * kChunk;
            if (left < kChunk) std::memcpy(last, p + c * kChunk, static_cast<size_t>(left));
            put(c, reinterpret_cast<const block_i8*>(left < kChunk ? last : p + c * kChunk), 0);
            scales[c] = short_scale(*row_scale);
        }
    } else {
        constexpr int kChunks = Fmt::Block::kValues / kChunk;
        const auto* block = reinterpret_cast<const typename Fmt::Block*>(p);
        for (int64_t c = 0; c * kChunk < n; c += kChunks, ++block) {
            for (int i = 0; i < kChunks; ++i) put(c + i, block, i);
            const int64_t g = c * 32 / Fmt::kGroup;
            if constexpr (integer_scales<Fmt>()) {
                scale_sixteen(1.0f, Fmt::units(*block), scales + g);
                for (int i = 0; i < 16; ++i) offsets[g + i] = to_float(block->d);
            } else {
                Fmt::scales(*block, scales + g, offsets + g);
            }
        }
    }
}

// Values first..first+n (at most 256) of 16 rows, of which `rows` exist, as one group of a panel.
template <class Fmt>
void fill(const uint8_t* data, int64_t row_bytes, const float* row_scale, int64_t rows, int64_t first, int64_t n, void* out) {
    const int64_t chunks = round_up(n, kChunk) / kChunk;
    constexpr int kGroups = 32 / Fmt::kGroup, kPlanes = planes<Fmt>(), kSteps = Fmt::kGroup / 4;
    alignas(64) Levels levels[kPlanes];
    alignas(64) float scales[kGroup][16], offsets[kGroup][16], turned[16][kGroup];
    const int64_t at = first / Fmt::Block::kValues * static_cast<int64_t>(sizeof(typename Fmt::Block));
    for (int r = 0; r < kGroup; ++r) {
        if (r < rows) {
            unpack_row<Fmt>(data + r * row_bytes + at, n, row_scale ? row_scale + r : nullptr, r, levels, scales[r], offsets[r]);
        } else {
            std::memset(scales[r], 0, sizeof scales[r]);
            std::memset(offsets[r], 0, sizeof offsets[r]);
        }
    }
    for (int plane = 0; plane < kPlanes; ++plane) {
        for (int64_t c = 0; c < chunks; c += 2) {
            const auto* from = reinterpret_cast<const float*>(levels[plane][c / 2]);
            float* to = static_cast<float*>(out) + (plane * chunks + c) * kChunkSize / 4;
            if (c + 1 < chunks) {
                transpose_tile(from, to, kGroup);
            } else {  // half a tile: what follows belongs to others
                transpose_tile(from, turned[0], kGroup);
                std::memcpy(to, turned, kChunkSize);
            }
        }
    }
    alignas(64) float offsets_turned[16][kGroup];
    transpose_tile(scales[0], turned[0], kGroup);
    if constexpr (Fmt::kMinimum || integer_scales<Fmt>()) transpose_tile(offsets[0], offsets_turned[0], kGroup);
    const auto* bytes = static_cast<const uint8_t*>(out);
    auto* to = reinterpret_cast<PanelScales*>(static_cast<uint8_t*>(out) + kPlanes * chunks * kChunkSize);
    for (int64_t c = 0; c < chunks; ++c) {
        for (int r = 0; r < kGroup; r += kLanes) {
            vi start{};
            for (int h = 0; h < kGroups; ++h) {
                vi sum = level_sums<kSteps>(bytes + c * kChunkSize + (h * kSteps * kGroup + r) * 4);
                if constexpr (kPlanes == 2) sum += 16 * level_sums<kSteps>(bytes + (chunks + c) * kChunkSize + r * 4);
                const vf scale = load(turned[c * kGroups + h] + r);
                if constexpr (integer_scales<Fmt>()) {
                    const vi units = __builtin_convertvector(scale, vi);
                    start -= kMiddle * (units * sum);
                    store_ints(to[c].integers.pair[h] + r, (units & 0xffff) | units << 16);
                } else {
                    GroupScales& group = to[c].group[h];
                    store(group.scale + r, scale);
                    store(group.minus_magic + r, scale * -kMagic);
                    if constexpr (ranged<Fmt>())
                        store(group.third.sum + r, scale * __builtin_convertvector(sum, vf));
                    else
                        store_ints(group.third.start + r, kMagicBits - kMiddle * sum);
                    if constexpr (Fmt::kMinimum)
                        store(group.offset + r, scale * static_cast<float>(middle<Fmt>()) - load(offsets_turned[c * kGroups + h] + r));
                }
            }
            if constexpr (integer_scales<Fmt>()) {
                store_ints(to[c].integers.start + r, start);
                store(to[c].integers.factor + r, load(offsets_turned[c * kGroups] + r));
            }
        }
    }
}

inline vbytes four_inputs(const uint8_t* u) {
    int32_t x;
    std::memcpy(&x, u, 4);
    return set_ints(x);
}

// Keeps the compiler from moving work on x across this place: it would hold more values at once than there are registers.
inline void settle(vbytes& x) {
#if defined(__AVX512F__)
    asm("" : "+v"(x));
#else
    asm("" : "+x"(x));
#endif
}

// Adds the sums of kSteps * 4 products to acc: kVectors vectors of rows of weights times T rows of inputs. Vector v begins at w +
// w_at[v]. Without VNNI: kTerms pairs of products fit int16; factors + factors_at[v]: what pairs are multiplied by, where kFactors,
// else `all` for all.
template <int kSteps, int kTerms, bool kFactors, int T>
inline void integer_sums(const uint8_t* w, const int64_t* w_at, const uint8_t (*u)[kChunk], const uint8_t* factors,
                         const int64_t* factors_at, int all, vbytes (&acc)[kVectors][T]) {
#if defined(DOT_BYTES)
#pragma GCC unroll 8
    for (int k = 0; k < kSteps; ++k) {
        vbytes b[T];
        for (int t = 0; t < T; ++t) b[t] = four_inputs(u[t] + 4 * k);
        for (int v = 0; v < kVectors; ++v) {
            const vbytes a = load_bytes(w + w_at[v] + k * kGroup * 4);
            for (int t = 0; t < T; ++t) acc[v][t] = DOT_BYTES(acc[v][t], b[t], a);
        }
    }
#else
    const auto factor = [&](int v) { return kFactors ? load_bytes(factors + factors_at[v]) : set_words(all); };
    const auto weights = [&](int v, int k) { return load_bytes(w + w_at[v] + k * kGroup * 4); };
    if constexpr (kTerms == 2) {
#pragma GCC unroll 4
        for (int k = 0; k < kSteps; k += 2) {
            for (int t = 0; t < T; ++t) {
                const vbytes b0 = four_inputs(u[t] + 4 * k), b1 = four_inputs(u[t] + 4 * k + 4);
                for (int v = 0; v < kVectors; ++v) {
                    const vbytes words = add_pairs(pairs(b0, weights(v, k)), pairs(b1, weights(v, k + 1)));
                    acc[v][t] = add_ints(acc[v][t], widen_pairs(words, factor(v)));
                    settle(acc[v][t]);
                }
            }
        }
        return;
    }
    constexpr int kRun = kSteps < kTerms ? kSteps : kTerms;
#pragma GCC unroll 8
    for (int run = 0; run < kSteps; run += kRun) {
        vbytes words[kVectors][T];
#pragma GCC unroll 8
        for (int k = 0; k < kRun; ++k) {
            for (int t = 0; t < T; ++t) {
                const vbytes b = four_inputs(u[t] + 4 * (run + k));
                for (int v = 0; v < kVectors; ++v) {
                    const vbytes products = pairs(b, weights(v, run + k));
                    words[v][t] = k ? add_pairs(words[v][t], products) : products;
                    settle(words[v][t]);
                }
            }
        }
        for (int v = 0; v < kVectors; ++v)
            for (int t = 0; t < T; ++t) acc[v][t] = add_ints(acc[v][t], widen_pairs(words[v][t], factor(v)));
    }
#endif
}

// Adds the same for levels in two planes, 16 * high + low, `plane` bytes apart: two rows of inputs at a time, whose bytes meet both
// planes while they are in a register, and whose sums all stay in registers.
template <int kSteps, int T>
inline void plane_sums(const uint8_t* w, int64_t plane, const int64_t* w_at, const uint8_t (*u)[kChunk], vbytes (&acc)[kVectors][T]) {
#if !defined(DOT_BYTES)
    constexpr int kRows = T < 2 ? T : 2;
#pragma GCC unroll 2
    for (int first = 0; first < T; first += kRows) {
        vbytes words[2][kVectors][kRows];
#pragma GCC unroll 8
        for (int k = 0; k < kSteps; ++k) {
            vbytes b[kRows];
            for (int t = 0; t < kRows; ++t) b[t] = four_inputs(u[first + t < T ? first + t : first] + 4 * k);
            for (int p = 0; p < 2; ++p) {
                for (int v = 0; v < kVectors; ++v) {
                    const vbytes a = load_bytes(w + p * plane + w_at[v] + k * kGroup * 4);
                    for (int t = 0; t < kRows; ++t) {
                        const vbytes products = pairs(b[t], a);
                        words[p][v][t] = k ? add_pairs(words[p][v][t], products) : products;
                        settle(words[p][v][t]);
                    }
                }
            }
        }
        for (int v = 0; v < kVectors; ++v) {
            for (int t = 0; t < kRows && first + t < T; ++t) {
                const vbytes low = widen_pairs(words[0][v][t], set_words(1)), high = widen_pairs(words[1][v][t], set_words(16));
                acc[v][first + t] = add_ints(acc[v][first + t], add_ints(low, high));
            }
        }
    }
#endif
}

// One microkernel: kVectors vectors of rows of weights times the first T rows of a part of inputs.
template <class Fmt, int T>
inline void micro(const uint8_t* w, const int64_t* w_at, const uint8_t* scales, const int64_t* scales_at, const InputPart* x,
                  int64_t chunks, float* const* c, bool accumulate) {
    constexpr int kGroups = 32 / Fmt::kGroup, kSteps = Fmt::kGroup / 4;
    constexpr int kTerms = Fmt::kMost <= 15 || planes<Fmt>() == 2 ? 8 : Fmt::kMost <= 31 ? 4 : 2;
    // By bytes: a vector may begin in the middle of the structs' arrays.
    const auto scales_of = [&](int v, int64_t at) { return reinterpret_cast<const float*>(scales + scales_at[v] + at); };
    vf total[kVectors][T];
    for (int v = 0; v < kVectors; ++v)
        for (int t = 0; t < T; ++t) total[v][t] = vf{};
    for (int64_t i = 0; i < chunks; ++i, w += kChunkSize, scales += sizeof(PanelScales), x += kGroup / kPart) {
        if constexpr (integer_scales<Fmt>()) {
            vbytes acc[kVectors][T];
            for (int v = 0; v < kVectors; ++v)
                for (int t = 0; t < T; ++t) acc[v][t] = load_bytes(scales_of(v, offsetof(IntegerScales, start)));
            for (int half = 0; half < 2; ++half) {
                const auto* u = reinterpret_cast<const uint8_t(*)[kChunk]>(x->u[0] + half * 16);
                integer_sums<kSteps, kTerms, true, T>(w + half * kSteps * kGroup * 4, w_at, u, scales + half * kGroup * 4, scales_at, 1,
                                                      acc);
            }
            for (int v = 0; v < kVectors; ++v)
                for (int t = 0; t < T; ++t)
                    total[v][t] = fma(__builtin_convertvector((vi)acc[v][t], vf), set1(x->factor[t]), total[v][t]);
            continue;
        }
        for (int half = 0; half < kGroups; ++half) {
            const int64_t group = half * sizeof(GroupScales);
            vbytes acc[kVectors][T];
            for (int v = 0; v < kVectors; ++v)
                for (int t = 0; t < T; ++t)
                    acc[v][t] = ranged<Fmt>() ? set_ints(kMagicBits) : load_bytes(scales_of(v, group + offsetof(GroupScales, third)));
            const auto* u = reinterpret_cast<const uint8_t(*)[kChunk]>(x->u[0] + half * 16);
            if constexpr (planes<Fmt>() == 2)
                plane_sums<kSteps, T>(w, chunks * kChunkSize, w_at, u, acc);
            else
                integer_sums<kSteps, kTerms, false, T>(w + half * kSteps * kGroup * 4, w_at, u, nullptr, nullptr, 1, acc);
            for (int v = 0; v < kVectors; ++v) {
                const vf scale = load(scales_of(v, group + offsetof(GroupScales, scale)));
                const vf minus_magic = load(scales_of(v, group + offsetof(GroupScales, minus_magic)));
                const float* third = scales_of(v, group + offsetof(GroupScales, third));
                const float* offset = scales_of(v, group + offsetof(GroupScales, offset));
                for (int t = 0; t < T; ++t) {
                    total[v][t] = fma(fma((vf)acc[v][t], scale, minus_magic), set1(x->factor[t]), total[v][t]);
                    if constexpr (ranged<Fmt>()) total[v][t] = fma(load(third), set1(x->zero[t]), total[v][t]);
                    if constexpr (Fmt::kMinimum)
                        total[v][t] = fma(load(offset), set1(kGroups == 1 ? x->sum[t] : x->half_sum[half][t]), total[v][t]);
                }
            }
        }
    }
    for (int v = 0; v < kVectors; ++v) {
        for (int t = 0; t < T; ++t) {
            vf sum = total[v][t];
            // One super-block at most: `scales` is one chunk further.
            if constexpr (integer_scales<Fmt>())
                sum = sum * load(scales_of(v, offsetof(IntegerScales, factor) - static_cast<int64_t>(sizeof(PanelScales))));
            store(c[v] + t * kGroup, accumulate ? load(c[v] + t * kGroup) + sum : sum);
        }
    }
}

template <class Fmt>
void multiply(const uint8_t* w, int64_t n_groups, int64_t w_stride, const uint8_t* x, int64_t m, int64_t x_stride, int64_t chunks,
              float* c, bool accumulate) {
    const int64_t m_groups = round_up(m, kGroup) / kGroup;
    for (int64_t n = 0; n < n_groups * kGroup; n += kPartRows) {
        int64_t w_at[kVectors], scales_at[kVectors], c_at[kVectors];
        for (int v = 0; v < kVectors; ++v) {
            const int64_t group = (n + v * kLanes) / kGroup, row = (n + v * kLanes) % kGroup;
            w_at[v] = group * w_stride + row * 4;
            scales_at[v] = group * w_stride + planes<Fmt>() * chunks * kChunkSize + row * 4;
            c_at[v] = group * m_groups * kTile + row;
        }
        for (int64_t first = 0; first < m; first += kPart) {
            const auto* part = reinterpret_cast<const InputPart*>(x + first / kGroup * x_stride) + first % kGroup / kPart;
            float* to[kVectors];
            for (int v = 0; v < kVectors; ++v) to[v] = c + c_at[v] + first * kGroup;
            switch (m - first) {
                case 1: micro<Fmt, 1>(w, w_at, w, scales_at, part, chunks, to, accumulate); break;
                case 2: micro<Fmt, 2>(w, w_at, w, scales_at, part, chunks, to, accumulate); break;
                case 3: micro<Fmt, 3>(w, w_at, w, scales_at, part, chunks, to, accumulate); break;
                default: micro<Fmt, kPart>(w, w_at, w, scales_at, part, chunks, to, accumulate);
            }
        }
    }
}

}  // namespace
}  // namespace jamba

namespace jamba {
namespace JAMBA_VARIANT {
namespace {

bool takes(int type) {
    switch (type) {
        case kI8: return has_products<I8>();
#define FORMAT(name, block, id) \
    case k##name: return has_products<name>();
            BLOCK_FORMATS(FORMAT)
#undef FORMAT
        default: return false;
    }
}

bool takes_ranged(int type) {
    switch (type) {
        case kI8: return ranged<I8>();
#define FORMAT(name, block, id) \
    case k##name: return ranged<name>();
            BLOCK_FORMATS(FORMAT)
#undef FORMAT
        default: return false;
    }
}

void fill_int8(int type, const uint8_t* data, int64_t row_bytes, const float* row_scale, int64_t rows, int64_t first, int64_t n,
               void* out) {
    switch (type) {
        case kI8: return fill<I8>(data, row_bytes, row_scale, rows, first, n, out);
#define FORMAT(name, block, id) \
    case k##name: return fill<name>(data, row_bytes, row_scale, rows, first, n, out);
            BLOCK_FORMATS(FORMAT)
#undef FORMAT
        default: return;
    }
}

template <class Fmt>
inline void multiply_format(const void* w, int64_t n_groups, int64_t w_stride, const void* x, int64_t m, int64_t x_stride,
                            int64_t chunks, float* c, bool accumulate) {
    if constexpr (has_products<Fmt>())
        multiply<Fmt>(static_cast<const uint8_t*>(w), n_groups, w_stride, static_cast<const uint8_t*>(x), m, x_stride, chunks, c,
                      accumulate);
}

void multiply_int8(int type, const void* w, int64_t n_groups, int64_t w_stride, const void* x, int64_t m, int64_t x_stride,
                   int64_t chunks, float* c, bool accumulate) {
    switch (type) {
        case kI8: return multiply_format<I8>(w, n_groups, w_stride, x, m, x_stride, chunks, c, accumulate);
#define FORMAT(name, block, id) \
    case k##name: return multiply_format<name>(w, n_groups, w_stride, x, m, x_stride, chunks, c, accumulate);
            BLOCK_FORMATS(FORMAT)
#undef FORMAT
        default: return;
    }
}

constexpr Int8Panels kPanels{kPanelChunk, kInputChunk, takes, fill_int8, multiply_int8, takes_ranged};

}  // namespace

const PanelOps int8_panel_ops{1, 256, nullptr, pack_int8<false>, nothing, nothing, nullptr, store_int8, gate_int8<false>, &kPanels};
const PanelOps int8_ranged_ops{1,          256,             nullptr,  pack_int8<true>, nothing, nothing, nullptr,
                               store_int8, gate_int8<true>, &kPanels, true};

}  // namespace JAMBA_VARIANT
}  // namespace jamba
