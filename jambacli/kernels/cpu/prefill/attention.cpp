// Attention of many queries over the cache, blockwise with a running softmax: never more scores than a block's. AttendOps
// has what depends on the instruction set.
//
// All threads first pack a stretch of the cache into panels, then take blocks of queries through it. A query meets its
// stretches and blocks in the order of keys, so the number of threads does not change a bit.
#include "prefill/attention.h"

#include <atomic>

#include "decode/inner_kernels.h"
#include "base/rotate.h"
#include "base/scratch.h"
#include "base/threads.h"

namespace jamba {
namespace {

constexpr int64_t kStretch = 2048;    // keys held as panels: 1 MB of bf16 keys and values at a head_dim of 128
constexpr int64_t kBlockKeys = 128;   // keys that a block of queries is multiplied with at a time
constexpr int64_t kBlockGroups = 6;   // groups of 16 queries in a block

constexpr float kLog2e = 1.44269504f;

thread_local Buffer shared_panels, shared_state, own_scores, own_rows;

const AttendOps& attend_ops(int type) {
#if defined(NATIVE_X86)
    if (type != kF32) {
        if (isa_includes(Isa::amx) && amx::usable()) return amx::attend_ops;
        if (isa_includes(Isa::bf16)) return bf16::attend_ops;
    }
#endif
#define LEVEL(level) {Isa::level, &level::f32_attend_ops},
    static constexpr Variant<AttendOps> variants[] = {SIMD_LEVELS(LEVEL)};
#undef LEVEL
    return choose(variants);
}

struct Cache {
    const uint8_t *k, *v;
    int type;
    int64_t token_bytes, head_bytes;  // between tokens and between heads
};

// Queries are numbered by token, then by head of the group that shares a kv head.
struct Queries {
    const float* q;
    int64_t stride, tokens, n_heads, n_kv_heads, head_dim, n_past;

    int64_t group() const { return n_heads / n_kv_heads; }
    int64_t rows() const { return tokens * group(); }
};

void attention(const Queries& q, const Cache& cache, float* out, int threads) {
    const AttendOps& ops = attend_ops(cache.type);
    const InnerKernels& loads = jamba::inner_kernels();
    const float scale = kLog2e / __builtin_sqrtf(static_cast<float>(q.head_dim));
    const PanelOps& panels = *ops.panels;
    const int64_t eb = panels.element_bytes, depth = round_up(q.head_dim, kChunk), group = q.group(), rows = q.rows();
    const int64_t groups = round_up(rows, kGroup) / kGroup, value_groups = round_up(q.head_dim, kGroup) / kGroup;
    const int64_t seen = q.n_past + q.tokens, stretch = round_up(seen < kStretch ? seen : kStretch, kChunk);
    const int64_t key_size = stretch * depth, value_size = stretch * value_groups * kGroup;  // elements of a head's panels
    const int64_t q_size = groups * depth * kGroup, out_size = groups * value_groups * kTile;
    const int64_t blocks = (groups + kBlockGroups - 1) / kBlockGroups, items = blocks * q.n_kv_heads;

    uint8_t* key_panels = static_cast<uint8_t*>(shared_panels.get((key_size + value_size + q_size) * q.n_kv_heads * eb));
    uint8_t* value_panels = key_panels + key_size * q.n_kv_heads * eb;
    uint8_t* query_panels = value_panels + value_size * q.n_kv_heads * eb;
    const int64_t lanes = groups * kGroup;
    float* sums = static_cast<float*>(shared_state.get((out_size * q.n_kv_heads + lanes * (2 * q.n_kv_heads + 1)) * 4));
    float* best = sums + out_size * q.n_kv_heads;
    float* total = best + lanes * q.n_kv_heads;
    float* last = total + lanes * q.n_kv_heads;
    const int64_t stretches = (seen + stretch - 1) / stretch;
    std::atomic<int64_t> next{0};

    parallel(threads, [&](Team& team) {
        const Range packs = team.share(groups * q.n_kv_heads);
        for (int64_t i = packs.begin; i < packs.end; ++i) {
            const int64_t head = i / groups, g = i % groups;
            const float* from[kGroup];
            for (int64_t j = 0; j < kGroup; ++j) {
                const int64_t r = g * kGroup + j;
                from[j] = r < rows ? q.q + r / group * q.stride + (head * group + r % group) * q.head_dim : nullptr;
            }
            panels.pack(from, q.head_dim, query_panels + i * depth * kGroup * eb);
        }
        const Range clear = team.share(lanes * q.n_kv_heads);
        for (int64_t i = clear.begin; i < clear.end; ++i) {
            best[i] = -1e30f;
            total[i] = 0.0f;
            if (i >= lanes) continue;  // last is the same for all heads: one thread writes it
            const int64_t token = i / group;
            last[i] = static_cast<float>(q.n_past + (token < q.tokens ? token : q.tokens - 1));
        }
        const Range zero = team.share(out_size * q.n_kv_heads);
        for (int64_t i = zero.begin; i < zero.end; ++i) sums[i] = 0.0f;

        float* floats = static_cast<float*>(own_rows.get(kChunk * q.head_dim * 4));
        const int64_t score_size = kBlockKeys * kBlockGroups * kGroup;
        float* scores = static_cast<float*>(own_scores.get(score_size * (4 + eb)));
        void* weights = scores + score_size;
        int64_t item = next.fetch_add(1, std::memory_order_relaxed);
        for (int64_t s = 0; s < stretches; ++s) {
            const int64_t begin = s * stretch, end = begin + stretch < seen ? begin + stretch : seen;
            if (s > 0) team.barrier();  // all threads are done with the panels of the stretch before
            const int64_t chunks = round_up(end - begin, kChunk) / kChunk;
            const Range turns = team.share(chunks * q.n_kv_heads);
            for (int64_t i = turns.begin; i < turns.end; ++i) {
                const int64_t head = i / chunks, c = i % chunks, key = begin + c * kChunk;
                const int64_t count = end - key < kChunk ? end - key : kChunk;
                const int64_t at = key * cache.token_bytes + head * cache.head_bytes;
                loads.kv_load(cache.k + at, cache.type, cache.token_bytes, count, q.head_dim, floats);
                ops.keys(floats, count, q.head_dim, key_panels + (head * key_size + c * kChunk * depth) * eb, kGroup * depth);
                loads.kv_load(cache.v + at, cache.type, cache.token_bytes, count, q.head_dim, floats);
                ops.values(floats, count, q.head_dim, value_panels + (head * value_size + c * kChunkSize) * eb, stretch * kGroup);
            }
            team.barrier();
            panels.enter();
            for (; item < (s + 1) * items; item = next.fetch_add(1, std::memory_order_relaxed)) {
                const int64_t turn = items - 1 - item % items;  // the last queries see the most keys: they go first
                const int64_t head = turn % q.n_kv_heads, first = turn / q.n_kv_heads * kBlockGroups;
                const int64_t m_groups = groups - first < kBlockGroups ? groups - first : kBlockGroups;
                const int64_t lane = head * lanes + first * kGroup;
                const int64_t least = q.n_past + first * kGroup / group;  // the last key that the block's first query sees
                const int64_t row = (first + m_groups) * kGroup - 1;
                const int64_t most = q.n_past + (row < rows ? row : rows - 1) / group;
                Softmax part{};
                part.scores = scores;
                part.m_groups = m_groups;
                part.last = last + first * kGroup;
                part.scale = scale;
                part.best = best + lane;
                part.total = total + lane;
                part.weights = weights;
                part.weights_stride = kBlockKeys * kGroup;
                part.out = sums + (head * groups + first) * value_groups * kTile;
                part.value_groups = value_groups;
                const uint8_t* queries = query_panels + (head * groups + first) * depth * kGroup * eb;
                for (int64_t key = begin; key < end && key <= most; key += kBlockKeys) {
                    part.n_keys = end - key < kBlockKeys ? end - key : kBlockKeys;
                    const int64_t n_chunks = round_up(part.n_keys, kChunk) / kChunk;
                    part.first_key = key;
                    part.key_groups = 2 * n_chunks;
                    part.masked = key + n_chunks * kChunk - 1 > least || part.n_keys % kChunk;
                    panels.multiply(key_panels + (head * key_size + (key - begin) * depth) * eb, part.key_groups, kGroup * depth,
                                    queries, m_groups, depth * kGroup, depth / kChunk, scores, false);
                    ops.softmax(part);
                    panels.multiply(value_panels + (head * value_size + (key - begin) * kGroup) * eb, value_groups,
                                    stretch * kGroup, weights, m_groups, part.weights_stride, n_chunks, part.out, true);
                }
            }
            panels.leave();
        }
        team.barrier();
        const Range ends = team.share(items);
        for (int64_t i = ends.begin; i < ends.end; ++i) {
            const int64_t head = i / blocks, first = i % blocks * kBlockGroups;
            const int64_t m_groups = groups - first < kBlockGroups ? groups - first : kBlockGroups;
            float* block = sums + (head * groups + first) * value_groups * kTile;
            ops.finish(block, value_groups, m_groups, total + head * lanes + first * kGroup);
            int64_t row_of[kBlockGroups * kGroup];
            int64_t count = 0;
            for (int64_t r = first * kGroup; r < rows && r < (first + m_groups) * kGroup; ++r)
                row_of[count++] = r / group * q.n_heads + head * group + r % group;
            panels.store(block, value_groups, m_groups, q.head_dim, count, {out, q.head_dim, row_of, nullptr});
        }
    });
}

}  // namespace
}  // namespace jamba

// Causal grouped-query attention of `tokens` queries f32 [tokens, n_heads, head_dim] (tokens `q_stride` floats apart) over
// caches of GGML type f32, f16, bf16, q8_0, q5_1 or q4_0, whose rows of head_dim values lie token_bytes and head_bytes apart; query t
// sees keys 0..n_past + t. out f32 [tokens, n_heads, head_dim].
EXPORT int prefill_attention(const float* q, int64_t q_stride, const uint8_t* k, const uint8_t* v, int64_t token_bytes,
                             int64_t head_bytes, float* out, int type, int64_t tokens, int64_t n_past, int64_t n_heads,
                             int64_t n_kv_heads, int64_t head_dim, int threads) {
    using namespace jamba;
    if (!is_kv_type(type)) return kBadType;
    if (is_block_kv(type) && head_dim % block_q8_0::kValues) return kPartialBlock;
    return guarded([&] {
        const Queries queries{q, q_stride, tokens, n_heads, n_kv_heads, head_dim, n_past};
        if (tokens > 0) attention(queries, {k, v, type, token_bytes, head_bytes}, out, threads);
        return kOk;
    });
}

// Heads of n values, `rows` of them, from x to out, rotated.
EXPORT int rotate_heads(const float* x, float* out, int64_t rows, int64_t n, int threads) {
    using namespace jamba;
    return guarded([&] {
        parallel(threads, [&](Team& team) {
            const Range mine = team.share(rows);
            for (int64_t i = mine.begin; i < mine.end; ++i) {
                memcpy(out + i * n, x + i * n, static_cast<size_t>(n) * sizeof(float));
                rotate_head(out + i * n, n);
            }
        });
        return kOk;
    });
}
