// Dequantization of every format to f32 chunks, in plain loops that the compiler vectorizes. Each value is computed by the
// operations of ggml's dequantizer in their order, so it is the same float.
#pragma once

#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "prefill/gemm.h"

namespace jamba {
namespace {

inline float to_float(const Half& half) {
#if defined(__F16C__)
    return _cvtsh_ss(read_u16(&half));
#else
    return half_to_float(read_u16(&half));
#endif
}

struct Q4_0 {
    using Block = block_q4_0;
    static void dequantize(const Block& b, float* y, int64_t) {
        const float d = to_float(b.d);
        for (int j = 0; j < 16; ++j) {
            y[j] = static_cast<float>((b.qs[j] & 15) - 8) * d;
            y[j + 16] = static_cast<float>((b.qs[j] >> 4) - 8) * d;
        }
    }
};

struct Q4_1 {
    using Block = block_q4_1;
    static void dequantize(const Block& b, float* y, int64_t) {
        const float d = to_float(b.d), m = to_float(b.m);
        for (int j = 0; j < 16; ++j) {
            y[j] = static_cast<float>(b.qs[j] & 15) * d + m;
            y[j + 16] = static_cast<float>(b.qs[j] >> 4) * d + m;
        }
    }
};

struct Q5_0 {
    using Block = block_q5_0;
    static void dequantize(const Block& b, float* y, int64_t) {
        const float d = to_float(b.d);
        const uint32_t high = read_u32(b.qh);
        for (int j = 0; j < 16; ++j) {
            y[j] = static_cast<float>(static_cast<int>((b.qs[j] & 15) | (high >> j & 1) << 4) - 16) * d;
            y[j + 16] = static_cast<float>(static_cast<int>((b.qs[j] >> 4) | (high >> (j + 16) & 1) << 4) - 16) * d;
        }
    }
};

struct Q5_1 {
    using Block = block_q5_1;
    static void dequantize(const Block& b, float* y, int64_t) {
        const float d = to_float(b.d), m = to_float(b.m);
        const uint32_t high = read_u32(b.qh);
        for (int j = 0; j < 16; ++j) {
            y[j] = static_cast<float>(static_cast<int>((b.qs[j] & 15) | (high >> j & 1) << 4)) * d + m;
            y[j + 16] = static_cast<float>(static_cast<int>((b.qs[j] >> 4) | (high >> (j + 16) & 1) << 4)) * d + m;
        }
    }
};

struct Q8_0 {
    using Block = block_q8_0;
    static void dequantize(const Block& b, float* y, int64_t) {
        const float d = to_float(b.d);
        for (int j = 0; j < 32; ++j) y[j] = static_cast<float>(b.qs[j]) * d;
    }
};

struct Q2_K {
    using Block = block_q2_k;
    static void dequantize(const Block& b, float* y, int64_t step) {
        const float d = to_float(b.d), dmin = to_float(b.dmin);
        for (int c = 0; c < 8; ++c, y += step) {  // chunk c: bits 2 (c % 4) of bytes 32 (c / 4) on
            const uint8_t* q = b.qs + c / 4 * 32;
            const int shift = 2 * (c % 4);
            for (int half = 0; half < 2; ++half) {
                const int sc = b.scales[2 * c + half];
                const float dl = d * static_cast<float>(sc & 15), ml = dmin * static_cast<float>(sc >> 4);
                for (int l = 0; l < 16; ++l)
                    y[16 * half + l] = dl * static_cast<float>(q[16 * half + l] >> shift & 3) - ml;
            }
        }
    }
};

struct Q3_K {
    using Block = block_q3_k;
    static void dequantize(const Block& b, float* y, int64_t step) {
        const float d = to_float(b.d);
        for (int c = 0; c < 8; ++c, y += step) {
            const uint8_t* q = b.qs + c / 4 * 32;
            const int shift = 2 * (c % 4);
            for (int half = 0; half < 2; ++half) {
                const float dl = d * static_cast<float>(q3_scale(b.scales, 2 * c + half));
                for (int l = 0; l < 16; ++l) {
                    const int high = b.hmask[16 * half + l] >> c & 1;
                    y[16 * half + l] = dl * static_cast<float>((q[16 * half + l] >> shift & 3) + 4 * high - 4);
                }
            }
        }
    }
};

struct Q4_K {
    using Block = block_q4_k;
    static void dequantize(const Block& b, float* y, int64_t step) {
        const float d = to_float(b.d), dmin = to_float(b.dmin);
        for (int c = 0; c < 8; ++c, y += step) {
            int sc, m;
            k_scale_and_minimum(b.scales, c, sc, m);
            const float dl = d * static_cast<float>(sc), ml = dmin * static_cast<float>(m);
            const uint8_t* q = b.qs + c / 2 * 32;
            const int shift = 4 * (c % 2);
            for (int l = 0; l < 32; ++l) y[l] = dl * static_cast<float>(q[l] >> shift & 15) - ml;
        }
    }
};

struct Q5_K {
    using Block = block_q5_k;
    static void dequantize(const Block& b, float* y, int64_t step) {
        const float d = to_float(b.d), dmin = to_float(b.dmin);
        for (int c = 0; c < 8; ++c, y += step) {
            int sc, m;
            k_scale_and_minimum(b.scales, c, sc, m);
            const float dl = d * static_cast<float>(sc), ml = dmin * static_cast<float>(m);
            const uint8_t* q = b.qs + c / 2 * 32;
            const int shift = 4 * (c % 2);
            for (int l = 0; l < 32; ++l)
                y[l] = dl * static_cast<float>((q[l] >> shift & 15) + (b.qh[l] >> c & 1) * 16) - ml;
        }
    }
};

struct Q6_K {
    using Block = block_q6_k;
    static void dequantize(const Block& b, float* y, int64_t step) {
        const float d = to_float(b.d);
        for (int c = 0; c < 8; ++c, y += step) {
            const uint8_t* low = b.ql + c / 4 * 64 + c % 2 * 32;
            const uint8_t* high = b.qh + c / 4 * 32;
            const int low_shift = c % 4 / 2 * 4, high_shift = 2 * (c % 4);
            for (int half = 0; half < 2; ++half) {
                const float dl = d * static_cast<float>(b.scales[2 * c + half]);
                for (int l = 16 * half; l < 16 * half + 16; ++l) {
                    const int q = (low[l] >> low_shift & 15) | (high[l] >> high_shift & 3) << 4;
                    y[l] = dl * static_cast<float>(q - 32);
                }
            }
        }
    }
};

struct IQ4_NL {
    using Block = block_iq4_nl;
    static void dequantize(const Block& b, float* y, int64_t) {
        const float d = to_float(b.d);
        for (int j = 0; j < 16; ++j) {
            y[j] = d * static_cast<float>(kIq4Values[b.qs[j] & 15]);
            y[j + 16] = d * static_cast<float>(kIq4Values[b.qs[j] >> 4]);
        }
    }
};

struct IQ4_XS {
    using Block = block_iq4_xs;
    static void dequantize(const Block& b, float* y, int64_t step) {
        const float d = to_float(b.d);
        for (int c = 0; c < 8; ++c, y += step) {
            const float dl = d * static_cast<float>(iq4_xs_scale(b, c));
            const uint8_t* q = b.qs + 16 * c;
            for (int j = 0; j < 16; ++j) {
                y[j] = dl * static_cast<float>(kIq4Values[q[j] & 15]);
                y[j + 16] = dl * static_cast<float>(kIq4Values[q[j] >> 4]);
            }
        }
    }
};

template <class Format>
void dequantize_blocks(const uint8_t* row, int64_t first, int64_t n, float, void* out, int64_t step) {
    constexpr int kValues = Format::Block::kValues;
    const auto* block = reinterpret_cast<const typename Format::Block*>(row) + first / kValues;
    float* y = static_cast<float*>(out);
    for (int64_t i = 0; i < n; i += kValues, ++block, y += kValues / kChunk * step) Format::dequantize(*block, y, step);
}

// Formats of one value a block: value(i) for i in first..first+n, and zeros to the end of the last chunk.
template <class Value>
inline void dequantize_values(int64_t n, void* out, int64_t step, Value value) {
    float* y = static_cast<float*>(out);
    int64_t i = 0;
    for (; i + kChunk <= n; i += kChunk, y += step)
        for (int j = 0; j < kChunk; ++j) y[j] = value(i + j);
    if (i < n)
        for (int j = 0; j < kChunk; ++j) y[j] = i + j < n ? value(i + j) : 0.0f;
}

void dequantize_f32(const uint8_t* row, int64_t first, int64_t n, float, void* out, int64_t step) {
    const uint8_t* p = row + first * 4;
    dequantize_values(n, out, step, [p](int64_t i) {
        float x;
        std::memcpy(&x, p + 4 * i, 4);
        return x;
    });
}

void dequantize_f16(const uint8_t* row, int64_t first, int64_t n, float, void* out, int64_t step) {
    const auto* p = reinterpret_cast<const Half*>(row) + first;
    dequantize_values(n, out, step, [p](int64_t i) { return to_float(p[i]); });
}

void dequantize_bf16(const uint8_t* row, int64_t first, int64_t n, float, void* out, int64_t step) {
    const uint8_t* p = row + first * 2;
    dequantize_values(n, out, step, [p](int64_t i) { return bf16_to_float(read_u16(p + 2 * i)); });
}

void dequantize_i8(const uint8_t* row, int64_t first, int64_t n, float scale, void* out, int64_t step) {
    const uint8_t* p = row + first;
    dequantize_values(n, out, step, [p, scale](int64_t i) { return static_cast<float>(static_cast<int8_t>(p[i])) * scale; });
}

DequantizeRow f32_dequantizer(int type) {
    switch (type) {
        case kF32: return dequantize_f32;
        case kF16: return dequantize_f16;
        case kBF16: return dequantize_bf16;
        case kI8: return dequantize_i8;
#define FORMAT(name, block, id) \
    case k##name: return dequantize_blocks<name>;
            BLOCK_FORMATS(FORMAT)
#undef FORMAT
        default: return nullptr;
    }
}

}  // namespace
}  // namespace jamba
