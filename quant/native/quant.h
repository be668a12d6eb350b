// What the library's entry points and its codecs agree on.
//
// A codec turns whole rows of finite floats into a format's blocks and back. It gets panels (a few rows at a time,
// contiguous, float32, checked to be finite), on one thread, and may use up to 64 KiB of stack. Each codec is compiled once per
// instruction set (libraries.toml), and registry.cpp picks the best one that this processor runs. All of them give the same
// bytes: those of ggml built for plain x86-64.
//
// To add a format: block_formats.h, then a quantize and a dequantize function over the operations of lanes.h, in one of the
// families (kq.cpp, iq4.cpp, legacy.cpp), then a line in that family's table.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/native/block_formats.h"
#include "quant/native/isa.h"

namespace quant {

using namespace native;

// The index of a block's field in 32-bit words.
#define WORD(block, field) (offsetof(block, field) / 4)

// x: [rows, n] contiguous, finite. imatrix: [n] finite and not negative, or null. dst: [rows, row bytes] contiguous, any alignment.
using QuantizeRows = void (*)(const float *x, int64_t rows, int64_t n, const float *imatrix, uint8_t *dst);
// src: [rows, row bytes] contiguous, any alignment. dst: [rows, n] contiguous.
using DequantizeRows = void (*)(const uint8_t *src, int64_t rows, int64_t n, float *dst);

// One format at one level. A table of codecs ends at ggml_type -1.
struct Codec {
    int ggml_type;
    QuantizeRows quantize;
    DequantizeRows dequantize;
};

// A descent of the rows of one column block: see refine_solve.h and quant_solve_block.
struct SolveTask {
    int columns, rounds;
    const float *x, *S, *R, *gradient;  // R, gradient and values may be null
    uint8_t *blocks;
    float *values;
    int64_t x_stride, gradient_stride, blocks_stride, values_stride;  // between rows: elements, or bytes of blocks
};

// The refinements of one format at one level. A table of them ends at ggml_type -1.
struct Refiner {
    int ggml_type, sub_block, columns;  // columns: of one block
    // x: [rows, n]; w: [n]; blocks: [rows, row bytes], improved in place.
    void (*search)(const float *x, int64_t rows, int64_t n, const float *w, uint8_t *blocks);
    // sums: [sub-blocks, columns], the sums of S over the rows of each sub-block.
    void (*solve)(const SolveTask &task, const float *sums, int64_t first_row, int64_t rows);
};

// What rows.cpp itself does with panels, at one level.
struct PanelOps {
    void (*widen_f16)(const uint16_t *src, int64_t count, float *dst);
    void (*widen_bf16)(const uint16_t *src, int64_t count, float *dst);
    void (*narrow_f16)(const float *src, int64_t count, uint16_t *dst);
    void (*narrow_bf16)(const float *src, int64_t count, uint16_t *dst);
    bool (*all_finite)(const float *src, int64_t count);
    // ExpertsInt8: x [rows, n] finite -> levels [rows, n] and scale [rows].
    void (*rowwise_int8)(const float *x, int64_t rows, int64_t n, int8_t *levels, float *scale);
};

// The levels at which codecs are compiled.
#if defined(NATIVE_X86)
#define QUANT_LEVELS(LEVEL) LEVEL(scalar) LEVEL(avx2) LEVEL(avx512)
#else
#define QUANT_LEVELS(LEVEL) LEVEL(scalar)
#endif

#define LEVEL(level)                                             \
    namespace level {                                            \
    extern const Codec legacy_codecs[], iq4_codecs[], kq_codecs[]; \
    extern const PanelOps panel_ops;                             \
    extern const Refiner refiners[];                             \
    }
QUANT_LEVELS(LEVEL)
#undef LEVEL

// The implementations of the level in use; null for a type without a codec.
QuantizeRows find_quantizer(int ggml_type);
DequantizeRows find_dequantizer(int ggml_type);
const PanelOps &panel_ops();
// Null for a type without one.
const Refiner *find_refiner(int ggml_type);

}  // namespace quant
