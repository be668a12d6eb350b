// Refinement of blocks that exist: a search for the weighted squared error, and a descent for a quadratic error.

#include "refine_search.h"
#include "refine_solve.h"

namespace quant {
namespace JAMBA_VARIANT {
namespace refine {

template <typename F>
constexpr int block_columns() {
    return F::NESTED ? COLUMNS : 32;
}

// x: [rows, n]; w: [n]; blocks: [rows, row bytes], improved in place.
template <typename F>
static void search_rows(const float *x, int64_t rows, int64_t n, const float *w, uint8_t *blocks) {
    constexpr int WIDTH = block_columns<F>(), BYTES = sizeof(typename F::Block);
    const int64_t total = rows * n / WIDTH, per_row = n / WIDTH;
    Grid g;
    alignas(64) vf values[WIDTH], weights[WIDTH];
    for (int64_t first = 0; first < total; first += LANES) {
        const int count = total - first < LANES ? (int)(total - first) : LANES;
        const float *block[LANES], *importance[LANES];
        const uint8_t *from[LANES];
        uint8_t *to[LANES];
        for (int l = 0; l < LANES; ++l) {
            const int64_t k = first + (l < count ? l : count - 1);
            block[l] = x + k * WIDTH;
            importance[l] = w + k % per_row * WIDTH;
            from[l] = to[l] = blocks + k * BYTES;
        }
        load_blocks(block, WIDTH, values);
        load_blocks(importance, WIDTH, weights);
        read_grid<F>(from, WIDTH, g);
        search<F>(values, weights, WIDTH, g);
        write_grid<F>(g, WIDTH, count, to);
    }
}

template <typename F>
static void solve_rows(const SolveTask &t, const float *sums, int64_t first_row, int64_t rows) {
    Grid g;
    alignas(64) vf x[COLUMNS], r[COLUMNS];
    const Problem problem{t.columns, t.S, sums};
    for (int64_t first = 0; first < rows; first += LANES) {
        const int count = rows - first < LANES ? (int)(rows - first) : LANES;
        const float *from[LANES], *slope[LANES];
        const uint8_t *bytes[LANES];
        uint8_t *to[LANES];
        for (int l = 0; l < LANES; ++l) {
            const int64_t row = first_row + first + (l < count ? l : count - 1);
            from[l] = t.x + row * t.x_stride;
            slope[l] = t.gradient ? t.gradient + row * t.gradient_stride : nullptr;
            bytes[l] = to[l] = t.blocks + row * t.blocks_stride;
        }
        load_blocks(from, t.columns, x);
        read_grid<F>(bytes, t.columns, g);
        if (t.R) round_in_order<F>(x, t.R, t.columns, g);
        if (t.rounds > 0) {
            if (t.gradient)
                load_blocks(slope, t.columns, r);
            else
                gradient(problem, x, g, F::SUB, r);
            descend<F>(problem, g, t.rounds, r);
        }
        write_grid<F>(g, t.columns, count, to);
        if (!t.values) continue;
        for (int c = 0; c < t.columns; ++c) r[c] = g.factor[c / F::SUB] * g.level[c] - g.shift[c / F::SUB];
        for (int c = 0; c < t.columns; c += LANES) {
            transpose(r + c);
            for (int l = 0; l < count; ++l) store(t.values + (first_row + first + l) * t.values_stride + c, r[c + l]);
        }
    }
}

}  // namespace refine

#define FORMAT(name, layout) \
    {k##name, refine::layout::SUB, refine::block_columns<refine::layout>(), refine::search_rows<refine::layout>, refine::solve_rows<refine::layout>}
const Refiner refiners[] = {
    FORMAT(Q4_0, Q40), FORMAT(Q4_1, Q41), FORMAT(Q5_0, Q50), FORMAT(Q5_1, Q51), FORMAT(Q8_0, Q80),
    FORMAT(Q2_K, Q2K), FORMAT(Q3_K, Q3K), FORMAT(Q4_K, Q4K), FORMAT(Q5_K, Q5K), FORMAT(Q6_K, Q6K),
    FORMAT(IQ4_NL, IQ4NL), FORMAT(IQ4_XS, IQ4XS), {-1, 0, 0, nullptr, nullptr},
};
#undef FORMAT

}  // namespace JAMBA_VARIANT
}  // namespace quant
