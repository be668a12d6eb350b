// The attention step of decoding: projections, storing keys and values, attention over the cache in fixed chunks.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "decode/steps.h"

namespace jamba {
namespace {

// Keys of one piece of work. Fixed, so that results depend neither on the size of the context nor on the threads.
constexpr int64_t kKeys = 256;
constexpr int64_t kTileKeys = 32;  // converted to floats at a time

void store_row(const float* from, int32_t type, int64_t n, uint8_t* to) {
    if (type == kF32) {
        std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
    } else if (type == kQ8_0) {  // as ggml quantizes it
        auto* block = reinterpret_cast<block_q8_0*>(to);
        for (int64_t b = 0; b < n / 32; ++b, ++block, from += 32) {
            float top = 0.0f;
            for (int i = 0; i < 32; ++i) top = std::max(top, std::fabs(from[i]));
            const float d = top / 127.0f, inverse = d != 0.0f ? 1.0f / d : 0.0f;
            const uint16_t half = float_to_half(d);
            std::memcpy(&block->d, &half, 2);
            for (int i = 0; i < 32; ++i) block->qs[i] = static_cast<int8_t>(std::round(from[i] * inverse));
        }
    } else {
        for (int64_t i = 0; i < n; ++i) {
            const uint16_t half = type == kF16 ? float_to_half(from[i]) : float_to_bf16(from[i]);
            std::memcpy(to + 2 * i, &half, 2);
        }
    }
}

// What a chunk of keys contributes to each query head: the largest score, the sum of exponentials, the weighted values.
struct Partials {
    float *max_score, *sum;  // [m, n_heads, chunks]
    float* values;      // [m, n_heads, chunks, head_dim]
};

// One chunk of keys and all query heads of one kv head.
void attend_chunk(const Run& run, const AttentionStep& s, const StepState& state, const float* q, int64_t kv_head,
                  int64_t chunk, int64_t chunks, float* work, const Partials& out) {
    const InnerKernels& k = *run.k;
    const int64_t dim = s.head_dim, group = s.n_heads / s.n_kv_heads, first = chunk * kKeys;
    const int64_t n_keys = std::min(kKeys, run.n_past + run.m - first);
    float* tile = work;                        // [kTileKeys, dim]
    float* weights = work + kTileKeys * dim;   // [m * group, kKeys]
    const auto keys_of = [&](int64_t t) { return std::min(n_keys, run.n_past + t + 1 - first); };

    for (int64_t j = 0; j < n_keys; j += kTileKeys) {
        const int64_t count = std::min(kTileKeys, n_keys - j);
        k.kv_load(state.k + (first + j) * state.token_stride + kv_head * state.head_stride, s.kv_type, state.token_stride,
                  count, dim, tile);
        for (int64_t t = 0; t < run.m; ++t)
            k.scores(q + (t * s.n_heads + kv_head * group) * dim, dim, static_cast<int>(group), tile, count, dim,
                     weights + t * group * kKeys + j, kKeys);
    }
    for (int64_t t = 0; t < run.m; ++t)
        for (int64_t h = 0; h < group; ++h) {
            const int64_t at = (t * s.n_heads + kv_head * group + h) * chunks + chunk;
            const int64_t seen = keys_of(t);
            float* w = weights + (t * group + h) * kKeys;
            out.max_score[at] = seen > 0 ? *std::max_element(w, w + seen) : -std::numeric_limits<float>::infinity();
            out.sum[at] = seen > 0 ? k.exp_sum(w, out.max_score[at], seen) : 0.0f;
            std::fill(out.values + at * dim, out.values + (at + 1) * dim, 0.0f);
        }
    for (int64_t j = 0; j < n_keys; j += kTileKeys) {
        k.kv_load(state.v + (first + j) * state.token_stride + kv_head * state.head_stride, s.kv_type, state.token_stride,
                  std::min(kTileKeys, n_keys - j), dim, tile);
        for (int64_t t = 0; t < run.m; ++t) {
            const int64_t count = std::min(kTileKeys, keys_of(t) - j);
            if (count <= 0) continue;
            const int64_t at = (t * s.n_heads + kv_head * group) * chunks + chunk;
            k.weighted(weights + t * group * kKeys + j, kKeys, static_cast<int>(group), tile, count, dim,
                       out.values + at * dim, chunks * dim);
        }
    }
}

// The chunks of one query head, in order, into its output.
void combine(const InnerKernels& k, int64_t chunks, int64_t dim, float* max_score, const float* sum, const float* values, float* out) {
    const float top = *std::max_element(max_score, max_score + chunks);
    k.exp_sum(max_score, top, chunks);  // now each chunk's factor
    float total = 0.0f;
    std::fill(out, out + dim, 0.0f);
    for (int64_t c = 0; c < chunks; ++c) {
        if (max_score[c] == 0.0f) continue;
        total += max_score[c] * sum[c];
        k.add_scaled(out, values + c * dim, max_score[c], dim);
    }
    for (int64_t i = 0; i < dim; ++i) out[i] /= total;
}

}  // namespace

void attention_step(Team* team, const Run& run, const AttentionStep& s, const StepState& state, Scratch& scratch) {
    const InnerKernels& k = *run.k;
    const int64_t m = run.m, dim = s.head_dim, q_rows = s.q.rows, kv_rows = s.k.rows;
    const int64_t chunks = (run.n_past + m + kKeys - 1) / kKeys, group = s.n_heads / s.n_kv_heads;
    const ActBuffer input = step_input(team, run, s.input, run.x, m, s.q.cols,
                                       wants_int8(s.q) || wants_int8(s.k) || wants_int8(s.v), scratch);
    float* q = scratch.take<float>(m * q_rows);
    float* new_k = scratch.take<float>(m * kv_rows);
    float* new_v = scratch.take<float>(m * kv_rows);
    Partials partials;
    partials.max_score = scratch.take<float>(m * s.n_heads * chunks);
    partials.sum = scratch.take<float>(m * s.n_heads * chunks);
    partials.values = scratch.take<float>(m * s.n_heads * chunks * dim);
    const ActBuffer attended = take_act(scratch, m, q_rows, wants_int8(s.out));
    float* products = scratch.take<float>(m * s.out.rows);
    float* work = nullptr;
    for (int i = 0; i < run.threads; ++i) {
        float* mine = scratch.take<float>(kTileKeys * dim + m * group * kKeys);
        if (team && i == team->id) work = mine;
    }
    if (!team) return;

    // q, k and v as one range of rows; a chunk may span two of them.
    const int64_t rows = q_rows + 2 * kv_rows;
    team->chunks(rows, chunk_rows(s.q.row_bytes, rows, team->size, 4), [&](int64_t begin, int64_t end) {
        const auto part = [&](const Matrix& w, int64_t offset, float* out) {
            const int64_t r0 = std::max(begin - offset, int64_t{0}), r1 = std::min(end - offset, w.rows);
            if (r0 < r1) k.gemv[w.type](rows_of(w), input.view(), nullptr, static_cast<int>(m), r0, r1, out, w.rows);
        };
        part(s.q, 0, q);
        part(s.k, q_rows, new_k);
        part(s.v, q_rows + kv_rows, new_v);
    });
    team->barrier();

    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    const Range mine = team->share(m * s.n_kv_heads);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
        const int64_t t = i / s.n_kv_heads, head = i % s.n_kv_heads;
        const int64_t at = (run.n_past + t) * state.token_stride + head * state.head_stride;
        store_row(new_k + t * kv_rows + head * dim, s.kv_type, dim, state.k + at);
        store_row(new_v + t * kv_rows + head * dim, s.kv_type, dim, state.v + at);
        float* heads = q + t * q_rows + head * group * dim;
        for (int64_t j = 0; j < group * dim; ++j) heads[j] *= scale;
    }
    team->barrier();

    team->chunks(chunks * s.n_kv_heads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            attend_chunk(run, s, state, q, i % s.n_kv_heads, i / s.n_kv_heads, chunks, work, partials);
    });
    team->barrier();

    team->chunks(m * s.n_heads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            combine(k, chunks, dim, partials.max_score + i * chunks, partials.sum + i * chunks, partials.values + i * chunks * dim,
                    attended.f + i / s.n_heads * attended.f_stride + i % s.n_heads * dim);
    });
    team->barrier();
    if (wants_int8(s.out)) {
        const Range part = team->share(q_rows, kPad);
        for (int64_t t = 0; t < m && part.begin < part.end; ++t) quantize_part(k, attended, t, q_rows, part.begin, part.end);
        team->barrier();
    }
    step_output(*team, run, s.out, attended, products);
}

}  // namespace jamba
