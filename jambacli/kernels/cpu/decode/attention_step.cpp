// The attention step of decoding: projections, storing keys and values, attention over the cache in fixed pieces.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/rotate.h"
#include "decode/steps.h"

namespace jamba {
namespace {

// The cache is cut into pieces by position alone, so that results depend neither on the size of the context, nor on the
// threads, nor on the tokens of a step. The first pieces are short, so that several threads share a short context.
constexpr int64_t kShortKeys = 256, kShortPieces = 16, kLongKeys = 1024;
constexpr int64_t kShortEnd = kShortKeys * kShortPieces;

int64_t count_pieces(int64_t keys) {
    return keys <= kShortEnd ? (keys + kShortKeys - 1) / kShortKeys : kShortPieces + (keys - kShortEnd + kLongKeys - 1) / kLongKeys;
}

int64_t piece_begin(int64_t piece) {
    return piece <= kShortPieces ? piece * kShortKeys : kShortEnd + (piece - kShortPieces) * kLongKeys;
}

constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147182f;

// A value that is no number makes its block's factor NaN, and so all scores with it.
float poison_of(const float* x) {
    float poison = 0.0f;
    for (int i = 0; i < 32; ++i) poison += x[i] * 0.0f;
    return poison;
}

float inverse_of(float d) {
    const float inverse = 1.0f / d;
    return std::isfinite(inverse) ? inverse : 0.0f;
}

// Levels of four bits from 0 to 15, as ggml rounds.
void store_four_bits(const float* from, int64_t n, uint8_t* to) {
    auto* block = reinterpret_cast<block_q4_0*>(to);
    for (int64_t b = 0; b < n / 32; ++b, ++block, from += 32) {
        float top = 0.0f;  // the value of the largest magnitude, which becomes level 0
        for (int i = 0; i < 32; ++i) top = std::fabs(from[i]) > std::fabs(top) ? from[i] : top;
        const float poison = poison_of(from), d = top / -8.0f + poison;
        const float inverse = inverse_of(d);
        const uint16_t half = float_to_half(d);
        std::memcpy(&block->d, &half, 2);
        const auto level = [&](int i) {
            return poison == 0.0f ? std::min(15, static_cast<int>(from[i] * inverse + 8.5f)) : 8;
        };
        for (int i = 0; i < 16; ++i) block->qs[i] = static_cast<uint8_t>(level(i) | level(i + 16) << 4);
    }
}

// Levels of five bits from 0 to 31 above the block's minimum, as ggml rounds.
void store_five_bits(const float* from, int64_t n, uint8_t* to) {
    auto* block = reinterpret_cast<block_q5_1*>(to);
    for (int64_t b = 0; b < n / 32; ++b, ++block, from += 32) {
        float least = from[0], most = from[0];
        for (int i = 1; i < 32; ++i) least = std::min(least, from[i]), most = std::max(most, from[i]);
        const float poison = poison_of(from), d = (most - least) / 31.0f + poison;
        const float inverse = inverse_of(d);
        const uint16_t factor = float_to_half(d), minimum = float_to_half(least);
        std::memcpy(&block->d, &factor, 2);
        std::memcpy(&block->m, &minimum, 2);
        uint32_t high = 0;
        const auto level = [&](int i) {
            return poison == 0.0f ? static_cast<uint32_t>((from[i] - least) * inverse + 0.5f) : 0u;
        };
        for (int i = 0; i < 16; ++i) {
            const uint32_t a = level(i), c = level(i + 16);
            block->qs[i] = static_cast<uint8_t>((a & 15) | (c & 15) << 4);
            high |= (a >> 4 & 1) << i | (c >> 4 & 1) << (i + 16);
        }
        std::memcpy(block->qh, &high, 4);
    }
}

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
    } else if (type == kQ4_0) {
        store_four_bits(from, n, to);
    } else if (type == kQ5_1) {
        store_five_bits(from, n, to);
    } else {
        for (int64_t i = 0; i < n; ++i) {
            const uint16_t half = type == kF16 ? float_to_half(from[i]) : float_to_bf16(from[i]);
            std::memcpy(to + 2 * i, &half, 2);
        }
    }
}

// One span's queries, [n_kv_heads, rows], and what each piece of its cache contributes: softmaxes as in QueryRows, of the rows
// of each KV head.
struct Attending {
    const Span* span;
    const StepState* state;
    int64_t first;  // its first row of x
    int64_t pieces, rows, depth;
    float* queries;   // [n_kv_heads, rows, depth]
    uint8_t* packed;  // the same as packed queries, or null
    float *best, *sum;  // [n_kv_heads, pieces, rows]
    float* values;      // [n_kv_heads, pieces, rows, depth]

    int64_t at(int64_t kv_head, int64_t piece) const { return (kv_head * pieces + piece) * rows; }
};

// The span of row t of x.
const Attending& span_of(const Attending* parts, int64_t t) {
    while (t >= parts->first + parts->span->tokens) ++parts;
    return *parts;
}

// One piece for `heads` KV heads from `first_head` on.
void attend_piece(const Run& run, const AttentionStep& s, const Attending& part, int64_t first_head, int64_t heads,
                  int64_t piece, float* work) {
    const int64_t past = part.span->past, tokens = part.span->tokens;
    const StepState& state = *part.state;
    const int64_t begin = piece_begin(piece), end = std::min(piece_begin(piece + 1), past + tokens);
    for (int64_t head = first_head; head < first_head + heads; ++head) {
        const int64_t at = part.at(head, piece);
        std::fill(part.best + at, part.best + at + part.rows, -1e30f);
        std::fill(part.sum + at, part.sum + at + part.rows, 0.0f);
        std::fill(part.values + at * part.depth, part.values + (at + part.rows) * part.depth, 0.0f);
    }
    for (int64_t key = begin; key < end; key += kBlockKeys)
        for (int64_t head = first_head; head < first_head + heads; ++head) {
            const int64_t at = part.at(head, piece), from = key * state.token_stride + head * state.head_stride;
            const KeyBlock block{state.k + from, state.v + from, state.token_stride, std::min(kBlockKeys, end - key),
                                 past + 1 - key, s.kv_type};
            run.k->attend(block, {part.queries + head * part.rows * part.depth, tokens, s.n_heads / s.n_kv_heads, s.head_dim,
                                  part.depth, part.best + at, part.sum + at, part.values + at * part.depth,
                                  part.packed ? part.packed + head * part.rows * packed_query_bytes(s.head_dim) : nullptr}, work);
        }
}

// The pieces of one query row, in order, into its output. `factors` [pieces] is overwritten.
void combine(const InnerKernels& k, const Attending& p, int64_t kv_head, int64_t row, int64_t dim, float* factors, float* out) {
    const int64_t at = p.at(kv_head, 0) + row;
    for (int64_t c = 0; c < p.pieces; ++c) factors[c] = p.best[at + c * p.rows] * kLn2;
    k.exp_sum(factors, *std::max_element(factors, factors + p.pieces), p.pieces);
    float total = 0.0f;
    std::fill(out, out + dim, 0.0f);
    for (int64_t c = 0; c < p.pieces; ++c) {
        const float sum = p.sum[at + c * p.rows];
        if (sum == 0.0f) continue;  // no key that this token sees
        total += factors[c] * sum;
        k.add_scaled(out, p.values + (at + c * p.rows) * p.depth, factors[c], dim);
    }
    for (int64_t i = 0; i < dim; ++i) out[i] /= total;
}

}  // namespace

void attention_step(Team* team, const Run& run, const AttentionStep& s, int64_t index, Scratch& scratch) {
    const InnerKernels& k = *run.k;
    const int64_t m = run.m, dim = s.head_dim, q_rows = s.q.rows, kv_rows = s.k.rows;
    const int64_t group = s.n_heads / s.n_kv_heads, depth = attend_depth(dim), query_bytes = packed_query_bytes(dim);
    const ActBuffer input = step_input(team, run, s.input, nullptr, m, s.q.cols,
                                       rounding_for({&s.q, &s.k, &s.v}), scratch);
    float* q = scratch.take<float>(m * q_rows);
    float* new_k = scratch.take<float>(m * kv_rows);
    float* new_v = scratch.take<float>(m * kv_rows);
    float* queries = scratch.take<float>(m * s.n_heads * depth);
    uint8_t* packed = k.pack_query && is_block_kv(s.kv_type) ? scratch.take<uint8_t>(m * s.n_heads * query_bytes) : nullptr;
    int64_t partial_rows = 0, most_rows = 0, most_pieces = 0, all_pieces = 0;
    for (int64_t j = 0; j < run.n_spans; ++j) {
        const Span& span = run.spans[j];
        const int64_t pieces = count_pieces(span.past + span.tokens);
        partial_rows += span.tokens * s.n_heads * pieces;
        most_rows = std::max(most_rows, span.tokens * group);
        most_pieces = std::max(most_pieces, pieces);
        all_pieces += pieces;
    }
    float* best = scratch.take<float>(partial_rows);
    float* sum = scratch.take<float>(partial_rows);
    float* partial_values = scratch.take<float>(partial_rows * depth);
    const ActBuffer attended = take_act(scratch, m, q_rows, rounding_for({&s.out}));
    float* products = scratch.take<float>(m * s.out.rows);
    const LowProduct low_q = take_low(scratch, s.q, m), low_k = take_low(scratch, s.k, m), low_v = take_low(scratch, s.v, m);
    const LowProduct low_out = take_low(scratch, s.out, m);
    float* work = nullptr;
    Attending* parts = nullptr;
    for (int i = 0; i < run.threads; ++i) {
        float* mine = scratch.take<float>(std::max(attend_work(most_rows, depth), most_pieces));
        Attending* own = scratch.take<Attending>(run.n_spans);
        if (team && i == team->id) work = mine, parts = own;
    }
    if (!team) return;
    for (int64_t j = 0, first = 0, at = 0; j < run.n_spans; ++j) {
        const Span& span = run.spans[j];
        const int64_t pieces = count_pieces(span.past + span.tokens);
        parts[j] = {&span, &run.states[j][index], first, pieces, span.tokens * group, depth, queries + first * s.n_heads * depth,
                    packed ? packed + first * s.n_heads * query_bytes : nullptr, best + at, sum + at, partial_values + at * depth};
        first += span.tokens;
        at += span.tokens * s.n_heads * pieces;
    }

    low_shared(*team, k, {low_q, low_k, low_v}, input, m);
    // q, k and v as one range of rows; a chunk may span two of them.
    const int64_t rows = q_rows + 2 * kv_rows;
    team->chunks(rows, chunk_rows(s.q.row_bytes, rows, team->size, 4), [&](int64_t begin, int64_t end) {
        const auto part = [&](const LowProduct& low, int64_t offset, float* out) {
            const Matrix& w = *low.w;
            const int64_t r0 = std::max(begin - offset, int64_t{0}), r1 = std::min(end - offset, w.rows);
            if (r0 >= r1) return;
            k.gemv[w.type](rows_of(w), input.view(), nullptr, static_cast<int>(m), r0, r1, out, w.rows);
            add_low(k, low, 0, m, 0, r0, r1, out, w.rows);
        };
        part(low_q, 0, q);
        part(low_k, q_rows, new_k);
        part(low_v, q_rows + kv_rows, new_v);
    });
    team->barrier();

    const float scale = kLog2e / std::sqrt(static_cast<float>(dim));
    const Range mine = team->share(m * s.n_kv_heads);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
        const int64_t t = i / s.n_kv_heads, head = i % s.n_kv_heads;
        const Attending& part = span_of(parts, t);
        const StepState& state = *part.state;
        const int64_t own = t - part.first, at = (part.span->past + own) * state.token_stride + head * state.head_stride;
        const bool rotated = is_rotated_kv(s.kv_type);
        if (rotated) rotate_head(new_k + t * kv_rows + head * dim, dim), rotate_head(new_v + t * kv_rows + head * dim, dim);
        store_row(new_k + t * kv_rows + head * dim, s.kv_type, dim, state.k + at);
        store_row(new_v + t * kv_rows + head * dim, s.kv_type, dim, state.v + at);
        const float* from = q + t * q_rows + head * group * dim;
        const int64_t row = head * part.rows + own * group;
        float* to = part.queries + row * depth;
        for (int64_t h = 0; h < group; ++h, from += dim, to += depth) {
            for (int64_t j = 0; j < dim; ++j) to[j] = from[j] * scale;
            if (rotated) rotate_head(to, dim);
            std::fill(to + dim, to + depth, 0.0f);
            if (packed) k.pack_query(to, dim, part.packed + (row + h) * query_bytes);
        }
    }
    team->barrier();

    // All heads of a piece lie side by side and are best read together, once there are pieces for every thread.
    const int64_t heads = all_pieces >= 4 * team->size ? s.n_kv_heads : 1, shares = s.n_kv_heads / heads;
    team->chunks(all_pieces * shares, 1, [&](int64_t begin, int64_t end) {
        const Attending* part = parts;
        int64_t before = 0;  // tasks of earlier spans
        for (int64_t i = begin; i < end; ++i) {
            for (; i >= before + part->pieces * shares; ++part) before += part->pieces * shares;
            attend_piece(run, s, *part, (i - before) % shares * heads, heads, (i - before) / shares, work);
        }
    });
    team->barrier();

    team->chunks(m * s.n_heads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t t = i / s.n_heads, head = i % s.n_heads;
            const Attending& part = span_of(parts, t);
            combine(k, part, head / group, (t - part.first) * group + head % group, dim, work,
                    attended.f + t * attended.f_stride + head * dim);
            if (is_rotated_kv(s.kv_type)) rotate_head(attended.f + t * attended.f_stride + head * dim, dim);
        }
    });
    team->barrier();
    if (wants_int8(s.out)) {
        const Range part = team->share(q_rows, kPad);
        for (int64_t t = 0; t < m && part.begin < part.end; ++t) quantize_part(k, attended, t, q_rows, part.begin, part.end);
        team->barrier();
    }
    step_output(*team, run, low_out, attended, products);
}

}  // namespace jamba
