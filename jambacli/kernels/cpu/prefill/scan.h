// The convolution and the scan of a Mamba layer over many tokens: arguments and the table each instruction set fills.
#pragma once

#include <cstdint>

#include "base/abi.h"

namespace jamba {

// y = silu(depthwise causal convolution of x + bias); rows are tokens, strides in floats between them. state [d_inner,
// d_conv - 1] holds the inputs before the first token, oldest first, and afterwards those before the next.
struct ConvArgs {
    const float* x;
    int64_t x_stride;
    const float *weight, *bias;  // [d_inner, d_conv], [d_inner]
    float* state;
    float* y;
    int64_t y_stride;
    int64_t tokens, d_conv;
};

// dt = softplus(dt + dt_bias);  h = exp(dt A) h + dt x B;  y = (C . h + D x) silu(z), with h the state [d_inner, d_state].
struct ScanArgs {
    const float *x, *dt, *z, *B, *C;
    int64_t x_stride, dt_stride, z_stride, B_stride, C_stride;
    const float *dt_bias, *A, *D;
    float* state;
    float* y;
    int64_t y_stride;
    int64_t tokens, d_state;
};

// Each does channels c0..c1; `scratch` has conv_scratch() or scan_scratch() floats, aligned to 64 bytes.
struct ScanOps {
    int64_t lanes;  // channels that go together: shares are cut at multiples of it
    void (*conv)(const ConvArgs& a, int64_t c0, int64_t c1, float* scratch);
    void (*scan)(const ScanArgs& a, int64_t c0, int64_t c1, float* scratch);
};

inline int64_t conv_scratch(const ConvArgs& a, int64_t channels) { return (2 * a.d_conv) * (channels + 16); }
inline int64_t scan_scratch(const ScanArgs& a, int64_t channels) { return 2 * a.d_state * (channels + 16); }

#define LEVEL(level)                 \
    namespace level {                \
    extern const ScanOps scan_ops;   \
    }
SIMD_LEVELS(LEVEL)
#undef LEVEL

}  // namespace jamba
