// Shares the training kernels out over threads: scans and convolutions by sequences of the batch, the rest by rows, in parts
// that do not depend on the threads.
#include "train/train.h"

#include "base/scratch.h"
#include "base/threads.h"

namespace jamba {
namespace {

thread_local Buffer scratch;

const TrainOps& train_ops(int half) {
#define LEVEL(level) {Isa::level, &level::train_tables},
    static constexpr Variant<TrainTables> variants[] = {SIMD_LEVELS(LEVEL)};
#undef LEVEL
    return choose(variants).activations[half];
}

}  // namespace
}  // namespace jamba

using jamba::train_ops;

// Python loads the library only where this is its own number.
EXPORT int train_abi_version() { return 1; }

// Channels that lie together in A and the states (TrainScan in train.h).
EXPORT int64_t train_lanes() { return train_ops(0).lanes; }

// Tokens between two kept states.
EXPORT int64_t train_chunk() { return jamba::kTrainChunk; }

// The scan of `batch` sequences, forward, or backward where `backward` is set. half: activations are bf16.
EXPORT int train_scan(const jamba::TrainScan* a, int64_t batch, int half, int backward, int threads) {
    const jamba::TrainOps& ops = train_ops(half);
    return jamba::guarded([&] {
        jamba::parallel_for(threads, batch, 1, [&](int64_t begin, int64_t end) {
            for (int64_t b = begin; b < end; ++b) {
                if (!backward) {
                    ops.scan(*a, b);
                    continue;
                }
                ops.scan_backward(*a, b, static_cast<float*>(jamba::scratch.get(jamba::train_scan_scratch(a->d_inner) * 4)));
            }
        });
        return jamba::kOk;
    });
}

EXPORT int train_conv(const jamba::TrainConv* a, int64_t batch, int half, int backward, int threads) {
    const jamba::TrainOps& ops = train_ops(half);
    jamba::parallel_for(threads, batch, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) backward ? ops.conv_backward(*a, b) : ops.conv(*a, b);
    });
    return jamba::kOk;
}

// dweight is [parts, n]: each part sums its own rows.
EXPORT int train_norm(const jamba::TrainNorm* a, int64_t rows, int64_t parts, int half, int backward, int threads) {
    const jamba::TrainOps& ops = train_ops(half);
    jamba::parallel_for(threads, parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
            const int64_t r0 = rows * p / parts, r1 = rows * (p + 1) / parts;
            jamba::TrainNorm part = *a;
            if (backward) part.dweight += p * a->n;
            backward ? ops.norm_backward(part, r0, r1) : ops.norm(part, r0, r1);
        }
    });
    return jamba::kOk;
}

EXPORT int train_gate(const jamba::TrainGate* a, int64_t rows, int half, int backward, int threads) {
    const jamba::TrainOps& ops = train_ops(half);
    jamba::parallel_for(threads, rows, 1, [&](int64_t begin, int64_t end) {
        backward ? ops.gate_backward(*a, begin, end) : ops.gate(*a, begin, end);
    });
    return jamba::kOk;
}
