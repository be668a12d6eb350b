// Runs the steps of a decode call on one team, and what steps share.
#include "decode/steps.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>

namespace jamba {

ActBuffer step_input(Team* team, const Run& run, const Input& input, const int32_t* rows, int64_t m, int64_t hidden,
                     Rounding rounding, Scratch& scratch) {
    const bool own = m == 1;
    ActBuffer a;
    for (int i = 0; i < (own ? run.threads : 1); ++i) {
        const ActBuffer one = take_act(scratch, m, hidden, rounding);
        if (!own || (team && i == team->id)) a = one;
    }
    if (!team) return a;
    for (int64_t t = own ? 0 : team->id; t < m; t += own ? 1 : team->size) {
        const float* x = run.x + (rows ? rows[t] : t) * hidden;
        float* row = a.f + t * a.f_stride;
        if (input.norm)
            run.k->rms_norm(x, input.norm, input.eps, hidden, row);
        else
            std::memcpy(row, x, static_cast<size_t>(hidden) * sizeof(float));
        if (rounding != Rounding::kNone) quantize_part(*run.k, a, t, hidden, 0, hidden);
    }
    if (!own) team->barrier();
    return a;
}

void step_output(Team& team, const Run& run, const LowProduct& low, const ActBuffer& a, float* products) {
    const Matrix& out = *low.w;
    const int64_t n = out.rows;
    low_shared(team, *run.k, {low}, a, run.m);
    team.chunks(n, chunk_rows(out.row_bytes, n, team.size, 4), [&](int64_t r0, int64_t r1) {
        float* to = run.y ? run.y : products;
        run.k->gemv[out.type](rows_of(out), a.view(), nullptr, static_cast<int>(run.m), r0, r1, to, n);
        add_low(*run.k, low, 0, run.m, 0, r0, r1, to, n);
        if (!run.y)
            for (int64_t t = 0; t < run.m; ++t) run.k->add(run.x + t * n + r0, products + t * n + r0, r1 - r0);
    });
}

namespace {

void one_step(Team* team, const Run& run, const Step& s, int64_t index, Scratch scratch, size_t* used) {
    switch (s.kind) {
        case kMambaStep: mamba_step(team, run, *static_cast<const MambaStep*>(s.step), index, scratch); break;
        case kAttentionStep: attention_step(team, run, *static_cast<const AttentionStep*>(s.step), index, scratch); break;
        case kMlpStep: mlp_step(team, run, *static_cast<const MlpStep*>(s.step), scratch); break;
        case kExpertsStep: experts_step(team, run, *static_cast<const ExpertsStep*>(s.step), scratch); break;
        case kLogitsStep: logits_step(team, run, *static_cast<const LogitsStep*>(s.step), scratch); break;
        default: break;
    }
    if (used) *used = std::max(*used, scratch.used());
}

int check_all(std::initializer_list<const Matrix*> matrices) {
    for (const Matrix* w : matrices)
        if (const int status = check_matrix(*w)) return status;
    return kOk;
}

// Whether a step's matrices have kernels and fit each other.
int check_step(const Step& step) {
    const auto fits = [](bool good) { return good ? kOk : kBadStep; };
    if (step.kind == kMambaStep) {
        const auto& s = *static_cast<const MambaStep*>(step.step);
        if (const int status = check_all({&s.in, &s.x, &s.dt, &s.out})) return status;
        const int64_t d_inner = s.out.cols;
        return fits(s.in.rows == 2 * d_inner && s.out.rows == s.in.cols && s.x.cols == d_inner && s.dt.rows == d_inner &&
                    s.x.rows == s.dt.cols + 2 * s.d_state && s.d_state > 0 && s.d_conv > 0);
    }
    if (step.kind == kAttentionStep) {
        const auto& s = *static_cast<const AttentionStep*>(step.step);
        if (const int status = check_all({&s.q, &s.k, &s.v, &s.out})) return status;
        const bool kv = is_kv_type(s.kv_type) && (!is_block_kv(s.kv_type) || s.head_dim % 32 == 0);
        return fits(kv && s.n_kv_heads > 0 && s.head_dim > 0 && s.n_heads % s.n_kv_heads == 0 &&
                    s.q.rows == s.n_heads * s.head_dim && s.k.rows == s.n_kv_heads * s.head_dim && s.v.rows == s.k.rows &&
                    s.k.cols == s.q.cols && s.v.cols == s.q.cols && s.out.cols == s.q.rows && s.out.rows == s.q.cols);
    }
    if (step.kind == kMlpStep) {
        const auto& s = *static_cast<const MlpStep*>(step.step);
        if (const int status = check_all({&s.gate, &s.up, &s.down})) return status;
        return fits(s.up.rows == s.gate.rows && s.up.cols == s.gate.cols && s.down.cols == s.gate.rows &&
                    s.down.rows == s.gate.cols);
    }
    if (step.kind == kExpertsStep) {
        const auto& s = *static_cast<const ExpertsStep*>(step.step);
        if (const int status = check_all({&s.router, &s.gate, &s.up, &s.down})) return status;
        return fits(s.router.rows == s.n_experts && s.router.cols == s.gate.cols && s.top_k > 0 &&
                    s.top_k <= s.n_experts && s.up.rows == s.gate.rows && s.up.cols == s.gate.cols &&
                    s.down.cols == s.gate.rows && s.down.rows == s.gate.cols);
    }
    if (step.kind == kLogitsStep) return check_matrix(static_cast<const LogitsStep*>(step.step)->out);
    return kBadStep;
}

}  // namespace
}  // namespace jamba

// kOk when the kernels can run this step, else why not. The caller checks the sizes of plain float tensors.
EXPORT int decode_check_step(int64_t kind, const void* step) { return jamba::check_step({kind, step}); }

// Runs n_steps steps in order on the tokens of n_spans spans of distinct sequences. states[j][i] is span j's part of steps[i]; x is
// [tokens of all spans, hidden], updated in place, or left alone where y is not null (then each step overwrites y: for single
// steps). A kLogitsStep writes the logits that the spans ask for, one span after another. `precise`: 15-bit activations
// instead of int8. A token's results do not depend on the other spans, nor on how its own sequence is cut into spans. The
// caller has checked the steps.
EXPORT int decode_steps(const jamba::Step* steps, const jamba::StepState* const* states, const jamba::Span* spans, float* x,
                        float* y, float* logits, int64_t n_steps, int64_t n_spans, int precise, int threads) {
    using namespace jamba;
    int64_t m = 0;
    for (int64_t j = 0; j < n_spans; ++j) {
        if (spans[j].tokens <= 0 || spans[j].logits < 0 || spans[j].logits > spans[j].tokens) return kBadSize;
        m += spans[j].tokens;
        for (int64_t i = 0; i < n_steps; ++i)
            if (steps[i].kind == kAttentionStep && spans[j].past + spans[j].tokens > states[j][i].capacity) return kNoRoom;
    }
    if (m <= 0) return kOk;
    const Run run{&inner_kernels(), x, y, m, spans, states, n_spans, logits, std::max(1, threads)};
    size_t bytes = 0;
    for (int64_t i = 0; i < n_steps; ++i) one_step(nullptr, run, steps[i], i, Scratch(nullptr, precise), &bytes);
    uint8_t* base = scratch_block(bytes);
    if (!base) return kNoMemory;
    parallel(run.threads, [&](Team& team) {
        for (int64_t i = 0; i < n_steps; ++i) {
            one_step(&team, run, steps[i], i, Scratch(base, precise), nullptr);
            team.barrier();
        }
    });
    return kOk;
}
