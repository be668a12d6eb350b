// Decoders of every block format to f32 chunks, in plain loops that the compiler vectorises for the file that includes
// this. Knows nothing of matrices. Layouts are those of the GGUF specification; each value is computed by the operations
// of ggml's dequantizer in their order, so it is the same float.
#pragma once

#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "prefill.h"

namespace jamba {
namespace {

inline float half_at(const uint8_t* p) {
#if defined(__F16C__)
    return _cvtsh_ss(read_u16(p));
#else
    return half_to_float(read_u16(p));
#endif
}

// The 6-bit scale and minimum of sub-block j (0..7) of Q4_K and Q5_K.
inline void k4_scale(const uint8_t* q, int j, int& scale, int& minimum) {
    if (j < 4) {
        scale = q[j] & 63;
        minimum = q[j + 4] & 63;
    } else {
        scale = (q[j + 4] & 15) | (q[j - 4] >> 6) << 4;
        minimum = (q[j + 4] >> 4) | (q[j] >> 6) << 4;
    }
}

// The 6-bit scale i (0..15) of Q3_K, its offset of 32 taken off.
inline int q3_scale(const uint8_t* q, int i) {
    const int low = i < 8 ? q[i] & 15 : q[i - 8] >> 4;
    return (low | (q[8 + i % 4] >> (2 * (i / 4)) & 3) << 4) - 32;
}

// The 6-bit scale of sub-block i (0..7) of IQ4_XS, its offset taken off.
inline int iq4_xs_scale(const uint8_t* block, int i) {
    return ((block[4 + i / 2] >> (4 * (i % 2)) & 15) | (read_u16(block + 2) >> (2 * i) & 3) << 4) - 32;
}

struct Q4_0 {
    static constexpr int kBlock = 32, kBytes = 18;
    static void decode(const uint8_t* b, float* y, int64_t) {
        const float d = half_at(b);
        for (int j = 0; j < 16; ++j) {
            y[j] = static_cast<float>((b[2 + j] & 15) - 8) * d;
            y[j + 16] = static_cast<float>((b[2 + j] >> 4) - 8) * d;
        }
    }
};

struct Q4_1 {
    static constexpr int kBlock = 32, kBytes = 20;
    static void decode(const uint8_t* b, float* y, int64_t) {
        const float d = half_at(b), m = half_at(b + 2);
        for (int j = 0; j < 16; ++j) {
            y[j] = static_cast<float>(b[4 + j] & 15) * d + m;
            y[j + 16] = static_cast<float>(b[4 + j] >> 4) * d + m;
        }
    }
};

struct Q5_0 {
    static constexpr int kBlock = 32, kBytes = 22;
    static void decode(const uint8_t* b, float* y, int64_t) {
        const float d = half_at(b);
        const uint32_t high = read_u32(b + 2);
        for (int j = 0; j < 16; ++j) {
            y[j] = static_cast<float>(static_cast<int>((b[6 + j] & 15) | (high >> j & 1) << 4) - 16) * d;
            y[j + 16] = static_cast<float>(static_cast<int>((b[6 + j] >> 4) | (high >> (j + 16) & 1) << 4) - 16) * d;
        }
    }
};

struct Q5_1 {
    static constexpr int kBlock = 32, kBytes = 24;
    static void decode(const uint8_t* b, float* y, int64_t) {
        const float d = half_at(b), m = half_at(b + 2);
        const uint32_t high = read_u32(b + 4);
        for (int j = 0; j < 16; ++j) {
            y[j] = static_cast<float>(static_cast<int>((b[8 + j] & 15) | (high >> j & 1) << 4)) * d + m;
            y[j + 16] = static_cast<float>(static_cast<int>((b[8 + j] >> 4) | (high >> (j + 16) & 1) << 4)) * d + m;
        }
    }
};

struct Q8_0 {
    static constexpr int kBlock = 32, kBytes = 34;
    static void decode(const uint8_t* b, float* y, int64_t) {
        const float d = half_at(b);
        for (int j = 0; j < 32; ++j) y[j] = static_cast<float>(static_cast<int8_t>(b[2 + j])) * d;
    }
};

struct Q2_K {
    static constexpr int kBlock = 256, kBytes = 84;
    static void decode(const uint8_t* b, float* y, int64_t step) {
        const float d = half_at(b + 80), dmin = half_at(b + 82);
        for (int c = 0; c < 8; ++c, y += step) {  // chunk c: bits 2 (c % 4) of bytes 32 (c / 4) on
            const uint8_t* q = b + 16 + c / 4 * 32;
            const int shift = 2 * (c % 4);
            for (int half = 0; half < 2; ++half) {
                const int sc = b[2 * c + half];
                const float dl = d * static_cast<float>(sc & 15), ml = dmin * static_cast<float>(sc >> 4);
                for (int l = 0; l < 16; ++l)
                    y[16 * half + l] = dl * static_cast<float>(q[16 * half + l] >> shift & 3) - ml;
            }
        }
    }
};

struct Q3_K {
    static constexpr int kBlock = 256, kBytes = 110;
    static void decode(const uint8_t* b, float* y, int64_t step) {
        const float d = half_at(b + 108);
        for (int c = 0; c < 8; ++c, y += step) {
            const uint8_t* q = b + 32 + c / 4 * 32;
            const int shift = 2 * (c % 4);
            for (int half = 0; half < 2; ++half) {
                const float dl = d * static_cast<float>(q3_scale(b + 96, 2 * c + half));
                for (int l = 0; l < 16; ++l) {
                    const int high = b[16 * half + l] >> c & 1;
                    y[16 * half + l] = dl * static_cast<float>((q[16 * half + l] >> shift & 3) + 4 * high - 4);
                }
            }
        }
    }
};

struct Q4_K {
    static constexpr int kBlock = 256, kBytes = 144;
    static void decode(const uint8_t* b, float* y, int64_t step) {
        const float d = half_at(b), dmin = half_at(b + 2);
        for (int c = 0; c < 8; ++c, y += step) {
            int sc, m;
            k4_scale(b + 4, c, sc, m);
            const float dl = d * static_cast<float>(sc), ml = dmin * static_cast<float>(m);
            const uint8_t* q = b + 16 + c / 2 * 32;
            const int shift = 4 * (c % 2);
            for (int l = 0; l < 32; ++l) y[l] = dl * static_cast<float>(q[l] >> shift & 15) - ml;
        }
    }
};

struct Q5_K {
    static constexpr int kBlock = 256, kBytes = 176;
    static void decode(const uint8_t* b, float* y, int64_t step) {
        const float d = half_at(b), dmin = half_at(b + 2);
        for (int c = 0; c < 8; ++c, y += step) {
            int sc, m;
            k4_scale(b + 4, c, sc, m);
            const float dl = d * static_cast<float>(sc), ml = dmin * static_cast<float>(m);
            const uint8_t* q = b + 48 + c / 2 * 32;
            const int shift = 4 * (c % 2);
            for (int l = 0; l < 32; ++l)
                y[l] = dl * static_cast<float>((q[l] >> shift & 15) + (b[16 + l] >> c & 1) * 16) - ml;
        }
    }
};

struct Q6_K {
    static constexpr int kBlock = 256, kBytes = 210;
    static void decode(const uint8_t* b, float* y, int64_t step) {
        const float d = half_at(b + 208);
        for (int c = 0; c < 8; ++c, y += step) {
            const uint8_t* low = b + c / 4 * 64 + c % 2 * 32;
            const uint8_t* high = b + 128 + c / 4 * 32;
            const int low_shift = c % 4 / 2 * 4, high_shift = 2 * (c % 4);
            for (int half = 0; half < 2; ++half) {
                const float dl = d * static_cast<float>(static_cast<int8_t>(b[192 + 2 * c + half]));
                for (int l = 16 * half; l < 16 * half + 16; ++l) {
                    const int q = (low[l] >> low_shift & 15) | (high[l] >> high_shift & 3) << 4;
                    y[l] = dl * static_cast<float>(q - 32);
                }
            }
        }
    }
};

struct Iq4Nl {
    static constexpr int kBlock = 32, kBytes = 18;
    static void decode(const uint8_t* b, float* y, int64_t) {
        const float d = half_at(b);
        for (int j = 0; j < 16; ++j) {
            y[j] = d * static_cast<float>(kIq4Values[b[2 + j] & 15]);
            y[j + 16] = d * static_cast<float>(kIq4Values[b[2 + j] >> 4]);
        }
    }
};

struct Iq4Xs {
    static constexpr int kBlock = 256, kBytes = 136;
    static void decode(const uint8_t* b, float* y, int64_t step) {
        const float d = half_at(b);
        for (int c = 0; c < 8; ++c, y += step) {
            const float dl = d * static_cast<float>(iq4_xs_scale(b, c));
            const uint8_t* q = b + 8 + 16 * c;
            for (int j = 0; j < 16; ++j) {
                y[j] = dl * static_cast<float>(kIq4Values[q[j] & 15]);
                y[j + 16] = dl * static_cast<float>(kIq4Values[q[j] >> 4]);
            }
        }
    }
};

template <class Block>
void decode_blocks(const uint8_t* row, int64_t first, int64_t n, float, void* out, int64_t step) {
    const uint8_t* block = row + first / Block::kBlock * Block::kBytes;
    float* y = static_cast<float*>(out);
    for (int64_t i = 0; i < n; i += Block::kBlock, block += Block::kBytes, y += Block::kBlock / kChunk * step)
        Block::decode(block, y, step);
}

// Formats of one value a block: value(i) for i in first..first+n, and zeros to the end of the last chunk.
template <class Value>
inline void decode_values(int64_t n, void* out, int64_t step, Value value) {
    float* y = static_cast<float*>(out);
    int64_t i = 0;
    for (; i + kChunk <= n; i += kChunk, y += step)
        for (int j = 0; j < kChunk; ++j) y[j] = value(i + j);
    if (i < n)
        for (int j = 0; j < kChunk; ++j) y[j] = i + j < n ? value(i + j) : 0.0f;
}

void decode_f32(const uint8_t* row, int64_t first, int64_t n, float, void* out, int64_t step) {
    const uint8_t* p = row + first * 4;
    decode_values(n, out, step, [p](int64_t i) {
        float x;
        std::memcpy(&x, p + 4 * i, 4);
        return x;
    });
}

void decode_f16(const uint8_t* row, int64_t first, int64_t n, float, void* out, int64_t step) {
    const uint8_t* p = row + first * 2;
    decode_values(n, out, step, [p](int64_t i) { return half_at(p + 2 * i); });
}

void decode_bf16(const uint8_t* row, int64_t first, int64_t n, float, void* out, int64_t step) {
    const uint8_t* p = row + first * 2;
    decode_values(n, out, step, [p](int64_t i) { return bf16_to_float(read_u16(p + 2 * i)); });
}

void decode_i8(const uint8_t* row, int64_t first, int64_t n, float scale, void* out, int64_t step) {
    const uint8_t* p = row + first;
    decode_values(n, out, step, [p, scale](int64_t i) { return static_cast<float>(static_cast<int8_t>(p[i])) * scale; });
}

DecodeRow f32_decoder(int type) {
    switch (type) {
        case kF32: return decode_f32;
        case kF16: return decode_f16;
        case kBF16: return decode_bf16;
        case kI8: return decode_i8;
        case kQ4_0: return decode_blocks<Q4_0>;
        case kQ4_1: return decode_blocks<Q4_1>;
        case kQ5_0: return decode_blocks<Q5_0>;
        case kQ5_1: return decode_blocks<Q5_1>;
        case kQ8_0: return decode_blocks<Q8_0>;
        case kQ2_K: return decode_blocks<Q2_K>;
        case kQ3_K: return decode_blocks<Q3_K>;
        case kQ4_K: return decode_blocks<Q4_K>;
        case kQ5_K: return decode_blocks<Q5_K>;
        case kQ6_K: return decode_blocks<Q6_K>;
        case kIQ4_NL: return decode_blocks<Iq4Nl>;
        case kIQ4_XS: return decode_blocks<Iq4Xs>;
        default: return nullptr;
    }
}

}  // namespace
}  // namespace jamba
