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

// One weight matrix as it lies in its file, or a stack of them (experts), rows one after another. `type` is a GGML type id;
// kI8 needs `scale`, one factor per row. structs.py mirrors it.
struct Matrix {
    const uint8_t* data;
    const float* scale;
    int64_t rows;  // of one matrix of the stack
    int64_t cols;
    int64_t row_bytes;
    int32_t type;
    int32_t reserved;
};

}  // namespace jamba
