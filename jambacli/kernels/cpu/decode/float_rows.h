// Products of float rows (F32, F16, BF16) with float activations, at the level's vector width. Stored values
// are widened exactly and nothing is rounded to less than float32.
#pragma once

#include "decode/inner_kernels.h"
#include "base/simd_convert.h"

namespace jamba {
namespace {

struct RowF32 {
    using Value = float;
    SIMD_FN vf vector(const Value* p) { return load(p); }
    SIMD_FN float one(Value x) { return x; }
};
struct RowF16 {
    using Value = uint16_t;
    SIMD_FN vf vector(const Value* p) { return load_f16(p); }
    SIMD_FN float one(Value x) { return half_to_float(x); }
};
struct RowBF16 {
    using Value = uint16_t;
    SIMD_FN vf vector(const Value* p) { return load_bf16(p); }
    SIMD_FN float one(Value x) { return bf16_to_float(x); }
};

constexpr int kFloatTokens = kLanes == 16 ? 4 : 2;  // with four accumulators each, as many as the registers hold

template <class Row, int M>
void float_rows(const Rows& w, const float* const* x, int64_t r0, int64_t r1, float* const* y) {
    using Value = typename Row::Value;
    for (int64_t r = r0; r < r1; ++r) {
        const Value* row = reinterpret_cast<const Value*>(w.data + r * w.row_bytes);
        vf acc[M][4] = {};
        int64_t i = 0;
        for (; i + 4 * kLanes <= w.n; i += 4 * kLanes) {
            __builtin_prefetch(reinterpret_cast<const char*>(row + i) + 2048);
            if constexpr (4 * kLanes * sizeof(Value) > 64)
                for (size_t line = 64; line < 4 * kLanes * sizeof(Value); line += 64)
                    __builtin_prefetch(reinterpret_cast<const char*>(row + i) + 2048 + line);
            for (int k = 0; k < 4; ++k) {
                const vf v = Row::vector(row + i + k * kLanes);
                for (int t = 0; t < M; ++t) acc[t][k] = fma(v, load(x[t] + i + k * kLanes), acc[t][k]);
            }
        }
        for (int t = 0; t < M; ++t) {
            float rest = 0.0f;
            for (int64_t j = i; j < w.n; ++j) rest += Row::one(row[j]) * x[t][j];
            y[t][r] = hsum((acc[t][0] + acc[t][1]) + (acc[t][2] + acc[t][3])) + rest;
        }
    }
}

template <class Row>
void float_gemv(const Rows& w, const Act& act, const int32_t* tokens, int m, int64_t r0, int64_t r1, float* y,
                int64_t ldy) {
    const auto run = [&](auto count, int first, int64_t from, int64_t to) {
        constexpr int M = decltype(count)::value;
        const float* x[M];
        float* out[M];
        for (int i = 0; i < M; ++i) {
            x[i] = act.f + (tokens ? tokens[first + i] : first + i) * act.f_stride;
            out[i] = y + (first + i) * ldy;
        }
        float_rows<Row, M>(w, x, from, to, out);
    };
    // A panel of rows is used for all tokens while it is in the nearest cache.
    const int64_t panel = m > kFloatTokens ? (w.row_bytes < 16384 ? 16384 / w.row_bytes : 1) : r1 - r0;
    for (int64_t from = r0; from < r1; from += panel) {
        const int64_t to = from + panel < r1 ? from + panel : r1;
        int t = 0;
        for (; t + kFloatTokens <= m; t += kFloatTokens) run(Constant<kFloatTokens>{}, t, from, to);
        for (; t < m; ++t) run(Constant<1>{}, t, from, to);
    }
}

}  // namespace
}  // namespace jamba
