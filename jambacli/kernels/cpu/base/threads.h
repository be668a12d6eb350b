// Teams of threads for the kernels: one pool shared with torch where its OpenMP runtime was found, else the library's own.
//
// A team runs one function on `size` threads at once; inside it, Team::barrier() separates phases. Splits are static and
// computed from (n, unit, size) alone, and every kernel computes an output value wholly in one thread in a fixed
// order, so results do not depend on the number of threads or on timing.
#pragma once

#include <atomic>
#include <cstdint>
#include <type_traits>

namespace jamba {

// Waits first by spinning (a phase lasts tens of microseconds), then yields, so that an oversubscribed machine makes progress.
class Barrier {
   public:
    explicit Barrier(int size) : size_(size) {}
    void wait();

    // The next number of a counter that starts again from 0 after each wait().
    int64_t next() { return next_.fetch_add(1, std::memory_order_relaxed); }

   private:
    const int size_;
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
};

struct Range {
    int64_t begin, end;
};

struct Team {
    int id;
    int size;
    Barrier* shared;

    void barrier() {
        if (size > 1) shared->wait();
    }

    // Shares n items out in chunks of `chunk`, each to the next free thread: body(begin, end). For work whose results do
    // not depend on the thread; at most one such loop between two barriers.
    template <class F>
    void chunks(int64_t n, int64_t chunk, F&& body) {
        if (size == 1) {
            if (n > 0) body(int64_t{0}, n);
            return;
        }
        for (;;) {
            const int64_t begin = shared->next() * chunk;
            if (begin >= n) return;
            body(begin, begin + chunk < n ? begin + chunk : n);
        }
    }

    // This thread's contiguous share of n items, cut at multiples of `unit`.
    Range share(int64_t n, int64_t unit = 1) const {
        const int64_t units = (n + unit - 1) / unit;
        const int64_t base = units / size, extra = units % size;
        const int64_t first = id * base + (id < extra ? id : extra);
        const int64_t last = first + base + (id < extra ? 1 : 0);
        const int64_t begin = first * unit, end = last * unit;
        return {begin < n ? begin : n, end < n ? end : n};
    }
};

using TeamFn = void (*)(void* context, Team& team);

// Runs fn(context, team) on up to `threads` threads (fewer inside another parallel region) and waits for all of them.
void run_team(int threads, TeamFn fn, void* context);

// The same for a callable: parallel(threads, [&](Team& team) { ... team.barrier(); ... }).
template <class F>
void parallel(int threads, F&& body) {
    using Body = typename std::remove_reference<F>::type;
    run_team(threads, [](void* context, Team& team) { (*static_cast<Body*>(context))(team); }, &body);
}

// body(begin, end) once per thread over contiguous shares of [0, n), cut at multiples of `unit`.
template <class F>
void parallel_for(int threads, int64_t n, int64_t unit, F&& body) {
    parallel(threads, [&](Team& team) {
        const Range r = team.share(n, unit);
        if (r.begin < r.end) body(r.begin, r.end);
    });
}

}  // namespace jamba
