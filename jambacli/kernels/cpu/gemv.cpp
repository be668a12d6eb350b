// Products of a few tokens with one matrix, and the speed of reading memory that they are measured by. Knows nothing of
// layers.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "step.h"

namespace jamba {
namespace {

constexpr int64_t kTokensAtOnce = 32;

void linear(const Matrix& w, const float* x, int64_t m, int64_t ldx, float* y, int64_t ldy, uint8_t* base, int threads) {
    const Ops& k = ops();
    const bool quantized = wants_int8(w);
    parallel(threads, [&](Team& team) {
        Scratch scratch(base);
        ActBuffer a;
        if (quantized) {
            a = take_act(scratch, m, w.cols, true);
            const Range mine = team.share(m * a.padded, 32);
            for (int64_t t = 0; t < m; ++t) {
                const int64_t begin = std::max(mine.begin - t * a.padded, int64_t{0});
                const int64_t end = std::min(mine.end - t * a.padded, a.padded);
                if (begin >= end) continue;
                const int64_t last = std::min(end, w.cols);
                float* row = a.f + t * a.f_stride;
                if (begin < last)
                    std::memcpy(row + begin, x + t * ldx + begin, static_cast<size_t>(last - begin) * sizeof(float));
                const int64_t from = std::max(begin, last);
                std::memset(row + from, 0, static_cast<size_t>(end - from) * sizeof(float));
                k.quantize(row, begin, end, a.row(t));
            }
            team.barrier();
        } else {
            a.f = const_cast<float*>(x);
            a.f_stride = ldx;
        }
        team.chunks(w.rows, chunk_rows(w.row_bytes, w.rows, team.size, 4), [&](int64_t r0, int64_t r1) {
            k.gemv[w.type](rows_of(w), a.view(), nullptr, static_cast<int>(m), r0, r1, y, ldy);
        });
    });
}

}  // namespace
}  // namespace jamba

// y[t * ldy + r] = row r of w . x[t * ldx ...] for t < m; float32. Made for small m: the weights are read once for every
// 32 tokens and unpacked once for four.
EXPORT int kernels_linear(const jamba::Matrix* w, const float* x, int64_t m, int64_t ldx, float* y, int64_t ldy,
                          int threads) {
    using namespace jamba;
    if (const int status = check_matrix(*w)) return status;
    Scratch measure;
    take_act(measure, std::min(m, kTokensAtOnce), w->cols, true);
    uint8_t* base = scratch_block(measure.used());
    if (!base) return kNoMemory;
    for (int64_t t = 0; t < m; t += kTokensAtOnce)
        linear(*w, x + t * ldx, std::min(m - t, kTokensAtOnce), ldx, y + t * ldy, ldy, base, threads);
    return kOk;
}

// Bytes a second at which `threads` threads read `bytes` of memory once, from one end to the other of a share each, with
// nothing computed. For the share of memory bandwidth that the benchmarks report.
EXPORT double kernels_read_bandwidth(const uint8_t* data, int64_t bytes, int threads) {
    using namespace jamba;
    std::atomic<uint64_t> total{0};
    const auto start = std::chrono::steady_clock::now();
    parallel(threads, [&](Team& team) {
        team.chunks(bytes, int64_t{1} << 20, [&](int64_t begin, int64_t end) {
            uint64_t sums[8] = {};
            int64_t i = begin;
            for (; i + 64 <= end; i += 64) {
                uint64_t x[8];
                std::memcpy(x, data + i, sizeof x);
                __builtin_prefetch(data + i + 2048);
                for (int k = 0; k < 8; ++k) sums[k] ^= x[k];
            }
            uint64_t sum = 0;
            for (int k = 0; k < 8; ++k) sum ^= sums[k];
            total.fetch_xor(sum, std::memory_order_relaxed);
        });
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    volatile uint64_t keep = total.load();
    (void)keep;
    return static_cast<double>(bytes) / seconds.count();
}
