// The selective scan at the level's vector width: channels lie across a vector, so a token's update needs no sum across lanes
// and a state is one register.
//
// The update is, operation by operation, that of a single decode step (decode/elementwise.cpp), so a state does not depend on
// how its tokens were cut into calls.
#include "prefill/conv.h"

namespace jamba {
namespace {

// Tokens a group of channels runs through before the next group: the states are loaded and stored once for all of them,
// and the rows they read are still in the first-level cache when the neighbouring channels come.
constexpr int64_t kTokensAtOnce = 16;

// kStates: d_state where it is a constant (states stay in registers), else 0.
template <int kStates>
void scan_group(const ScanArgs& a, int64_t c, int64_t width, int64_t t0, int64_t t1, const float* A, float* state) {
    constexpr int kHeld = kStates ? kStates : 1;
    const int64_t n = kStates ? kStates : a.d_state;
    const vf bias = load_part(a.dt_bias + c, width), D = load_part(a.D + c, width);
    vf held[kHeld];
    if (kStates) {
#pragma GCC unroll 16
        for (int i = 0; i < kHeld; ++i) held[i] = load(state + i * kLanes);
    }
    for (int64_t t = t0; t < t1; ++t) {
        const float *x = a.x + t * a.x_stride + c, *dt = a.dt + t * a.dt_stride + c, *z = a.z + t * a.z_stride + c;
        float* y = a.y + t * a.y_stride + c;
        __builtin_prefetch(x + kLanes);
        __builtin_prefetch(dt + kLanes);
        __builtin_prefetch(z + kLanes);
        __builtin_prefetch(y + kLanes, 1);
        const float *B = a.B + t * a.B_stride, *C = a.C + t * a.C_stride;
        const vf step = softplusv(load_part(dt, width) + bias), input = load_part(x, width);
        const vf scaled = step * kLog2e, add = step * input;
        vf sum{};
        if (kStates) {
#pragma GCC unroll 16
            for (int i = 0; i < kHeld; ++i) {
                held[i] = fma(exp2v(scaled * load(A + i * kLanes)), held[i], add * set1(B[i]));
                sum = fma(held[i], set1(C[i]), sum);
            }
        } else {
            for (int64_t i = 0; i < n; ++i) {
                const vf h = fma(exp2v(scaled * load(A + i * kLanes)), load(state + i * kLanes), add * set1(B[i]));
                store(state + i * kLanes, h);
                sum = fma(h, set1(C[i]), sum);
            }
        }
        store_part(y, fma(D, input, sum) * siluv(load_part(z, width)), width);
    }
    if (kStates) {
#pragma GCC unroll 16
        for (int i = 0; i < kHeld; ++i) store(state + i * kLanes, held[i]);
    }
}

// [channels, n] to or from vectors [channels / kLanes][n][kLanes]; missing channels read as zero.
void to_lanes(const float* rows, int64_t channels, int64_t n, float* out) {
    for (int64_t c = 0; c < channels; c += kLanes, out += n * kLanes)
        for (int64_t i = 0; i < n; ++i)
            for (int lane = 0; lane < kLanes; ++lane) out[i * kLanes + lane] = c + lane < channels ? rows[(c + lane) * n + i] : 0.0f;
}

void from_lanes(const float* lanes, int64_t channels, int64_t n, float* rows) {
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = 0; i < n; ++i) rows[c * n + i] = lanes[(c / kLanes * n + i) * kLanes + c % kLanes];
}

void scan(const ScanArgs& a, int64_t c0, int64_t c1, float* scratch) {
    const int64_t n = a.d_state, channels = c1 - c0, padded = (channels + kLanes - 1) / kLanes * kLanes;
    float *A = scratch, *state = scratch + padded * n;
    to_lanes(a.A + c0 * n, channels, n, A);
    to_lanes(a.state + c0 * n, channels, n, state);
    for (int64_t t = 0; t < a.tokens; t += kTokensAtOnce) {
        const int64_t end = t + kTokensAtOnce < a.tokens ? t + kTokensAtOnce : a.tokens;
        for (int64_t c = 0; c < channels; c += kLanes) {
            if (n == 16)
                scan_group<16>(a, c0 + c, channels - c, t, end, A + c * n, state + c * n);
            else
                scan_group<0>(a, c0 + c, channels - c, t, end, A + c * n, state + c * n);
        }
    }
    from_lanes(state, channels, n, a.state + c0 * n);
}

}  // namespace

namespace JAMBA_VARIANT {

const ScanOps scan_ops{kLanes, conv, scan};

}  // namespace JAMBA_VARIANT
}  // namespace jamba
