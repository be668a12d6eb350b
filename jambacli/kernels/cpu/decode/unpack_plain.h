// Unpacking of 256 values of each block format into int8, one value at a time, in plain C++: what the formats mean, and the
// path of processors without kernels of their own.
//
// The value is scale[i / 16] * w[i] - offset[i / 16], computed so that it equals the format's dequantization bit by bit.
#pragma once

#include "base/formats.h"

namespace jamba {
namespace {

struct Values {
    int8_t w[256];
    float scale[16], offset[16];
};

inline float to_float(const Half& half) { return half_to_float(read_u16(&half)); }

// Eight blocks of 32 values, each read by one(block, w, scale, offset).
template <class Block, class One>
inline void each_block(const Block* blocks, Values& v, One one) {
    for (int b = 0; b < 8; ++b) {
        float scale = 0.0f, offset = 0.0f;
        one(blocks[b], v.w + 32 * b, scale, offset);
        v.scale[2 * b] = v.scale[2 * b + 1] = scale;
        v.offset[2 * b] = v.offset[2 * b + 1] = offset;
    }
}

inline void nibbles(const uint8_t* p, int minus, int8_t* w) {
    for (int i = 0; i < 16; ++i) {
        w[i] = static_cast<int8_t>((p[i] & 15) - minus);
        w[i + 16] = static_cast<int8_t>((p[i] >> 4) - minus);
    }
}

inline void five_bits(const uint8_t* p, uint32_t high, int minus, int8_t* w) {
    for (int i = 0; i < 16; ++i) {
        w[i] = static_cast<int8_t>(((p[i] & 15) | ((high >> i & 1) << 4)) - static_cast<uint32_t>(minus));
        w[i + 16] = static_cast<int8_t>(((p[i] >> 4) | ((high >> (i + 16) & 1) << 4)) - static_cast<uint32_t>(minus));
    }
}

inline void iq4_values(const uint8_t* p, int8_t* w) {
    for (int i = 0; i < 16; ++i) {
        w[i] = kIq4Values[p[i] & 15];
        w[i + 16] = kIq4Values[p[i] >> 4];
    }
}

// The scales and minimums of Q4_K and Q5_K.
template <class Block>
inline void k_scales(const Block& b, Values& v) {
    const float d = to_float(b.d), dmin = to_float(b.dmin);
    for (int j = 0; j < 8; ++j) {
        int scale, minimum;
        k_scale_and_minimum(b.scales, j, scale, minimum);
        v.scale[2 * j] = v.scale[2 * j + 1] = d * static_cast<float>(scale);
        v.offset[2 * j] = v.offset[2 * j + 1] = dmin * static_cast<float>(minimum);
    }
}

struct Q4_0 : Of256<block_q4_0> {
    static void unpack(const Block* blocks, Values& v) {
        each_block(blocks, v, [](const Block& b, int8_t* w, float& scale, float&) {
            scale = to_float(b.d);
            nibbles(b.qs, 8, w);
        });
    }
};

struct Q4_1 : Of256<block_q4_1> {
    static void unpack(const Block* blocks, Values& v) {
        each_block(blocks, v, [](const Block& b, int8_t* w, float& scale, float& offset) {
            scale = to_float(b.d);
            offset = -to_float(b.m);
            nibbles(b.qs, 0, w);
        });
    }
};

struct Q5_0 : Of256<block_q5_0> {
    static void unpack(const Block* blocks, Values& v) {
        each_block(blocks, v, [](const Block& b, int8_t* w, float& scale, float&) {
            scale = to_float(b.d);
            five_bits(b.qs, read_u32(b.qh), 16, w);
        });
    }
};

struct Q5_1 : Of256<block_q5_1> {
    static void unpack(const Block* blocks, Values& v) {
        each_block(blocks, v, [](const Block& b, int8_t* w, float& scale, float& offset) {
            scale = to_float(b.d);
            offset = -to_float(b.m);
            five_bits(b.qs, read_u32(b.qh), 0, w);
        });
    }
};

struct Q8_0 : Of256<block_q8_0> {
    static void unpack(const Block* blocks, Values& v) {
        each_block(blocks, v, [](const Block& b, int8_t* w, float& scale, float&) {
            scale = to_float(b.d);
            memcpy(w, b.qs, 32);
        });
    }
};

struct I8 : Of256<block_i8> {
    static void unpack(const Block* values, Values& v) {
        memcpy(v.w, values, 256);
        for (int i = 0; i < 16; ++i) v.scale[i] = 1.0f, v.offset[i] = 0.0f;
    }
};

struct IQ4_NL : Of256<block_iq4_nl> {
    static void unpack(const Block* blocks, Values& v) {
        each_block(blocks, v, [](const Block& b, int8_t* w, float& scale, float&) {
            scale = to_float(b.d);
            iq4_values(b.qs, w);
        });
    }
};

struct IQ4_XS : Of256<block_iq4_xs> {
    static void unpack(const Block* b, Values& v) {
        const float d = to_float(b->d);
        for (int j = 0; j < 8; ++j) {
            v.scale[2 * j] = v.scale[2 * j + 1] = d * static_cast<float>(iq4_xs_scale(*b, j));
            v.offset[2 * j] = v.offset[2 * j + 1] = 0.0f;
            iq4_values(b->qs + 16 * j, v.w + 32 * j);
        }
    }
};

struct Q4_K : Of256<block_q4_k> {
    static void unpack(const Block* b, Values& v) {
        k_scales(*b, v);
        for (int c = 0; c < 4; ++c)
            for (int i = 0; i < 32; ++i) {
                const int x = b->qs[32 * c + i];
                v.w[64 * c + i] = static_cast<int8_t>(x & 15);
                v.w[64 * c + 32 + i] = static_cast<int8_t>(x >> 4);
            }
    }
};

struct Q5_K : Of256<block_q5_k> {
    static void unpack(const Block* b, Values& v) {
        k_scales(*b, v);
        for (int c = 0; c < 4; ++c)
            for (int i = 0; i < 32; ++i) {
                const int x = b->qs[32 * c + i], high = b->qh[i] >> (2 * c);
                v.w[64 * c + i] = static_cast<int8_t>((x & 15) | (high & 1) << 4);
                v.w[64 * c + 32 + i] = static_cast<int8_t>(x >> 4 | (high >> 1 & 1) << 4);
            }
    }
};

struct Q6_K : Of256<block_q6_k> {
    static void unpack(const Block* b, Values& v) {
        const float d = to_float(b->d);
        for (int j = 0; j < 16; ++j) {
            v.scale[j] = d * static_cast<float>(b->scales[j]);
            v.offset[j] = 0.0f;
        }
        for (int h = 0; h < 2; ++h)
            for (int i = 0; i < 32; ++i) {
                const int first = b->ql[64 * h + i], second = b->ql[64 * h + 32 + i], high = b->qh[32 * h + i];
                int8_t* w = v.w + 128 * h + i;
                w[0] = static_cast<int8_t>(((first & 15) | (high & 3) << 4) - 32);
                w[32] = static_cast<int8_t>(((second & 15) | (high >> 2 & 3) << 4) - 32);
                w[64] = static_cast<int8_t>((first >> 4 | (high >> 4 & 3) << 4) - 32);
                w[96] = static_cast<int8_t>((second >> 4 | (high >> 6 & 3) << 4) - 32);
            }
    }
};

struct Q3_K : Of256<block_q3_k> {
    static void unpack(const Block* b, Values& v) {
        const float d = to_float(b->d);
        for (int j = 0; j < 16; ++j) {
            v.scale[j] = d * static_cast<float>(q3_scale(b->scales, j));
            v.offset[j] = 0.0f;
        }
        for (int c = 0; c < 8; ++c)
            for (int i = 0; i < 32; ++i) {
                const int two = b->qs[32 * (c / 4) + i] >> (2 * (c % 4)) & 3;
                v.w[32 * c + i] = static_cast<int8_t>(two - (b->hmask[i] >> c & 1 ? 0 : 4));
            }
    }
};

struct Q2_K : Of256<block_q2_k> {
    static void unpack(const Block* b, Values& v) {
        const float d = to_float(b->d), dmin = to_float(b->dmin);
        for (int j = 0; j < 16; ++j) {
            v.scale[j] = d * static_cast<float>(b->scales[j] & 15);
            v.offset[j] = dmin * static_cast<float>(b->scales[j] >> 4);
        }
        for (int c = 0; c < 8; ++c)
            for (int i = 0; i < 32; ++i)
                v.w[32 * c + i] = static_cast<int8_t>(b->qs[32 * (c / 4) + i] >> (2 * (c % 4)) & 3);
    }
};

}  // namespace
}  // namespace jamba
