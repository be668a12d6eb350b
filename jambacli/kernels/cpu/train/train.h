// The kernels of training: forward passes that keep what their backward passes need. Arguments and the table each instruction
// set fills.
//
// Rows are tokens, [batch, tokens, channels], strides in values between tokens; activations are f32 or bf16 alike (`Wide`
// and `Narrow` in train_kernels.cpp), parameters and sums f32. Channels come in whole vectors: d_inner is a multiple of 16.
// d_state is 16.
#pragma once

#include <cstdint>

#include "base/abi.h"

namespace jamba {

constexpr int64_t kTrainStates = 16;
constexpr int64_t kTrainChunk = 16;  // tokens between two states that the forward scan keeps

// h = exp(dt A) h + dt x B, y = (C . h + D x) silu(z) with dt = softplus(dt + dt_bias). A and dA lie as
// [d_inner / lanes][d_state][lanes]; `states` [batch][chunks][d_inner / lanes][d_state][lanes] is written by the forward pass.
// The backward pass takes dy; dA, dD and dbias are one a batch row, B and C [batch, tokens, d_state] without gaps.
struct TrainScan {
    const void *x, *dt, *z;
    int64_t x_stride, dt_stride, z_stride;
    const float *B, *C, *dt_bias, *A, *D;
    float* states;
    void* y;
    const void* dy;
    void *dx, *ddt, *dz;
    float *dB, *dC, *dA, *dD, *dbias;
    int64_t tokens, d_inner;
};

// y = silu(causal depthwise convolution of x + bias); weight and dweight as [4][d_inner], dweight and dbias one a batch row.
struct TrainConv {
    const void* x;
    int64_t x_stride;
    const float *weight, *bias;
    void* y;
    const void* dy;
    void* dx;
    float *dweight, *dbias;
    int64_t tokens, d_inner;
};

// y = x / rms(x) * weight a row; dweight is summed over the rows of one call.
struct TrainNorm {
    const void* x;
    int64_t x_stride;
    const float* weight;
    float eps;
    void* y;
    const void* dy;
    void* dx;
    float* dweight;
    int64_t n;
};

// y = silu(gate) up route: gate_up [rows][2][n], route [rows, experts] scales each n / experts values.
struct TrainGate {
    const void* gate_up;
    const float* route;
    void* y;
    const void* dy;
    void* dgate_up;
    float* droute;
    int64_t n, experts;
};

// One instruction set's functions for one type of activation.
struct TrainOps {
    int64_t lanes;
    void (*scan)(const TrainScan& a, int64_t b);
    void (*scan_backward)(const TrainScan& a, int64_t b, float* scratch);
    void (*conv)(const TrainConv& a, int64_t b);
    void (*conv_backward)(const TrainConv& a, int64_t b);
    void (*norm)(const TrainNorm& a, int64_t r0, int64_t r1);
    void (*norm_backward)(const TrainNorm& a, int64_t r0, int64_t r1);
    void (*gate)(const TrainGate& a, int64_t r0, int64_t r1);
    void (*gate_backward)(const TrainGate& a, int64_t r0, int64_t r1);
};

inline int64_t train_scan_scratch(int64_t d_inner) {
    return (4 * kTrainChunk + 2) * kTrainStates * 16 + 2 * d_inner * kTrainStates + 8 * kTrainChunk * 16;
}

// Of one level: [0] for f32 activations, [1] for bf16.
struct TrainTables {
    TrainOps activations[2];
};

#define LEVEL(level)                       \
    namespace level {                      \
    extern const TrainTables train_tables; \
    }
SIMD_LEVELS(LEVEL)
#undef LEVEL

}  // namespace jamba
