// Matrix products of many rows with block-quantized weights: what the driver, the dequantizers and the microkernels of each
// instruction set agree on.
//
// Weights are dequantized a panel at a time (a few hundred KB, which stays in the second-level cache) into groups of 16 rows,
// inputs are packed once into groups of 16 rows, both in chunks of 32 along k:
//   weights  [n / 16][k / 32][16 n][32 k]                  as rows lie in the file: the left operand of AMX, and what the
//                                                          vector kernels broadcast from
//   inputs   bf16: [m / 16][k / 32][16 pairs][16 m][2 k]   the right operand of AMX and vdpbf16ps
//            f32:  [m / 16][k / 32][32 k][16 m]
//   products [n / 16][m / 16][16 n][16 m] f32              transposed when they are stored
// so one chunk is 512 elements on either side. Where products of int8 are faster than these, both sides are bytes with scales
// (gemm_int8.cpp, gemm_int8_neon.cpp), and products are [n / 16][m / 16][16 m][16 n].
#pragma once

#include <cstdint>

#include "base/formats.h"

namespace jamba {

constexpr int64_t kGroup = 16;  // rows of a group of weights or of inputs
constexpr int64_t kChunk = 32;  // values of k in a chunk
constexpr int64_t kChunkSize = kGroup * kChunk;
constexpr int64_t kTile = kGroup * kGroup;

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Dequantizes values first..first+n of a row (both multiples of the block, except that n may end with the row) and writes
// each chunk of 32 at out + step elements after the one before; a last partial chunk is filled with zeros. `scale` is
// the row's factor of kI8 and unused elsewhere.
using DequantizeRow = void (*)(const uint8_t* row, int64_t first, int64_t n, float scale, void* out, int64_t step);

// Where products go. Rows at and above m_valid, columns at and above n_valid are not written.
struct Output {
    float* out;             // element (m, n) at out[row(m) * stride + n]
    int64_t stride;
    const int64_t* rows;    // row(m), or null: m
    const float* weights;   // null: store the product; else add weights[m] times it
};

// What int8 panels have instead of a dequantizer and a product that is the same for all types.
struct Int8Panels {
    int64_t w_chunk, x_chunk;  // bytes of a chunk of 16 rows of weights, of inputs
    bool (*takes)(int type);   // whether weights of this type are multiplied so

    // Makes a panel's group of values first..first+n of 16 rows, of which `rows` exist. `scale`: the rows' factors of kI8.
    void (*fill)(int type, const uint8_t* data, int64_t row_bytes, const float* scale, int64_t rows, int64_t first, int64_t n,
                 void* out);

    // c (+)= w x over `chunks` chunks, for all groups of weights and m rows of inputs; strides in bytes between groups.
    void (*multiply)(int type, const void* w, int64_t n_groups, int64_t w_stride, const void* x, int64_t m, int64_t x_stride,
                     int64_t chunks, float* c, bool accumulate);

    // Whether weights of this type take ranged inputs, which are rounded less (PanelOps::ranged). Null: none does.
    bool (*ranged)(int type) = nullptr;
};

// One instruction set's part of the work.
struct PanelOps {
    int64_t element_bytes;  // of weights' and inputs' panels: 1 (int8), 2 (bf16) or 4 (f32)
    int64_t k_block;        // values of k dequantized at a time, a multiple of 256
    DequantizeRow (*dequantizer)(int type);  // null for int8

    // Packs 16 rows of k values; rows[i] null gives zeros. bf16 panels round to nearest even, int8 ones to the nearest
    // multiple of a 127th of the largest of 32 values, or of a 254th of their range.
    void (*pack)(const float* const* rows, int64_t k, void* out);

    // Called by each thread before its first and after its last multiply().
    void (*enter)();
    void (*leave)();

    // c (+)= w x over `chunks` chunks, for all groups; strides in elements between groups. Null for int8.
    void (*multiply)(const void* w, int64_t n_groups, int64_t w_stride, const void* x, int64_t m_groups, int64_t x_stride,
                     int64_t chunks, float* c, bool accumulate);

    // Writes products c [n_groups][m_groups] to columns 0..n_valid and rows 0..m_valid of the output.
    void (*store)(const float* c, int64_t n_groups, int64_t m_groups, int64_t n_valid, int64_t m_valid, const Output& to);

    // silu(g) * u into packed inputs of the next product, where n is k: groups of m `stride` elements (int8: bytes) apart,
    // chunks from `out`'s on; n_groups is even.
    void (*gate)(const float* g, const float* u, int64_t n_groups, int64_t m_groups, void* out, int64_t stride);

    const Int8Panels* int8 = nullptr;
    bool ranged = false;  // int8: inputs reach from the smallest to the largest value, which not all types' products take

    int64_t w_chunk() const { return int8 ? int8->w_chunk : kChunkSize * element_bytes; }
    int64_t x_chunk() const { return int8 ? int8->x_chunk : kChunkSize * element_bytes; }
};

// The best set of operations for weights of this type: bf16 panels where the processor multiplies bf16 fast and the
// format is no finer than bf16 itself; int8 panels at other levels that have products of bytes for it; else f32.
// `precise`: never int8.
const PanelOps& panel_ops(int type, bool precise);

// The best set without int8.
const PanelOps& float_panel_ops(int type);

#define LEVEL(level)                     \
    namespace level {                    \
    extern const PanelOps f32_panel_ops; \
    }
SIMD_LEVELS(LEVEL)
#undef LEVEL

// Levels with int8 panels, in the order of the registry. The products of both sets are the same functions: those of a type that
// does not take ranged inputs take int8_panel_ops' only, the others both.
#define INT8_LEVELS(LEVEL) LEVEL(avx2) LEVEL(avxvnni) LEVEL(avx512) LEVEL(vnni)
#define LEVEL(level)                                        \
    namespace level {                                       \
    extern const PanelOps int8_panel_ops, int8_ranged_ops;  \
    }
INT8_LEVELS(LEVEL)
#undef LEVEL

namespace neon {
extern const PanelOps int8_panel_ops;
}
namespace i8mm {
extern const PanelOps int8_panel_ops;
}

namespace bf16 {
extern const PanelOps panel_ops;
DequantizeRow bf16_dequantizer(int type);
}  // namespace bf16

namespace amx {
extern const PanelOps panel_ops;
// Asks the operating system, once, for AMX's registers in every thread of the process; false where it refuses.
bool usable();
}  // namespace amx

}  // namespace jamba
