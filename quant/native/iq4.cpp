// IQ4_NL and IQ4_XS, from values and back.

#include "bytes16.h"
#include "iq4_search.h"

namespace quant {
namespace JAMBA_VARIANT {
namespace iq4 {

// ---- IQ4_NL: f16 factor, 32 levels ----

LANE_FN void nl_block(const Blocks32 &b, const vf *importance, Bytes<1, 4> &out) {
    alignas(64) vf w[32];
    vf squares = {};
    if (importance)
        for (int j = 0; j < 32; ++j) squares += b.x[j] * b.x[j];
    weights(b.x, importance, squares * (2.0f / 32), w);
    const vf scale = fit_grid(b.x, w), per_scale = reciprocal_or_zero(scale);
    out.half[0] = to_half(scale);
    vi level[32];
    for (int j = 0; j < 32; ++j) level[j] = nearest_level(per_scale * b.x[j]);
    pack_nibbles(level, out.word);
}

static void quantize_nl(const float *x, int64_t rows, int64_t n, const float *imatrix, uint8_t *dst) {
    if (!imatrix) {
        quantize_run<1, 4, false>(x, rows, n, nullptr, nullptr, dst,
                                [](const Blocks32 &b, Bytes<1, 4> &out) { nl_block(b, nullptr, out); });
        return;
    }
    // The spread of the weights is that of the block, not of the row.
    quantize_run<1, 4, true>(x, rows, n, imatrix, nullptr, dst,
                           [](const Blocks32 &b, Bytes<1, 4> &out) { nl_block(b, b.importance, out); });
}

// ---- IQ4_XS: f16 factor, then six bits per sub-block (high ones first), then 256 levels ----

constexpr int XS_VALUES = 256, XS_BYTES = sizeof(block_iq4_xs), XS_WORDS = XS_BYTES / 4;

static __attribute__((noinline)) void xs_block(const vf *x, const vf *importance, vi *word) {
    alignas(64) vf w[32];
    vf squares = {}, scale[8], most = {}, peak = {};
    for (int j = 0; j < XS_VALUES; ++j) squares += x[j] * x[j];
    for (int s = 0; s < 8; ++s) {
        weights(x + 32 * s, importance ? importance + 32 * s : nullptr, squares * (2.0f / XS_VALUES), w);
        scale[s] = fit_grid(x + 32 * s, w);
        const vf size = absolute(scale[s]);
        const vm larger = gt(size, most);
        peak = select(larger, scale[s], peak);
        most = select(larger, size, most);
    }
    const vf d = -peak / 32.0f, per_d = reciprocal_or_zero(d);
    vi low = {}, high = {};
    for (int s = 0; s < 8; ++s) {
        const vi six = clamp(nearest_int(per_d * scale[s]), -32, 31);
        const vf per_step = reciprocal_or_zero(d * to_float(six));
        vi level[32];
        for (int j = 0; j < 32; ++j) level[j] = nearest_level(per_step * x[32 * s + j]);
        pack_nibbles(level, word + WORD(block_iq4_xs, qs) + 4 * s);
        low |= ((six + 32) & 15) << 4 * s;
        high |= ((six + 32) >> 4) << 2 * s;
    }
    word[WORD(block_iq4_xs, d)] = (to_half(d) & 0xffff) | high << 16;
    word[WORD(block_iq4_xs, scales_l)] = low;
}

static void quantize_xs(const float *x, int64_t rows, int64_t n, const float *imatrix, uint8_t *dst) {
    const int64_t blocks = rows * n / XS_VALUES, per_row = n / XS_VALUES;
    alignas(64) vf values[XS_VALUES], importance[XS_VALUES];
    vi word[XS_WORDS];
    for (int64_t first = 0; first < blocks; first += LANES) {
        const float *block[LANES], *columns[LANES];
        for (int l = 0; l < LANES; ++l) {
            const int64_t k = first + l < blocks ? first + l : blocks - 1;  // spare lanes repeat the last block
            block[l] = x + k * XS_VALUES;
            columns[l] = imatrix + (imatrix ? k % per_row * XS_VALUES : 0);
        }
        load_blocks(block, XS_VALUES, values);
        if (imatrix) load_blocks(columns, XS_VALUES, importance);
        xs_block(values, imatrix ? importance : nullptr, word);
        for (int l = 0; l < LANES && first + l < blocks; ++l) {
            uint8_t *to = dst + (first + l) * XS_BYTES;
            for (int k = 0; k < XS_WORDS; ++k) std::memcpy(to + 4 * k, (const int32_t *)&word[k] + l, 4);
        }
    }
}

// ---- dequantization ----

// 16 bytes of two levels each: the low ones times d to dst[0..15], the high ones to dst[16..31].
LANE_FN void grid_values(const uint8_t *levels, float d, float *dst) {
    const Bytes16 grid = load_bytes(kIq4Values), pairs = load_bytes(levels);
    store_scaled(look_up_bytes(grid, low_nibbles(pairs)), d, dst);
    store_scaled(look_up_bytes(grid, high_nibbles(pairs)), d, dst + 16);
}

static void dequantize_nl(const uint8_t *src, int64_t rows, int64_t n, float *dst) {
    const block_iq4_nl *block = reinterpret_cast<const block_iq4_nl *>(src);
    for (int64_t b = 0; b < rows * n / 32; ++b, ++block, dst += 32) grid_values(block->qs, to_float(block->d), dst);
}

static void dequantize_xs(const uint8_t *src, int64_t rows, int64_t n, float *dst) {
    const block_iq4_xs *block = reinterpret_cast<const block_iq4_xs *>(src);
    for (int64_t b = 0; b < rows * n / XS_VALUES; ++b, ++block, dst += XS_VALUES) {
        const float d = to_float(block->d);
        for (int s = 0; s < 8; ++s) grid_values(block->qs + 16 * s, d * (float)iq4_xs_scale(*block, s), dst + 32 * s);
    }
}

}  // namespace iq4

const Codec iq4_codecs[] = {
    {kIQ4_NL, iq4::quantize_nl, iq4::dequantize_nl},
    {kIQ4_XS, iq4::quantize_xs, iq4::dequantize_xs},
    {-1, nullptr, nullptr},
};

}  // namespace JAMBA_VARIANT
}  // namespace quant
