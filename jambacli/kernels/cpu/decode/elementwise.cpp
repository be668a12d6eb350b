// The inner kernels of a decode step that are written over simd.h: element-wise operations, float products and attention.
#include "decode/attention_tiles.h"
#include "decode/float_rows.h"
#include "decode/inner_kernels.h"
#include "base/simd_convert.h"
#if defined(__AVX2__)
#include "decode/quantize_avx2.h"
#endif

namespace jamba {
namespace {

constexpr float kLeastValue = 1e-34f;  // less is rounded to zero: its reciprocal would be infinite

// Stores the integers of 32 values, x / factor, and the factor and sums in their layouts. Sums of integers are exact in any order.
template <bool kPrecise>
SIMD_FN void quantize_group(const float* x, float factor, float inverse, int64_t b, const Quantized& out) {
    float sums[2] = {0.0f, 0.0f}, all = 0.0f;
    for (int i = 0; i < 32; i += kLanes) {
        all += hsum(load(x + i));
        const vf exact = load(x + i) * set1(inverse);
        vf whole = store_i8(out.q + 32 * b + i, exact);
        if constexpr (kPrecise) whole = whole * 128.0f + store_i8(out.fine + 32 * b + i, (exact - whole) * 128.0f);
        sums[i / 16] += hsum(whole);
    }
    factor += 0.0f * all;  // a value that is no number makes it NaN, and so all products
    const int64_t at = b / 4 * 8 + b % 4;
    out.d[b] = out.d16[2 * b] = out.d16[2 * b + 1] = out.pairs[at] = factor;
    out.sum32[b] = out.pairs[at + 4] = factor * (sums[0] + sums[1]);
    out.lost32[b] = 0.5f * (all - out.sum32[b]);
    for (int h = 0; h < 2; ++h) {
        out.sum16[2 * b + h] = factor * sums[h];
        if (!kPrecise && out.step) out.integer_sum16[b / 8 * 16 + 8 * h + b % 8] = static_cast<int16_t>(sums[h]);
    }
}

SIMD_FN float largest_of_32(const float* x) {
    vf most{};
    for (int i = 0; i < 32; i += kLanes) most = vmax(most, vabs(load(x + i)));
    return hmax(most);
}

// Each group's factor is its own.
void quantize_precise(const float* row, int64_t begin, int64_t end, const Quantized& out) {
    for (int64_t b = begin / 32; b < end / 32; ++b) {
        const float top = largest_of_32(row + 32 * b);
        quantize_group<true>(row + 32 * b, top / (127.0f * 128.0f), top > kLeastValue ? 127.0f / top : 0.0f, b, out);
    }
}

// The same in int8, for formats that take such factors.
[[maybe_unused]] void quantize_own_factors(const float* row, int64_t begin, int64_t end, const Quantized& out) {
    for (int64_t b = begin / 32; b < end / 32; ++b) {
        const float top = largest_of_32(row + 32 * b);
        quantize_group<false>(row + 32 * b, top > kLeastValue ? top / 127.0f : 0.0f, top > kLeastValue ? 127.0f / top : 0.0f, b, out);
    }
}

// Each group's factor is the least multiple of its 256 values' step with which the integers fit 8 bits.
void quantize_int8(const float* row, int64_t begin, int64_t end, const Quantized& out) {
#if defined(__AVX2__)
    quantize_blocks(row, begin / 256, end / 256, kLeastValue, out);
#else
    if (!out.step) return quantize_own_factors(row, begin, end, out);
    constexpr float kMultiples = 127.0f;
    for (int64_t block = begin / 256; block < end / 256; ++block) {
        float tops[8], top = 0.0f;
        for (int g = 0; g < 8; ++g) {
            tops[g] = largest_of_32(row + 256 * block + 32 * g);
            top = tops[g] > top ? tops[g] : top;
        }
        const float step = top > kLeastValue ? top / (kMultiples * 127.0f) : 0.0f;
        const float by_top = top > kLeastValue ? kMultiples / top : 0.0f;
        out.step[block] = step;
        for (int g = 0; g < 8; ++g) {
            const int64_t b = 8 * block + g;
            const float exact = tops[g] * by_top;
            const int whole = exact > 0.0f && exact < 128.0f ? static_cast<int>(exact) : 0;
            const int multiple = whole + (static_cast<float>(whole) < exact);
            const float count = static_cast<float>(multiple);
            out.multiple16[2 * b] = out.multiple16[2 * b + 1] = static_cast<int16_t>(multiple);
            out.multiple128[b] = static_cast<int16_t>(128 * multiple);
            quantize_group<false>(row + 32 * b, step * count, multiple ? 127.0f * by_top / count : 0.0f, b, out);
            out.step[block] += 0.0f * out.d[b];
        }
    }
#endif
}

void quantize(const float* row, int64_t begin, int64_t end, const Quantized& out) {
    (out.fine ? quantize_precise : quantize_int8)(row, begin, end, out);
}

float sum_of_squares(const float* x, int64_t n) {
    vf s[4] = {};
    int64_t i = 0;
    for (; i + 4 * kLanes <= n; i += 4 * kLanes)
        for (int k = 0; k < 4; ++k) {
            const vf v = load(x + i + k * kLanes);
            s[k] = fma(v, v, s[k]);
        }
    float rest = 0.0f;
    for (; i < n; ++i) rest += x[i] * x[i];
    return hsum((s[0] + s[1]) + (s[2] + s[3])) + rest;
}

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
    const float factor = 1.0f / __builtin_sqrtf(sum_of_squares(x, n) / static_cast<float>(n) + eps);
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] * factor * weight[i];
}

void silu_mul(const float* gate, const float* up, int64_t n, float* out) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(out + i, siluv(load(gate + i)) * load(up + i));
    if (i < n) {
        const int rest = static_cast<int>(n - i);
        store_few(out + i, siluv(load_few(gate + i, rest)) * load_few(up + i, rest), rest);
    }
}

void add(float* x, const float* y, int64_t n) {
    for (int64_t i = 0; i < n; ++i) x[i] += y[i];
}

void add_scaled(float* y, const float* x, float w, int64_t n) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(y + i, fma(load(x + i), set1(w), load(y + i)));
    if (i < n) {  // fused as above: a value must not depend on where a thread's share ends
        const int rest = static_cast<int>(n - i);
        store_few(y + i, fma(load_few(x + i, rest), set1(w), load_few(y + i, rest)), rest);
    }
}

void add_outer(float* c, const float* p, int64_t p_stride, const float* q, int64_t q_stride, int64_t rank) {
    constexpr int kRows = 8;  // with one accumulator each, as many as hide the latency of a fused multiplication
    for (int j = 0; j < 16; j += kLanes)
        for (int i = 0; i < 16; i += kRows) {
            float* at = c + 16 * i + j;
            vf acc[kRows];
            for (int r = 0; r < kRows; ++r) acc[r] = load(at + 16 * r);
            for (int64_t k = 0; k < rank; ++k) {
                const vf v = load(q + k * q_stride + j);
                const float* by = p + k * p_stride + i;
                for (int r = 0; r < kRows; ++r) acc[r] = fma(set1(by[r]), v, acc[r]);
            }
            for (int r = 0; r < kRows; ++r) store(at + 16 * r, acc[r]);
        }
}

void conv_step(const MambaShape& s, const float* x, const float* weight, const float* bias, float* state, int64_t c0,
               int64_t c1, float* out) {
    const int64_t past = s.d_conv - 1;
    for (int64_t c = c0; c < c1; ++c) {
        float* history = state + c * past;
        const float* taps = weight + c * s.d_conv;
        float y = bias[c];
        for (int64_t k = 0; k < past; ++k) y += history[k] * taps[k];
        y += x[c] * taps[past];
        for (int64_t k = 0; k + 1 < past; ++k) history[k] = history[k + 1];
        if (past > 0) history[past - 1] = x[c];
        out[c] = y;
    }
    int64_t c = c0;
    for (; c + kLanes <= c1; c += kLanes) store(out + c, siluv(load(out + c)));
    if (c < c1) store_few(out + c, siluv(load_few(out + c, static_cast<int>(c1 - c))), static_cast<int>(c1 - c));
}

// Updates the state of one channel; returns C . h.
SIMD_FN float advance(float* h, const float* A, const float* B, const float* C, float dt, float dt_u, int64_t n) {
    vf y{};
    const vf step = set1(dt * kLog2e), add_in = set1(dt_u);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        const vf next = fma(exp2v(step * load(A + i)), load(h + i), add_in * load(B + i));
        store(h + i, next);
        y = fma(next, load(C + i), y);
    }
    if (i < n) {
        const int rest = static_cast<int>(n - i);
        const vf next =
            fma(exp2v(step * load_few(A + i, rest)), load_few(h + i, rest), add_in * load_few(B + i, rest));
        store_few(h + i, next, rest);
        y = fma(next, load_few(C + i, rest), y);
    }
    return hsum(y);
}

void ssm_step(const MambaShape& s, const float* u, const float* dt, const float* dt_bias, const float* A, const float* B,
              const float* C, const float* D, const float* z, float* state, int64_t c0, int64_t c1, float* y) {
    const int64_t n = s.d_state;
    for (int64_t c = c0; c < c1; c += kLanes) {
        const int count = static_cast<int>(c1 - c < kLanes ? c1 - c : kLanes);
        const auto at = [&](const float* p) { return count == kLanes ? load(p + c) : load_few(p + c, count); };
        const vf step = softplusv(at(dt) + at(dt_bias));
        const vf input = at(u);
        float steps[kLanes], adds[kLanes], outs[kLanes] = {};
        store(steps, step);
        store(adds, step * input);
        for (int i = 0; i < count; ++i)
            outs[i] = advance(state + (c + i) * n, A + (c + i) * n, B, C, steps[i], adds[i], n);
        const vf result = fma(at(D), input, load(outs)) * siluv(at(z));
        if (count == kLanes)
            store(y + c, result);
        else
            store_few(y + c, result, count);
    }
}

float exp_sum(float* x, float shift, int64_t n) {
    vf total{};
    const vf by = set1(shift);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        const vf e = expv(load(x + i) - by);
        store(x + i, e);
        total = total + e;
    }
    float rest = 0.0f;
    if (i < n) {
        const int count = static_cast<int>(n - i);
        store_few(x + i, expv(load_few(x + i, count) - by), count);
        for (; i < n; ++i) rest += x[i];
    }
    return hsum(total) + rest;
}

void kv_load(const uint8_t* from, int32_t type, int64_t stride, int64_t count, int64_t n, float* out) {
    const int64_t bytes = kv_bytes(type, n);
    constexpr int64_t kAhead = 16;  // rows; those of other heads lie between them, which hardware prefetchers do not follow
    for (int64_t j = 0; j < count; ++j) {
        for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(from + (j + kAhead) * stride + line);
        kv_row(from + j * stride, type, n, out + j * n);
    }
}

}  // namespace

namespace JAMBA_VARIANT {

void fill_elementwise(InnerKernels& ops) {
    ops.quantize = quantize;
    ops.rms_norm = rms_norm;
    ops.silu_mul = silu_mul;
    ops.add = add;
    ops.add_scaled = add_scaled;
    ops.add_outer = add_outer;
    ops.conv_step = conv_step;
    ops.ssm_step = ssm_step;
    ops.exp_sum = exp_sum;
    ops.kv_load = kv_load;
    ops.attend = attend;
    ops.gemv[kF32] = float_gemv<RowF32>;
    ops.gemv[kF16] = float_gemv<RowF16>;
    ops.gemv[kBF16] = float_gemv<RowBF16>;
}

}  // namespace JAMBA_VARIANT
}  // namespace jamba
