// What every file of these libraries shares: the exported functions' convention (c_interface.h), the instruction sets (isa.h)
// and the weights that functions take.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/native/c_interface.h"
#include "quant/native/isa.h"

namespace jamba {

using namespace native;

// The levels at which sources written over simd.h are compiled: each has its own vector width.
#if defined(NATIVE_X86)
#define SIMD_LEVELS(LEVEL) LEVEL(scalar) LEVEL(avx2) LEVEL(avx512)
#elif defined(NATIVE_ARM)
#define SIMD_LEVELS(LEVEL) LEVEL(scalar) LEVEL(neon)
#else
#define SIMD_LEVELS(LEVEL) LEVEL(scalar)
#endif

// What a LoRA adapter adds to the products of a weight w: w x + scale * b (a x). For a stack, one pair for each matrix.
struct LowRank {
    const float* a;    // [rank, cols]
    const float* b;    // [rank, b_stride]: the transpose of b, zeros behind the last row of the weight
    int64_t rank;
    int64_t b_stride;  // a multiple of 32, at least the rows of the weight
    float scale;
    int32_t reserved;
};

// One weight matrix as it lies in its file, or a stack of them (experts), rows one after another. `type` is a GGML type id;
// kI8 needs `scale`, one factor per row. structs.py mirrors it.
struct Matrix {
    const uint8_t* data;
    const float* scale;
    int64_t rows;  // of one matrix of the stack
    int64_t cols;
    int64_t row_bytes;
    int32_t type;
    int32_t n_low;
    const LowRank* low;  // n_low of them, added in this order
};

inline int64_t low_rank_of(const Matrix& w) {
    int64_t rank = 0;
    for (int32_t i = 0; i < w.n_low; ++i) rank += w.low[i].rank;
    return rank;
}

}  // namespace jamba
