// The C interface of the refinements: rows shared among threads.
#include "quant/native/c_interface.h"
#include "share_out.h"

using namespace quant;

// Bit 0: the library refines blocks of the type.
EXPORT int quant_can_refine(int ggml_type) { return find_refiner(ggml_type) != nullptr; }

// Search better scales and levels for blocks that exist, by the error weighted with `w`; no block gets worse.
// x: f32 [rows, n]. w: f32 [n], finite and not negative. blocks: [rows, row bytes], in and out.
// Returns 0; 1 + the first row of x that is not finite (blocks are then as before); or a negative Status.
EXPORT int64_t quant_search_rows(int ggml_type, const float *x, int64_t rows, int64_t n, const float *w, void *blocks, int threads) {
    const Refiner *refiner = find_refiner(ggml_type);
    Plan plan;
    if (!refiner) return kBadType;
    if (!make_plan(ggml_type, rows, n, threads, &plan)) return kPartialBlock;
    if (!panel_ops().all_finite(w, n)) return kBadImatrix;
    for (int64_t j = 0; j < n; ++j)
        if (w[j] < 0) return kBadImatrix;
    for (int64_t r = 0; r < rows; ++r)
        if (!panel_ops().all_finite(x + r * n, n)) return 1 + r;
    uint8_t *out = static_cast<uint8_t *>(blocks);
    share_out(plan, [&](int64_t first, int64_t count) {
        refiner->search(x + first * n, count, n, w, out + first * plan.row_bytes);
        return true;
    });
    return kOk;
}

// Change the blocks of one column block (up to 256 columns) of each row so that (x - y) S (x - y)' falls, y being their values.
// x: f32 [rows, columns]. S: f32 [columns, columns], symmetric with a positive diagonal. R: null, or f32 [columns, columns] upper
// triangular with S = R R': then the columns are first rounded in order, with the error of those before. gradient: null for
// (x - y) S, or f32 [rows, columns], half the derivative of another error whose second derivative is S; not with R. rounds: of descent.
// blocks: in and out. values: null, or receives y, f32 [rows, columns]. Strides as in quant.h. Returns 0 or a negative Status.
EXPORT int64_t quant_solve_block(int ggml_type, const float *x, int64_t x_stride, int64_t rows, int64_t columns, const float *S,
                                 const float *R, const float *gradient, int64_t gradient_stride, int rounds, void *blocks,
                                 int64_t blocks_stride, float *values, int64_t values_stride, int threads) {
    const Refiner *refiner = find_refiner(ggml_type);
    if (!refiner) return kBadType;
    if (columns <= 0 || columns > 256 || columns % refiner->columns) return kPartialBlock;
    Plan plan;
    if (!make_plan(ggml_type, rows, columns, threads, &plan)) return kPartialBlock;
    return native::guarded([&]() -> int64_t {
        const int subs = (int)columns / refiner->sub_block;
        std::vector<float> sums((size_t)(subs * columns));
        for (int64_t c = 0; c < columns; ++c)
            for (int64_t k = 0; k < columns; ++k) sums[c / refiner->sub_block * columns + k] += S[c * columns + k];
        SolveTask task{(int)columns, rounds, x, S, R, gradient, static_cast<uint8_t *>(blocks), values,
                       x_stride, gradient_stride, blocks_stride, values_stride};
        share_out(plan, [&](int64_t first, int64_t count) {
            refiner->solve(task, sums.data(), first, count);
            return true;
        });
        return kOk;
    });
}
