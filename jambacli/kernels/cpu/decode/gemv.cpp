// Products of a few tokens with one matrix.
#include <algorithm>
#include <cstring>

#include "decode/team.h"

namespace jamba {
namespace {

constexpr int64_t kTokensAtOnce = 32;

void linear(const Matrix& w, const float* x, int64_t m, int64_t ldx, float* y, int64_t ldy, uint8_t* base, bool precise,
            int threads) {
    const InnerKernels& k = inner_kernels();
    const bool quantized = wants_int8(w);
    parallel(threads, [&](Team& team) {
        Scratch scratch(base, precise);
        const LowProduct low = take_low(scratch, w, m);
        ActBuffer a;
        if (quantized) {
            a = take_act(scratch, m, w.cols, rounding_for({&w}));
            const Range mine = team.share(m * a.padded, kPad);
            for (int64_t t = 0; t < m; ++t) {
                const int64_t begin = std::max(mine.begin - t * a.padded, int64_t{0});
                const int64_t end = std::min(mine.end - t * a.padded, a.padded);
                if (begin >= end) continue;
                const int64_t whole = std::min(end, w.cols / kPad * kPad);  // read where it lies; the rest is padded in a copy
                if (begin < whole) k.quantize(x + t * ldx, begin, whole, a.row(t));
                if (whole == end) continue;
                float* row = a.f + t * a.f_stride;
                std::memcpy(row + whole, x + t * ldx + whole, static_cast<size_t>(w.cols - whole) * sizeof(float));
                std::memset(row + w.cols, 0, static_cast<size_t>(end - w.cols) * sizeof(float));
                k.quantize(row, whole, end, a.row(t));
            }
            team.barrier();
        }
        a.f = const_cast<float*>(x);  // where it lies: the rest of the integer form needs it no more
        a.f_stride = ldx;
        low_shared(team, k, {low}, a, m);
        team.chunks(w.rows, chunk_rows(w.row_bytes, w.rows, team.size, 4), [&](int64_t r0, int64_t r1) {
            k.gemv[w.type](rows_of(w), a.view(), nullptr, static_cast<int>(m), r0, r1, y, ldy);
            add_low(k, low, 0, m, 0, r0, r1, y, ldy);
        });
    });
}

}  // namespace
}  // namespace jamba

// Python loads the library only where this is its own number.
EXPORT int kernels_abi_version() { return 7; }

// y[t * y_stride + r] = row r of w . x[t * x_stride ...] for t < m; float32. Made for small m: the weights are read once for
// every 32 tokens. `precise`: 15-bit activations instead of int8.
EXPORT int decode_linear(const jamba::Matrix* w, const float* x, int64_t x_stride, float* y, int64_t y_stride, int64_t m,
                         int precise, int threads) {
    using namespace jamba;
    if (const Status status = check_matrix(*w)) return status;
    Scratch measure(nullptr, precise);
    take_low(measure, *w, std::min(m, kTokensAtOnce));
    take_act(measure, std::min(m, kTokensAtOnce), w->cols, Rounding::kMultiplesOfStep);
    uint8_t* base = scratch_block(measure.used());
    if (!base) return kNoMemory;
    for (int64_t t = 0; t < m; t += kTokensAtOnce)
        linear(*w, x + t * x_stride, std::min(m - t, kTokensAtOnce), x_stride, y + t * y_stride, y_stride, base, precise,
               threads);
    return kOk;
}
