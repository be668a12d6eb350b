// Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 from values and back: direct rounding, and a search where there is an imatrix.
#include "blocks32.h"
#include "kq_search.h"
#include "legacy_dequantize.h"

namespace quant {
namespace JAMBA_VARIANT {
namespace legacy {

LANE_FN vf reciprocal(vf d) { return select(eq(d, vf{}), vf{}, 1.0f / d); }

// A C cast to int8, as an int; a value out of the range of int gives 0.
LANE_FN vi to_byte(vf x) { return truncate(x) << 24 >> 24; }

// ---- layouts ----

// Levels 0..15.
template <int HALVES>
LANE_FN void put_four_bits(const vi *level, Bytes<HALVES, 4> &out) {
    pack_nibbles(level, out.word);
}

// Levels 0..31: a word of the fifth bits first.
template <int HALVES>
LANE_FN void put_five_bits(vi *level, Bytes<HALVES, 5> &out) {
    vi high = {};
    for (int j = 0; j < 32; ++j) {
        high |= ((level[j] >> 4) & 1) << j;
        level[j] &= 15;
    }
    out.word[0] = high;
    pack_nibbles(level, out.word + 1);
}

// ---- without an imatrix ----

// 32 levels from -128 to 127 as bytes.
LANE_FN void put_bytes(const vi *q, int8_t *to) {
#if QUANT_LANES == 16
    for (int k = 0; k < 2; ++k) _mm_storeu_si128((__m128i *)to + k, _mm512_cvtepi32_epi8((__m512i)q[k]));
#elif QUANT_LANES == 8
    const __m256i low = _mm256_packs_epi32((__m256i)q[0], (__m256i)q[1]);
    const __m256i high = _mm256_packs_epi32((__m256i)q[2], (__m256i)q[3]);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing works within 128 bits
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
    _mm256_storeu_si256((__m256i *)to, bytes);
#else
    for (int j = 0; j < 32; ++j) to[j] = (int8_t)((const int32_t *)q)[j];
#endif
}

// The one format with nothing to search or pack: blocks lie along the vectors, only their factors are found LANES at a time.
static void quantize_q8_0(const float *x, int64_t rows, int64_t n, const float *, uint8_t *dst) {
    const int64_t blocks = rows * n / 32;
    block_q8_0 *to = reinterpret_cast<block_q8_0 *>(dst);
    for (int64_t first = 0; first < blocks; first += LANES, x += LANES * 32) {
        const int count = blocks - first < LANES ? (int)(blocks - first) : LANES;
        vf most[LANES];
        for (int l = 0; l < LANES; ++l) {
            const float *block = x + (l < count ? l : count - 1) * 32;
            vi top = bits(absolute(load(block)));
            for (int j = LANES; j < 32; j += LANES) top = greater(top, bits(absolute(load(block + j))));
            most[l] = unbits(top);
        }
        transpose(most);
        vi top = bits(most[0]);  // of magnitudes: their bits are in the order of their values
        for (int i = 1; i < LANES; ++i) top = greater(top, bits(most[i]));

        const vf d = unbits(top) / 127.0f;
        alignas(64) float per_d[LANES];
        alignas(64) int32_t half[LANES];
        // Where 1 / d overflows, ggml's levels come from infinities and NaNs cast to bytes: zeros.
        const vf inverse_d = reciprocal(d);
        store(per_d, select(lt(inverse_d, splat(__builtin_inff())), inverse_d, vf{}));
        const vi halves = to_half(d);
        std::memcpy(half, &halves, sizeof half);
        for (int l = 0; l < count; ++l, ++to) {
            std::memcpy(&to->d, &half[l], 2);
            vi level[32 / LANES];
            for (int k = 0; k < 32 / LANES; ++k) level[k] = round_away(load(x + l * 32 + k * LANES) * per_d[l]);
            put_bytes(level, to->qs);
        }
    }
}

// Levels 0 .. 2 * TOP - 1 about a zero at TOP; the value of largest magnitude becomes level 0.
template <int TOP>
LANE_FN vi symmetric_levels(const Blocks32 &b, vi *level) {
    vf most;
    const vf d = peak_of(b.x, &most) / (float)-TOP, per_d = reciprocal(d);
    for (int j = 0; j < 32; ++j) level[j] = lesser(to_byte(b.x[j] * per_d + (TOP + 0.5f)), splat(2 * TOP - 1)) & 255;
    return to_half(d);
}

static void plain_q4_0(const float *x, int64_t rows, int64_t n, uint8_t *dst) {
    quantize_run<1, 4, false>(x, rows, n, nullptr, nullptr, dst, [](const Blocks32 &b, Bytes<1, 4> &out) {
        vi level[32];
        out.half[0] = symmetric_levels<8>(b, level);
        put_four_bits(level, out);
    });
}

static void plain_q5_0(const float *x, int64_t rows, int64_t n, uint8_t *dst) {
    quantize_run<1, 5, false>(x, rows, n, nullptr, nullptr, dst, [](const Blocks32 &b, Bytes<1, 5> &out) {
        vi level[32];
        out.half[0] = symmetric_levels<16>(b, level);
        put_five_bits(level, out);
    });
}

// Levels 0 .. TOP from the least value up.
template <int TOP>
LANE_FN void affine_levels(const Blocks32 &b, vi *level, vi *half) {
    vf low = b.x[0], high = b.x[0];
    for (int j = 1; j < 32; ++j) {
        low = select(lt(b.x[j], low), b.x[j], low);
        high = select(lt(high, b.x[j]), b.x[j], high);
    }
    const vf d = (high - low) / (float)TOP, per_d = reciprocal(d);
    half[0] = to_half(d);
    half[1] = to_half(low);
    for (int j = 0; j < 32; ++j) {
        const vi q = truncate((b.x[j] - low) * per_d + 0.5f) & 255;
        level[j] = TOP == 15 ? lesser(q, splat(15)) : q;  // ggml bounds the four-bit ones only
    }
}

static void plain_q4_1(const float *x, int64_t rows, int64_t n, uint8_t *dst) {
    quantize_run<2, 4, false>(x, rows, n, nullptr, nullptr, dst, [](const Blocks32 &b, Bytes<2, 4> &out) {
        vi level[32];
        affine_levels<15>(b, level, out.half);
        put_four_bits(level, out);
    });
}

static void plain_q5_1(const float *x, int64_t rows, int64_t n, uint8_t *dst) {
    quantize_run<2, 5, false>(x, rows, n, nullptr, nullptr, dst, [](const Blocks32 &b, Bytes<2, 5> &out) {
        vi level[32];
        affine_levels<31>(b, level, out.half);
        put_five_bits(level, out);
    });
}

// ---- with an imatrix ----

template <int TOP>
LANE_FN vi searched_symmetric(const Blocks32 &b, vi *level) {
    alignas(64) vf w[32];
    weigh(b.x, b.importance, b.spread, w);
    const kq::SymmetricFit fit = kq::fit_symmetric<32, TOP, true>(b.x, w);
    for (int j = 0; j < 32; ++j) level[j] = kq::symmetric_level<TOP>(fit, b.x[j]);
    return to_half(fit.scale);
}

template <int TOP>
LANE_FN void searched_affine(const Blocks32 &b, vi *level, vi *half) {
    alignas(64) vf w[32];
    weigh(b.x, b.importance, b.spread, w);
    kq::AffineFit fit;
    kq::fit_affine<32, TOP, false, 1>(b.x, w, -0.9f, 0.05f, 36, &fit);
    half[0] = to_half(fit.scale);
    half[1] = to_half(-fit.offset);
    for (int j = 0; j < 32; ++j) level[j] = kq::affine_level<TOP>(fit, b.x[j]);
}

static void quantize_q4_0(const float *x, int64_t rows, int64_t n, const float *imatrix, uint8_t *dst) {
    if (!imatrix) return plain_q4_0(x, rows, n, dst);
    quantize_weighted<1, 4>(x, rows, n, imatrix, dst, [](const Blocks32 &b, Bytes<1, 4> &out) {
        vi level[32];
        out.half[0] = searched_symmetric<8>(b, level);
        put_four_bits(level, out);
    });
}

static void quantize_q5_0(const float *x, int64_t rows, int64_t n, const float *imatrix, uint8_t *dst) {
    if (!imatrix) return plain_q5_0(x, rows, n, dst);
    quantize_weighted<1, 5>(x, rows, n, imatrix, dst, [](const Blocks32 &b, Bytes<1, 5> &out) {
        vi level[32];
        out.half[0] = searched_symmetric<16>(b, level);
        put_five_bits(level, out);
    });
}

static void quantize_q4_1(const float *x, int64_t rows, int64_t n, const float *imatrix, uint8_t *dst) {
    if (!imatrix) return plain_q4_1(x, rows, n, dst);
    quantize_weighted<2, 4>(x, rows, n, imatrix, dst, [](const Blocks32 &b, Bytes<2, 4> &out) {
        vi level[32];
        searched_affine<15>(b, level, out.half);
        put_four_bits(level, out);
    });
}

static void quantize_q5_1(const float *x, int64_t rows, int64_t n, const float *imatrix, uint8_t *dst) {
    if (!imatrix) return plain_q5_1(x, rows, n, dst);
    quantize_weighted<2, 5>(x, rows, n, imatrix, dst, [](const Blocks32 &b, Bytes<2, 5> &out) {
        vi level[32];
        searched_affine<31>(b, level, out.half);
        put_five_bits(level, out);
    });
}

}  // namespace legacy

const Codec legacy_codecs[] = {
    {kQ8_0, legacy::quantize_q8_0, legacy::dequantize_q8_0}, {kQ4_0, legacy::quantize_q4_0, legacy::dequantize_q4_0},
    {kQ4_1, legacy::quantize_q4_1, legacy::dequantize_q4_1}, {kQ5_0, legacy::quantize_q5_0, legacy::dequantize_q5_0},
    {kQ5_1, legacy::quantize_q5_1, legacy::dequantize_q5_1}, {-1, nullptr, nullptr},
};

}  // namespace JAMBA_VARIANT
}  // namespace quant
