// The two backends of run_team: an OpenMP runtime given by address (torch's, so that the process has one pool), and a small
// std::thread pool.
#include "base/threads.h"

#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "base/abi.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sched.h>
#endif

namespace jamba {
namespace {

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb" ::: "memory");
#endif
}

inline void yield() {
#if defined(__unix__) || defined(__APPLE__)
    sched_yield();
#else
    std::this_thread::yield();
#endif
}

constexpr int kSpins = 600;  // about 30 microseconds where a pause is 140 cycles, then yield

template <class Done>
inline void spin_until(Done done) {
    for (int spin = 0; !done(); ++spin) {
        if (spin < kSpins)
            relax();
        else
            yield();
    }
}

// ---- OpenMP backend: the libgomp entry points, present in libomp and libiomp5 as well ----
using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using OmpInt = int (*)();
GompParallel gomp_parallel = nullptr;
OmpInt omp_thread_num = nullptr;
OmpInt omp_num_threads = nullptr;

struct Region {
    TeamFn fn;
    void* context;
    Barrier* barriers;  // constructed by the first thread, when the real size of the team is known
    std::atomic<int> state{0};
    alignas(Barrier) unsigned char storage[sizeof(Barrier)];
};

void gomp_body(void* data) {
    Region& region = *static_cast<Region*>(data);
    const int size = omp_num_threads();
    Team team{omp_thread_num(), size, nullptr};
    if (size > 1) {
        if (team.id == 0) {
            region.barriers = new (region.storage) Barrier(size);
            region.state.store(1, std::memory_order_release);
        } else {
            spin_until([&] { return region.state.load(std::memory_order_acquire) == 1; });
        }
        team.shared = region.barriers;
    }
    region.fn(region.context, team);
}

// ---- own pool: workers spin briefly for the next region, then sleep ----
class Pool {
   public:
    static Pool& get() {
        static Pool* pool = new Pool;  // never destroyed: workers may still sleep in it at exit
        return *pool;
    }

    void run(int threads, TeamFn fn, void* context) {
        if (busy_.test_and_set(std::memory_order_acquire)) {  // nested, or a second caller: runs on one thread
            Team team{0, 1, nullptr};
            fn(context, team);
            return;
        }
        while (static_cast<int>(workers_.size()) < threads - 1) {
            const int id = static_cast<int>(workers_.size()) + 1;
            workers_.emplace_back([this, id, seen = generation_.load()]() mutable { work(id, seen); });
        }
        Barrier barrier(threads);
        fn_ = fn;
        context_ = context;
        size_ = threads;
        barrier_ = &barrier;
        left_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            generation_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        Team team{0, threads, &barrier};
        fn(context, team);
        spin_until([&] { return left_.load(std::memory_order_acquire) == 0; });
        busy_.clear(std::memory_order_release);
    }

   private:
    void work(int id, uint32_t seen) {
        for (;;) {
            for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen; ++spin) relax();
            if (generation_.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
            }
            seen = generation_.load(std::memory_order_acquire);
            if (id < size_) {
                Team team{id, size_, barrier_};
                fn_(context_, team);
            }
            left_.fetch_sub(1, std::memory_order_release);
        }
    }

    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<uint32_t> generation_{0};
    std::atomic<int> left_{0};
    TeamFn fn_ = nullptr;
    void* context_ = nullptr;
    int size_ = 0;
    Barrier* barrier_ = nullptr;
};

}  // namespace

void Barrier::wait() {
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        next_.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1, std::memory_order_release);
    } else {
        spin_until([&] { return phase_.load(std::memory_order_acquire) != phase; });
    }
}

void run_team(int threads, TeamFn fn, void* context) {
    if (threads <= 1) {
        Team team{0, 1, nullptr};
        fn(context, team);
    } else if (gomp_parallel) {
        Region region;
        region.fn = fn;
        region.context = context;
        region.barriers = nullptr;
        gomp_parallel(gomp_body, &region, static_cast<unsigned>(threads), 0);
    } else {
        Pool::get().run(threads, fn, context);
    }
}

}  // namespace jamba

// Addresses of GOMP_parallel, omp_get_thread_num and omp_get_num_threads in the runtime that torch has loaded; all null
// selects the library's own pool. To be called before the first kernel, never while one runs.
EXPORT void native_set_openmp(void* parallel, void* thread_num, void* num_threads) {
    const bool complete = parallel && thread_num && num_threads;
    jamba::gomp_parallel = complete ? reinterpret_cast<jamba::GompParallel>(parallel) : nullptr;
    jamba::omp_thread_num = complete ? reinterpret_cast<jamba::OmpInt>(thread_num) : nullptr;
    jamba::omp_num_threads = complete ? reinterpret_cast<jamba::OmpInt>(num_threads) : nullptr;
}

// For tests: `rounds` regions of `threads` threads with two barriers each; the number of threads that really ran
// together, or -1 when some thread passed a barrier before the others had arrived.
EXPORT int native_check_team(int threads, int rounds) {
    std::atomic<int> most{0};
    std::atomic<bool> broken{false};
    for (int round = 0; round < rounds; ++round) {
        std::atomic<int> first{0}, second{0};
        jamba::parallel(threads, [&](jamba::Team& team) {
            if (team.id == 0) most.store(team.size);
            first.fetch_add(1);
            team.barrier();
            if (first.load() != team.size) broken.store(true);
            second.fetch_add(1);
            team.barrier();
            if (second.load() != team.size) broken.store(true);
        });
    }
    return broken.load() ? -1 : most.load();
}
