// Attention of many queries over the cache: what the driver and each instruction set agree on.
//
// Scores are computed transposed, keys by queries, in the tiles of gemm.h: keys are the weights, queries the inputs. So
// queries lie across a vector, the softmax over keys needs no sum across lanes, its result is already the packed input of
// the product with the values, and a query's running maximum and sum are one lane each.
#pragma once

#include "prefill/gemm.h"

namespace jamba {

struct Softmax {
    float* scores;        // [key_groups][m_groups] tiles of 16 keys x 16 queries; overwritten
    int64_t key_groups;   // even
    int64_t m_groups;
    int64_t first_key;    // of the block
    int64_t n_keys;       // of the block that exist
    const float* last;    // [m]: the last key each query sees
    bool masked;          // whether any query of the group sees less than all the block's keys
    float scale;          // of scores, times log2(e)
    float *best, *total;  // [m]: the running maximum of scores (unscaled) and the sum of weights
    void* weights;        // out: packed inputs, groups of m `weights_stride` elements apart
    int64_t weights_stride;
    float* out;           // [value_groups][m_groups] tiles, scaled down where the maximum grew
    int64_t value_groups;
};

struct AttendOps {
    const PanelOps* panels;

    // 32 keys of n floats each (`count` exist, the others are zeros) to two groups of weights, `stride` elements apart.
    void (*keys)(const float* rows, int64_t count, int64_t n, void* out, int64_t stride);
    // 32 values of n floats each to one chunk of k in each of round_up(n, 16) / 16 groups, `stride` elements apart.
    void (*values)(const float* rows, int64_t count, int64_t n, void* out, int64_t stride);
    void (*softmax)(const Softmax& s);
    // Divides each query's column by its total.
    void (*finish)(float* out, int64_t value_groups, int64_t m_groups, const float* total);
};

#define LEVEL(level)                       \
    namespace level {                      \
    extern const AttendOps f32_attend_ops; \
    }
SIMD_LEVELS(LEVEL)
#undef LEVEL

namespace bf16 {
extern const AttendOps attend_ops;
}
namespace amx {
extern const AttendOps attend_ops;
}

}  // namespace jamba
