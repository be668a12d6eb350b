// The table of inner kernels that each instruction set fills, and the views they work on. A kernel does one thread's share.
// Everything is plain pointers; floats are float32.
#pragma once

#include "base/formats.h"

namespace jamba {

// Rows of one weight matrix: `n` values per row in `row_bytes` bytes; `scale` has one factor per row for int8 rows, else null.
struct Rows {
    const uint8_t* data;
    const uint8_t* end;  // of the matrix: nothing from here on may be read
    int64_t row_bytes;
    int64_t n;
    const float* scale;
};

// Activations of some tokens, as floats and as integers with one factor per 32 values. The integer is q, or in the precise
// mode 128 * q + fine: two int8, multiplied one after the other, which costs a second product for every weight. With it the
// rounding of activations no longer shows beside that of the weights. Arrays that no weight needs may be null; fine is null
// unless the mode is precise. The quantized part is padded with zeros to a multiple of 256 values. Sums are factor
// times the sum of the integers over a group: with them a format's offsets and minimums cost one multiplication a
// group. The same numbers are stored in the layout that each vector width reads.
struct Act {
    const float* f;  // [tokens, f_stride]
    int64_t f_stride;
    const int8_t* q;     // [tokens, padded], -127 to 127
    const int8_t* fine;  // [tokens, padded], -64 to 64
    const float* d;      // [tokens, padded / 32]: the factors
    const float* sum32;  // [tokens, padded / 32]
    const float* lost32; // [tokens, padded / 32]: half the sum of the floats less sum32; products take it times kMiddle's value
    const float* d16;    // [tokens, padded / 16]: each factor twice
    const float* sum16;  // [tokens, padded / 16]
    const float* pairs;  // [tokens, padded / 256, 16]: factors 0-3, sums 0-3, factors 4-7, sums 4-7 of groups of 32
    // Unless precise, and only for formats of 256 values (else null): the factors as integers (0 to 128) times a step of 256
    // values, and the sums of q.
    const float* step;             // [tokens, padded / 256]
    const int16_t* multiple16;     // [tokens, padded / 16]: the integer of each group of 32 twice
    const int16_t* multiple128;    // [tokens, padded / 32]: 128 times the integer
    const int16_t* integer_sum16;  // [tokens, padded / 256, 16]: of the first halves of the eight groups, then of the second
    int64_t padded;
    int64_t stamp;  // of the calling thread: the same only where nothing was written to the arrays since; 0: not known

    // The same without the first `count` tokens.
    Act from(int64_t count) const {
        Act a = *this;
        const auto move = [&](auto& p, int64_t stride) {
            if (p) p += count * stride;
        };
        move(a.f, f_stride), move(a.q, padded), move(a.fine, padded);
        move(a.d, padded / 32), move(a.sum32, padded / 32), move(a.lost32, padded / 32);
        move(a.d16, padded / 16), move(a.sum16, padded / 16), move(a.pairs, padded / 16);
        move(a.step, padded / 256), move(a.multiple16, padded / 16), move(a.multiple128, padded / 32);
        move(a.integer_sum16, padded / 16);
        return a;
    }
};

// Where quantized activations are written: the arrays of Act of one token.
struct Quantized {
    int8_t *q, *fine;  // fine null: not precise
    // step and what follows it null: each group's factor is its own
    float *d, *sum32, *lost32, *d16, *sum16, *pairs, *step;
    int16_t *multiple16, *multiple128, *integer_sum16;
};

constexpr int64_t kPad = 256;
static inline int64_t pad_values(int64_t n) { return (n + kPad - 1) / kPad * kPad; }

// y[i * ldy + r] = row r . activations of token (tokens ? tokens[i] : i), for i < m and r0 <= r < r1. Each value is
// computed by the same operations whatever m, r0 and r1 are.
using GemvFn = void (*)(const Rows& w, const Act& a, const int32_t* tokens, int m, int64_t r0, int64_t r1, float* y,
                        int64_t ldy);

template <int N>
struct Constant {
    static constexpr int value = N;
};

struct MambaShape {
    int64_t d_inner, d_state, d_conv;
};

// Keys that attention handles at a time.
constexpr int64_t kBlockKeys = 32;

// Up to kBlockKeys stored keys and values of one KV head, rows `stride` bytes apart.
struct KeyBlock {
    const uint8_t *k, *v;
    int64_t stride;
    int64_t count;
    int64_t visible;  // keys of the block that the first token sees; each later token sees one more
    int32_t type;     // kF32, kF16, kBF16 or kQ8_0
};

// The query rows that share a KV head (`group` of each token) and the softmax over the keys so far. Rows are `depth` floats
// apart: head_dim rounded up to 16, the rest zero.
struct QueryRows {
    const float* q;  // scaled by log2(e) / sqrt(head_dim)
    int64_t tokens, group, head_dim, depth;
    float *best, *sum;  // the largest score, and the sum of 2^(score - best)
    float* values;      // sums of 2^(score - best) times values
    const uint8_t* packed;  // the rows as pack_query() wrote them, or null
};

static inline int64_t attend_depth(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }
static inline int64_t attend_work(int64_t rows, int64_t depth) { return kBlockKeys * (3 * depth + rows); }

// A query as integers 128 * coarse + fine: int8 coarse[n], int8 fine[n], int32 bias[n / 32], then its factor.
static inline int64_t packed_query_bytes(int64_t n) { return (2 * n + n / 8 + 4 + 63) / 64 * 64; }

struct InnerKernels {
    GemvFn gemv[kTypes];  // null where the type has no kernel

    // Quantizes values [begin, end) of a row of floats into the row's arrays; both are multiples of 256.
    void (*quantize)(const float* row, int64_t begin, int64_t end, const Quantized& out);
    void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
    // out = silu(gate) * up; may be in place.
    void (*silu_mul)(const float* gate, const float* up, int64_t n, float* out);
    // x += y
    void (*add)(float* x, const float* y, int64_t n);
    // y += w * x
    void (*add_scaled)(float* y, const float* x, float w, int64_t n);
    // c [16, 16] += the sum over k < rank of p[k * p_stride + i] * q[k * q_stride + j], in the order of k.
    void (*add_outer)(float* c, const float* p, int64_t p_stride, const float* q, int64_t q_stride, int64_t rank);
    // One token through channels [c0, c1): x [d_inner] in, silu(conv + bias) out; state [d_inner, d_conv - 1] moves on.
    void (*conv_step)(const MambaShape& s, const float* x, const float* weight, const float* bias, float* state,
                      int64_t c0, int64_t c1, float* out);
    // One token through channels [c0, c1) of the state space: y = (C . h + D u) * silu(z), h moves on. dt is the
    // value before bias and softplus. y may be dt's own buffer.
    void (*ssm_step)(const MambaShape& s, const float* u, const float* dt, const float* dt_bias, const float* A,
                     const float* B, const float* C, const float* D, const float* z, float* state, int64_t c0,
                     int64_t c1, float* y);
    // exp(x - shift) in place; returns the sum.
    float (*exp_sum)(float* x, float shift, int64_t n);
    // `count` rows of n stored values of a KV type (is_kv_type()), `stride` bytes apart, to floats [count, n].
    void (*kv_load)(const uint8_t* from, int32_t type, int64_t stride, int64_t count, int64_t n, float* out);
    // One block of keys and values for all query rows of a KV head: moves on the rows' softmax. `work` has
    // attend_work() floats, aligned to 64 bytes.
    void (*attend)(const KeyBlock& block, const QueryRows& rows, float* work);
    // A query row of n values, a multiple of 32, in the form in which it meets keys in blocks. Null: attend() takes floats only.
    void (*pack_query)(const float* q, int64_t n, uint8_t* out);
};

// The kernels of the level in use.
const InnerKernels& inner_kernels();

// Each level fills what it has; the table starts from the level below.
#define LEVEL(level)                  \
    namespace level {                 \
    void fill_elementwise(InnerKernels& ops);  \
    void fill_dot(InnerKernels& ops);          \
    }
SIMD_LEVELS(LEVEL)
namespace i8mm {
void fill_dot(InnerKernels& ops);
}
namespace avxvnni {
void fill_dot(InnerKernels& ops);
}
namespace vnni {
void fill_attention(InnerKernels& ops);
void fill_dot(InnerKernels& ops);
}
#undef LEVEL

}  // namespace jamba
