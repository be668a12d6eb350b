// Rows of blocks shared among threads, for the sources that are compiled once.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "quant.h"

namespace quant {

// Floats a thread works on at a time: they and their blocks stay in its second-level cache, and a panel holds enough blocks
// that the last, partly filled vector of them costs little.
constexpr int64_t PANEL = 64 * 1024;

// IEEE rounding and subnormals during its lifetime, whatever the calling process has set: the bytes depend on them.
class PlainFloats {
#if defined(__SSE2__)
    unsigned saved = __builtin_ia32_stmxcsr();

  public:
    PlainFloats() { __builtin_ia32_ldmxcsr(0x1f80); }
    ~PlainFloats() { __builtin_ia32_ldmxcsr(saved); }
#elif defined(__aarch64__)
    uint64_t saved;

  public:
    PlainFloats() {
        __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
        __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
    }
    ~PlainFloats() { __asm__ volatile("msr fpcr, %0" : : "r"(saved)); }
#endif
};

struct Plan {
    int64_t rows, n, panel_rows, panels;
    int64_t row_bytes;
    int threads;
};

inline bool make_plan(int ggml_type, int64_t rows, int64_t n, int threads, Plan *plan) {
    const TypeInfo block = type_info(ggml_type);
    if (!block.values || rows < 0 || n <= 0 || n % block.values) return false;
    plan->rows = rows;
    plan->n = n;
    plan->row_bytes = n / block.values * block.bytes;
    plan->panel_rows = n >= PANEL ? 1 : PANEL / n;
    // Few rows on many threads: smaller panels, so that every thread has work.
    const int64_t share = (rows + threads - 1) / (threads < 1 ? 1 : threads);
    if (plan->panel_rows > share && share > 0) plan->panel_rows = share;
    plan->panels = (rows + plan->panel_rows - 1) / plan->panel_rows;
    plan->threads = (int)(threads < plan->panels ? threads : plan->panels);
    return true;
}

// work(first row, rows) on every panel, in order; after a failure, the panels before it are still finished.
template <typename Work>
void share_out(const Plan &plan, const Work &work) {
    std::atomic<int64_t> next{0};
    auto loop = [&] {
        const PlainFloats mode;
        for (int64_t p; (p = next.fetch_add(1)) < plan.panels;) {
            const int64_t first = p * plan.panel_rows;
            const int64_t left = plan.rows - first;
            if (!work(first, left < plan.panel_rows ? left : plan.panel_rows)) next.store(plan.panels);
        }
    };
    std::vector<std::thread> helpers;
    try {
        for (int t = 1; t < plan.threads; ++t) helpers.emplace_back(loop);
    } catch (...) {  // no further thread could be started: this one and those that run do the work
    }
    loop();
    for (std::thread &t : helpers) t.join();
}

}  // namespace quant
