// Blocks of 32 values, LANES of them at a time: loading, the weights of a search, packing.
#pragma once

#include "lanes.h"
#include "quant.h"

namespace quant {
namespace JAMBA_VARIANT {

struct Blocks32 {
    alignas(64) vf x[32];           // value i of each block
    alignas(64) vf importance[32];  // only read where there is an imatrix
    vf spread;                      // the mean square of each block's row, where the caller gave it
};

// The value of largest magnitude, the first of equals, and that magnitude.
LANE_FN vf peak_of(const vf *x, vf *magnitude) {
    vf most = {}, value = {};
    for (int j = 0; j < 32; ++j) {
        const vf size = absolute(x[j]);
        const vm larger = lt(most, size);
        value = select(larger, x[j], value);
        most = select(larger, size, most);
    }
    *magnitude = most;
    return value;
}

// w[j] = importance * sqrt(spread + x^2), ggml's weight of a value.
LANE_FN void weigh(const vf *x, const vf *importance, vf spread, vf *w) {
    for (int j = 0; j < 32; ++j) w[j] = importance[j] * square_root(spread + x[j] * x[j]);
}

// word[k]: byte i of it has level 4k + i low and level 4k + i + 16 high. The four words of a four-bit block of 32.
LANE_FN void pack_nibbles(const vi *level, vi *word) {
    for (int k = 0; k < 4; ++k) {
        const vi *low = level + 4 * k, *high = low + 16;
        const vi even = low[0] | high[0] << 4 | low[2] << 16 | high[2] << 20;
        const vi odd = low[1] | high[1] << 4 | low[3] << 16 | high[3] << 20;
        word[k] = even | odd << 8;
    }
}

// The mean square of `count` rows (LANES at most), each summed from left to right as ggml does.
LANE_FN vf mean_square(const float *x, int64_t count, int64_t n) {
    const float *row[LANES];
    for (int l = 0; l < LANES; ++l) row[l] = x + (l < count ? l : count - 1) * n;
    vf sum = {};
    for (int64_t j = 0; j < n; j += LANES) {
        vf v[LANES];
        for (int l = 0; l < LANES; ++l) v[l] = load(row[l] + j);
        transpose(v);
        for (int i = 0; i < LANES; ++i) sum += v[i] * v[i];
    }
    return sum / (float)n;
}

// The bytes of one block: `halves` f16 values, then `words` 32-bit words.
template <int HALVES, int WORDS>
struct Bytes {
    vi half[HALVES];
    vi word[WORDS];
};

// Quantize(blocks, out) for all blocks of `rows` rows, LANES at a time; out is a Bytes.
template <int HALVES, int WORDS, bool WEIGHTED, typename Quantize>
LANE_FN void quantize_run(const float *x, int64_t rows, int64_t n, const float *imatrix, const vf *spread, uint8_t *dst,
                        Quantize quantize) {
    constexpr int BYTES = 2 * HALVES + 4 * WORDS;
    const int64_t blocks = rows * n / 32, per_row = n / 32;
    Blocks32 b;
    Bytes<HALVES, WORDS> out;
    for (int64_t first = 0; first < blocks; first += LANES) {
        const float *values[LANES], *importance[LANES];
        alignas(64) float row_spread[LANES];
        for (int l = 0; l < LANES; ++l) {
            const int64_t k = first + l < blocks ? first + l : blocks - 1;  // spare lanes repeat the last block
            values[l] = x + k * 32;
            if (WEIGHTED) {
                importance[l] = imatrix + k % per_row * 32;
                row_spread[l] = spread ? ((const float *)spread)[k / per_row] : 0.0f;
            }
        }
        load_blocks(values, 32, b.x);
        if (WEIGHTED) {
            load_blocks(importance, 32, b.importance);
            b.spread = load(row_spread);
        }
        quantize(b, out);
        for (int l = 0; l < LANES && first + l < blocks; ++l) {
            uint8_t *to = dst + (first + l) * BYTES;
            for (int k = 0; k < HALVES; ++k) std::memcpy(to + 2 * k, (const int32_t *)&out.half[k] + l, 2);
            for (int k = 0; k < WORDS; ++k) std::memcpy(to + 2 * HALVES + 4 * k, (const int32_t *)&out.word[k] + l, 4);
        }
    }
}

// The same over any number of rows with weights: LANES rows' spreads first, then their blocks.
template <int HALVES, int WORDS, typename Quantize>
LANE_FN void quantize_weighted(const float *x, int64_t rows, int64_t n, const float *imatrix, uint8_t *dst, Quantize quantize) {
    const int64_t row_bytes = n / 32 * (2 * HALVES + 4 * WORDS);
    for (int64_t r = 0; r < rows; r += LANES) {
        const int64_t count = rows - r < LANES ? rows - r : LANES;
        const vf spread = mean_square(x + r * n, count, n);
        quantize_run<HALVES, WORDS, true>(x + r * n, count, n, imatrix, &spread, dst + r * row_bytes, quantize);
    }
}

}  // namespace JAMBA_VARIANT
}  // namespace quant
