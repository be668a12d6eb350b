// The steps of decoding a few tokens: what each reads, as plain structs of addresses.
//
// A step is one mixer or feed-forward network with its norm and residual addition, or the logits. decode_steps() runs a list
// of them, a whole model's, inside one parallel region. decode.py mirrors these structs.
#pragma once

#include "decode/team.h"

namespace jamba {

// Before every step: h = rms_norm(x, norm, eps), or x itself where norm is null.
struct Input {
    const float* norm;  // [hidden]
    float eps;
    int32_t reserved;
};

struct MambaStep {
    Input input;
    Matrix in, x, dt, out;  // [2 d_inner, hidden], [dt_rank + 2 d_state, d_inner], [d_inner, dt_rank], [hidden, d_inner]
    const float *conv_weight, *conv_bias;      // [d_inner, d_conv], [d_inner]
    const float *dt_norm, *b_norm, *c_norm;    // [dt_rank], [d_state], [d_state]
    const float *dt_bias, *A, *D;              // [d_inner], [d_inner, d_state] (negative), [d_inner]
    int64_t d_state, d_conv;
};

struct AttentionStep {
    Input input;
    Matrix q, k, v, out;
    int64_t n_heads, n_kv_heads, head_dim;
    int32_t kv_type;  // is_kv_type()
    int32_t reserved;
};

struct MlpStep {
    Input input;
    Matrix gate, up, down;
};

struct ExpertsStep {
    Input input;
    Matrix router;          // [n_experts, hidden]
    Matrix gate, up, down;  // stacks of n_experts
    int64_t n_experts, top_k;
};

struct LogitsStep {
    Input input;
    Matrix out;  // [vocab, hidden]
};

enum StepKind : int64_t { kMambaStep = 0, kAttentionStep = 1, kMlpStep = 2, kExpertsStep = 3, kLogitsStep = 4 };

struct Step {
    int64_t kind;
    const void* step;
};

// A sequence's part of a step; which fields are used depends on the kind.
struct StepState {
    float* conv;                        // [d_inner, d_conv - 1], oldest input first
    float* ssm;                         // [d_inner, d_state]
    float *conv_history, *ssm_history;  // [slots, ...]: earlier conv and ssm, see Span; null without
    uint8_t *k, *v;                     // caches; byte strides between tokens and between heads
    int64_t token_stride, head_stride;
    int64_t capacity;                   // tokens
};

// The tokens of one sequence in a call. Rows of x are the tokens of the first span, then those of the second ...
struct Span {
    int64_t tokens, past;  // `past`: tokens of the sequence before these
    int64_t logits;        // of how many of its last tokens
    int64_t slot;          // conv and ssm before the span's token i are copied to history slot slot + i; -1: not kept
};

// One call: m tokens of some spans. Products are shared by all tokens; convolution, scan and attention go span by span.
struct Run {
    const InnerKernels* k;
    float* x;  // [m, hidden]: the residual stream, which steps add to
    float* y;  // where not null, steps write their output here instead of adding it to x
    int64_t m;
    const Span* spans;
    const StepState* const* states;  // [n_spans]: of each span, the states of all steps
    int64_t n_spans;
    float* logits;  // [sum of the spans' logits, vocab]
    int threads;
};

// Each is called by every thread of a team with a copy of the same scratch, or once with team null to measure scratch.
// x may be read by the next step only after another barrier.
// `index`: the step's, of its part of each span's states.
void mamba_step(Team* team, const Run& run, const MambaStep& s, int64_t index, Scratch& scratch);
void attention_step(Team* team, const Run& run, const AttentionStep& s, int64_t index, Scratch& scratch);
void mlp_step(Team* team, const Run& run, const MlpStep& s, Scratch& scratch);
void experts_step(Team* team, const Run& run, const ExpertsStep& s, Scratch& scratch);
void logits_step(Team* team, const Run& run, const LogitsStep& s, Scratch& scratch);

// The step's input, normed, in the forms that its weights need: m rows of run.x, those that `rows` lists (null: all in order).
// One token: every thread computes its own copy, which is faster than waiting for another; more tokens are shared out, with
// a barrier at the end.
ActBuffer step_input(Team* team, const Run& run, const Input& input, const int32_t* rows, int64_t m, int64_t hidden,
                     Rounding rounding, Scratch& scratch);

// Rows of `out` times the activations, added to run.x (or written to run.y), shared out over the team.
void step_output(Team& team, const Run& run, const LowProduct& out, const ActBuffer& a, float* products);

}  // namespace jamba
