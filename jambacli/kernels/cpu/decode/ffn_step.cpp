// The feed-forward steps of decoding: one gated network, or a mixture of experts; also the logits.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "decode/steps.h"

namespace jamba {
namespace {

// gate and up of rows [r0, r1), silu(gate) * up into h, for m activations listed in `tokens` (null: all in order). `index`: of the
// matrices in their stacks; gate and up have the low-rank products of these m.
void gated_rows(const Run& run, const LowProduct& gate, const LowProduct& up, int64_t index, const ActBuffer& input,
                const int32_t* tokens, int m, int64_t r0, int64_t r1, const ActBuffer& h, int64_t first, float* up_products) {
    const InnerKernels& k = *run.k;
    float* gated = h.f + first * h.f_stride;
    float* other = up_products + first * h.f_stride;
    k.gemv[gate.w->type](rows_of(*gate.w, index), input.view(), tokens, m, r0, r1, gated, h.f_stride);
    k.gemv[up.w->type](rows_of(*up.w, index), input.view(), tokens, m, r0, r1, other, h.f_stride);
    add_low(k, gate, index, m, 0, r0, r1, gated, h.f_stride);
    add_low(k, up, index, m, 0, r0, r1, other, h.f_stride);
    for (int i = 0; i < m; ++i) {
        float* row = gated + i * h.f_stride;
        k.silu_mul(row + r0, other + i * h.f_stride + r0, r1 - r0, row + r0);
    }
}

// The experts that a batch of tokens uses, and the tokens of each, in the order of their rows of h.
struct Routing {
    int n_active = 0;
    int32_t* expert;  // [n_active], ascending
    int32_t* first;   // [n_active + 1]: an expert's first row of h
    int32_t* token;   // [m * top_k]: the token of each row of h
    float* weight;    // [m * top_k]
    int32_t* rows;    // [m * top_k]: 0, 1, 2 ...
};

Routing take_routing(Scratch& scratch, int64_t n_experts, int64_t slots) {
    Routing r;
    r.expert = scratch.take<int32_t>(n_experts);
    r.first = scratch.take<int32_t>(n_experts + 1);
    r.token = scratch.take<int32_t>(slots);
    r.weight = scratch.take<float>(slots);
    r.rows = scratch.take<int32_t>(slots);
    return r;
}

// The low-rank products of one expert's tokens, whose first slot is `first`.
LowProduct from_slot(const LowProduct& p, int64_t first) { return {p.w, p.ax ? p.ax + first * low_rank_of(*p.w) : nullptr}; }

// Low-rank products of all active experts' slots with some stacks, shared out over the team, with a barrier at the end. `tokens`:
// the activations of the slots. Nothing, and no barrier, where no stack has an adapter.
void low_experts(Team& team, const InnerKernels& k, std::initializer_list<LowProduct> products, const Routing& routing,
                 const ActBuffer& act, const int32_t* tokens) {
    int64_t all = 0;
    for (const LowProduct& p : products) all += low_rank_of(*p.w);
    if (!all) return;
    team.chunks(routing.n_active * all, 4, [&](int64_t begin, int64_t end) {
        for (int64_t active = begin / all; active * all < end; ++active) {
            const int32_t slot = routing.first[active], count = routing.first[active + 1] - slot;
            int64_t first = active * all;
            for (const LowProduct& p : products) {
                const int64_t rank = low_rank_of(*p.w);
                const int64_t r0 = std::max(begin - first, int64_t{0}), r1 = std::min(end - first, rank);
                if (r0 < r1) low_rows(k, from_slot(p, slot), routing.expert[active], act, tokens + slot, count, r0, r1);
                first += rank;
            }
        }
    });
    team.barrier();
}

// Softmax over all experts, the top_k of each token (ties to the lower index), not renormalised.
void route(const float* scores, int64_t m, int64_t n_experts, int64_t top_k, float* probability, uint8_t* chosen,
           Routing& r) {
    std::fill(chosen, chosen + m * n_experts, uint8_t{0});
    for (int64_t t = 0; t < m; ++t) {
        const float* s = scores + t * n_experts;
        float* p = probability + t * n_experts;
        const float top = *std::max_element(s, s + n_experts);
        float sum = 0.0f;
        for (int64_t e = 0; e < n_experts; ++e) sum += p[e] = std::exp(s[e] - top);
        for (int64_t e = 0; e < n_experts; ++e) p[e] /= sum;
        for (int64_t rank = 0; rank < top_k; ++rank) {
            int64_t best = -1;
            for (int64_t e = 0; e < n_experts; ++e)
                if (!chosen[t * n_experts + e] && (best < 0 || p[e] > p[best])) best = e;
            chosen[t * n_experts + best] = 1;
        }
    }
    int32_t at = 0;
    for (int64_t e = 0; e < n_experts; ++e) {
        const int32_t start = at;
        for (int64_t t = 0; t < m; ++t)
            if (chosen[t * n_experts + e]) {
                r.token[at] = static_cast<int32_t>(t);
                r.weight[at] = probability[t * n_experts + e];
                r.rows[at] = at;
                ++at;
            }
        if (at > start) {
            r.expert[r.n_active] = static_cast<int32_t>(e);
            r.first[r.n_active++] = start;
        }
    }
    r.first[r.n_active] = at;
}

}  // namespace

void mlp_step(Team* team, const Run& run, const MlpStep& s, Scratch& scratch) {
    const int64_t ffn = s.gate.rows;
    const bool down_int8 = wants_int8(s.down);
    const ActBuffer input = step_input(team, run, s.input, nullptr, run.m, s.gate.cols,
                                       rounding_for({&s.gate, &s.up}), scratch);
    const ActBuffer h = take_act(scratch, run.m, ffn, rounding_for({&s.down}));
    float* up = scratch.take<float>(run.m * h.f_stride);
    float* products = scratch.take<float>(run.m * s.down.rows);
    const LowProduct low_gate = take_low(scratch, s.gate, run.m), low_up = take_low(scratch, s.up, run.m);
    const LowProduct low_down = take_low(scratch, s.down, run.m);
    if (!team) return;
    low_shared(*team, *run.k, {low_gate, low_up}, input, run.m);
    const int64_t chunk = chunk_rows(s.gate.row_bytes + s.up.row_bytes, ffn, team->size, 32);
    team->chunks(ffn, chunk, [&](int64_t r0, int64_t r1) {
        gated_rows(run, low_gate, low_up, 0, input, nullptr, static_cast<int>(run.m), r0, r1, h, 0, up);
    });
    if (down_int8)
        quantize_shared(*team, *run.k, h, run.m, ffn);
    else
        team->barrier();
    step_output(*team, run, low_down, h, products);
}

void experts_step(Team* team, const Run& run, const ExpertsStep& s, Scratch& scratch) {
    const InnerKernels& k = *run.k;
    const int64_t ffn = s.gate.rows, hidden = s.down.rows, slots = run.m * s.top_k;
    const bool down_int8 = wants_int8(s.down);
    const ActBuffer input = step_input(team, run, s.input, nullptr, run.m, s.gate.cols,
                                       rounding_for({&s.gate, &s.up, &s.router}), scratch);
    float* scores = scratch.take<float>(run.m * s.n_experts);
    const ActBuffer h = take_act(scratch, slots, ffn, rounding_for({&s.down}));
    float* up = scratch.take<float>(slots * h.f_stride);
    float* products = scratch.take<float>(slots * hidden);
    const LowProduct low_gate = take_low(scratch, s.gate, slots), low_up = take_low(scratch, s.up, slots);
    const LowProduct low_down = take_low(scratch, s.down, slots);
    Routing routing{};
    float* probability = nullptr;
    uint8_t* chosen = nullptr;
    for (int i = 0; i < run.threads; ++i) {  // every thread routes for itself
        const Routing one = take_routing(scratch, s.n_experts, slots);
        float* p = scratch.take<float>(run.m * s.n_experts);
        uint8_t* marks = scratch.take<uint8_t>(run.m * s.n_experts);
        if (team && i == team->id) routing = one, probability = p, chosen = marks;
    }
    if (!team) return;

    const int64_t router_chunk = chunk_rows(s.router.row_bytes, s.n_experts, team->size, 1);
    team->chunks(s.n_experts, router_chunk, [&](int64_t r0, int64_t r1) {
        k.gemv[s.router.type](rows_of(s.router), input.view(), nullptr, static_cast<int>(run.m), r0, r1, scores,
                              s.n_experts);
    });
    team->barrier();
    route(scores, run.m, s.n_experts, s.top_k, probability, chosen, routing);

    low_experts(*team, k, {low_gate, low_up}, routing, input, routing.token);
    const int64_t chunk = chunk_rows(s.gate.row_bytes + s.up.row_bytes, ffn * routing.n_active, team->size, 32);
    const int64_t per_expert = (ffn + chunk - 1) / chunk;
    team->chunks(routing.n_active * per_expert, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t active = i / per_expert, r0 = i % per_expert * chunk, e = routing.expert[active];
            const int32_t first = routing.first[active], count = routing.first[active + 1] - first;
            gated_rows(run, from_slot(low_gate, first), from_slot(low_up, first), e, input, routing.token + first, count, r0,
                       std::min(r0 + chunk, ffn), h, first, up);
        }
    });
    if (down_int8)
        quantize_shared(*team, k, h, slots, ffn);
    else
        team->barrier();

    low_experts(*team, k, {low_down}, routing, h, routing.rows);
    const int64_t out_chunk = chunk_rows(s.down.row_bytes * routing.n_active, hidden, team->size, 4);
    team->chunks(hidden, out_chunk, [&](int64_t r0, int64_t r1) {
        float* out = run.y ? run.y : run.x;
        if (run.y)
            for (int64_t t = 0; t < run.m; ++t) std::fill(out + t * hidden + r0, out + t * hidden + r1, 0.0f);
        for (int a = 0; a < routing.n_active; ++a) {
            const int32_t first = routing.first[a], count = routing.first[a + 1] - first;
            k.gemv[s.down.type](rows_of(s.down, routing.expert[a]), h.view(), routing.rows + first, count, r0, r1,
                                products + first * hidden, hidden);
            add_low(k, from_slot(low_down, first), routing.expert[a], count, 0, r0, r1, products + first * hidden, hidden);
            for (int32_t i = first; i < first + count; ++i)
                k.add_scaled(out + routing.token[i] * hidden + r0, products + i * hidden + r0, routing.weight[i], r1 - r0);
        }
    });
}

void logits_step(Team* team, const Run& run, const LogitsStep& s, Scratch& scratch) {
    int64_t m = 0;
    for (int64_t j = 0; j < run.n_spans; ++j) m += run.spans[j].logits;
    int32_t* rows = nullptr;
    for (int i = 0; i < run.threads; ++i) {  // every thread lists them for itself
        int32_t* mine = scratch.take<int32_t>(m);
        if (team && i == team->id) rows = mine;
    }
    if (team) {
        int64_t at = 0, end = 0;
        for (int64_t j = 0; j < run.n_spans; ++j) {
            end += run.spans[j].tokens;
            for (int64_t t = end - run.spans[j].logits; t < end; ++t) rows[at++] = static_cast<int32_t>(t);
        }
    }
    const ActBuffer input = step_input(team, run, s.input, rows, m, s.out.cols, rounding_for({&s.out}), scratch);
    const LowProduct low = take_low(scratch, s.out, m);
    if (!team || !m) return;
    low_shared(*team, *run.k, {low}, input, m);
    team->chunks(s.out.rows, chunk_rows(s.out.row_bytes, s.out.rows, team->size, 4), [&](int64_t r0, int64_t r1) {
        run.k->gemv[s.out.type](rows_of(s.out), input.view(), nullptr, static_cast<int>(m), r0, r1, run.logits, s.out.rows);
        add_low(*run.k, low, 0, m, 0, r0, r1, run.logits, s.out.rows);
    });
}

}  // namespace jamba
