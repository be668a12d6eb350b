// The Mamba step of decoding: projections, convolution, norms, state update and gate.
#include <algorithm>
#include <cstring>
#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#endif

#include "decode/steps.h"

namespace jamba {
namespace {

// dt, B and C of each token, normed; dt in the form that its projection needs.
struct Selection {
    ActBuffer dt;
    float *b, *c;  // [m, d_state]
};

Selection take_selection(Scratch& scratch, const MambaStep& s, int64_t m) {
    Selection out;
    out.dt = take_act(scratch, m, s.dt.cols, rounding_for({&s.dt}));
    out.b = scratch.take<float>(m * s.d_state);
    out.c = scratch.take<float>(m * s.d_state);
    return out;
}

void norm_selection(const Run& run, const MambaStep& s, const float* projected, int64_t t, const Selection& out) {
    const int64_t rank = s.dt.cols, n = s.d_state;
    const float* p = projected + t * s.x.rows;
    const float eps = s.input.eps;
    run.k->rms_norm(p, s.dt_norm, eps, rank, out.dt.f + t * out.dt.f_stride);
    run.k->rms_norm(p + rank, s.b_norm, eps, n, out.b + t * n);
    run.k->rms_norm(p + rank + n, s.c_norm, eps, n, out.c + t * n);
    if (wants_int8(s.dt)) quantize_part(*run.k, out.dt, t, rank, 0, rank);
}

// Keeps channels [c0, c1) of a state of `size` channels of n values in a slot of its history. It is read at most once, much
// later: so it is written past the caches, without reading what was there. Call kept() before the next barrier.
void keep(const float* state, float* history, int64_t slot, int64_t size, int64_t n, int64_t c0, int64_t c1) {
    const float* from = state + c0 * n;
    float* to = history + (slot * size + c0) * n;
    int64_t i = 0, count = (c1 - c0) * n;
#if defined(__SSE2__) || defined(_M_X64)
    if (reinterpret_cast<uintptr_t>(to) % 64 == 0)
        for (; i + 16 <= count; i += 16)
            for (int part = 0; part < 16; part += 4) _mm_stream_ps(to + i + part, _mm_loadu_ps(from + i + part));
#endif
    if (i < count) std::memcpy(to + i, from + i, static_cast<size_t>(count - i) * sizeof(float));  // null where a state is empty
}

// Makes what keep() has written visible to other threads.
void kept() {
#if defined(__SSE2__) || defined(_M_X64)
    _mm_sfence();
#endif
}

}  // namespace

void mamba_step(Team* team, const Run& run, const MambaStep& s, int64_t index, Scratch& scratch) {
    const InnerKernels& k = *run.k;
    const int64_t m = run.m, d_inner = s.out.cols;
    const int tokens = static_cast<int>(m);
    const MambaShape shape{d_inner, s.d_state, s.d_conv};
    const ActBuffer input = step_input(team, run, s.input, nullptr, m, s.in.cols, rounding_for({&s.in}), scratch);
    const ActBuffer u = take_act(scratch, m, d_inner, rounding_for({&s.x}));
    float* z = scratch.take<float>(m * d_inner);
    float* projected = scratch.take<float>(m * s.x.rows);
    const ActBuffer y = take_act(scratch, m, d_inner, rounding_for({&s.out}));
    float* products = scratch.take<float>(m * s.out.rows);
    const LowProduct low_in = take_low(scratch, s.in, m), low_x = take_low(scratch, s.x, m);
    const LowProduct low_dt = take_low(scratch, s.dt, m), low_out = take_low(scratch, s.out, m);
    Selection selection{};
    for (int i = 0; i < (m == 1 ? run.threads : 1); ++i) {  // one token: every thread norms for itself
        const Selection one = take_selection(scratch, s, m);
        if (team && (m > 1 || i == team->id)) selection = one;
    }
    if (!team) return;

    low_shared(*team, k, {low_in}, input, m);
    // in_proj by channels, so that the convolution finds its inputs in the cache.
    const int64_t in_chunk = chunk_rows(2 * s.in.row_bytes, d_inner, team->size, 32);
    team->chunks(d_inner, in_chunk, [&](int64_t c0, int64_t c1) {
        k.gemv[s.in.type](rows_of(s.in), input.view(), nullptr, tokens, c0, c1, u.f, u.f_stride);
        k.gemv[s.in.type](rows_of(s.in, 0, d_inner), input.view(), nullptr, tokens, c0, c1, z, d_inner);
        add_low(k, low_in, 0, m, 0, c0, c1, u.f, u.f_stride);
        add_low(k, low_in, 0, m, d_inner, c0, c1, z, d_inner);
        float* row = u.f;
        for (int64_t j = 0; j < run.n_spans; ++j) {
            const Span& span = run.spans[j];
            const StepState& state = run.states[j][index];
            for (int64_t t = 0; t < span.tokens; ++t, row += u.f_stride) {
                if (span.slot >= 0) keep(state.conv, state.conv_history, span.slot + t, d_inner, s.d_conv - 1, c0, c1);
                k.conv_step(shape, row, s.conv_weight, s.conv_bias, state.conv, c0, c1, row);
            }
        }
    });
    kept();
    if (wants_int8(s.x))
        quantize_shared(*team, k, u, m, d_inner);
    else
        team->barrier();

    low_shared(*team, k, {low_x}, u, m);
    team->chunks(s.x.rows, chunk_rows(s.x.row_bytes, s.x.rows, team->size, 2), [&](int64_t r0, int64_t r1) {
        k.gemv[s.x.type](rows_of(s.x), u.view(), nullptr, tokens, r0, r1, projected, s.x.rows);
        add_low(k, low_x, 0, m, 0, r0, r1, projected, s.x.rows);
    });
    team->barrier();

    if (m == 1) {
        norm_selection(run, s, projected, 0, selection);
    } else {
        for (int64_t t = team->id; t < m; t += team->size) norm_selection(run, s, projected, t, selection);
        team->barrier();
    }

    low_shared(*team, k, {low_dt}, selection.dt, m);
    // dt_proj by channels, followed by the state update of each chunk. y holds dt, then the gated output.
    const int64_t state_bytes = 3 * s.d_state * static_cast<int64_t>(sizeof(float));
    const int64_t dt_chunk = chunk_rows(s.dt.row_bytes + state_bytes, d_inner, team->size, 32);
    team->chunks(d_inner, dt_chunk, [&](int64_t c0, int64_t c1) {
        k.gemv[s.dt.type](rows_of(s.dt), selection.dt.view(), nullptr, tokens, c0, c1, y.f, y.f_stride);
        add_low(k, low_dt, 0, m, 0, c0, c1, y.f, y.f_stride);
        int64_t t = 0;
        for (int64_t j = 0; j < run.n_spans; ++j) {
            const Span& span = run.spans[j];
            const StepState& state = run.states[j][index];
            for (int64_t i = 0; i < span.tokens; ++i, ++t) {
                if (span.slot >= 0) keep(state.ssm, state.ssm_history, span.slot + i, d_inner, s.d_state, c0, c1);
                float* row = y.f + t * y.f_stride;
                k.ssm_step(shape, u.f + t * u.f_stride, row, s.dt_bias, s.A, selection.b + t * s.d_state,
                           selection.c + t * s.d_state, s.D, z + t * d_inner, state.ssm, c0, c1, row);
            }
        }
    });
    kept();
    if (wants_int8(s.out))
        quantize_shared(*team, k, y, m, d_inner);
    else
        team->barrier();
    step_output(*team, run, low_out, y, products);
}

}  // namespace jamba
