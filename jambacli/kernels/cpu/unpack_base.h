// Unpacking of 256 values of each block format into int8, one value at a time, in plain C++: what the formats mean, and
// the path for processors without kernels of their own. Knows nothing of activations.
//
// The value is scale[i / 16] * w[i] - offset[i / 16], computed so that it equals the format's dequantization bit by bit.
#pragma once

#include "blocks.h"

namespace jamba {
namespace {

struct Values {
    int8_t w[256];
    float scale[16], offset[16];
};

// Formats of 32 values: `count` blocks from p, each read by one(block, w, scale, offset).
template <class One>
inline void each_block(const uint8_t* p, int step, Values& v, One one) {
    for (int b = 0; b < 8; ++b) {
        float scale = 0.0f, offset = 0.0f;
        one(p + b * step, v.w + 32 * b, scale, offset);
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

inline void unpack_q4_0(const uint8_t* p, Values& v) {
    each_block(p, 18, v, [](const uint8_t* b, int8_t* w, float& scale, float&) {
        scale = half_to_float(read_u16(b));
        nibbles(b + 2, 8, w);
    });
}

inline void unpack_q4_1(const uint8_t* p, Values& v) {
    each_block(p, 20, v, [](const uint8_t* b, int8_t* w, float& scale, float& offset) {
        scale = half_to_float(read_u16(b));
        offset = -half_to_float(read_u16(b + 2));
        nibbles(b + 4, 0, w);
    });
}

inline void unpack_q5_0(const uint8_t* p, Values& v) {
    each_block(p, 22, v, [](const uint8_t* b, int8_t* w, float& scale, float&) {
        scale = half_to_float(read_u16(b));
        five_bits(b + 6, read_u32(b + 2), 16, w);
    });
}

inline void unpack_q5_1(const uint8_t* p, Values& v) {
    each_block(p, 24, v, [](const uint8_t* b, int8_t* w, float& scale, float& offset) {
        scale = half_to_float(read_u16(b));
        offset = -half_to_float(read_u16(b + 2));
        five_bits(b + 8, read_u32(b + 4), 0, w);
    });
}

inline void unpack_q8_0(const uint8_t* p, Values& v) {
    each_block(p, 34, v, [](const uint8_t* b, int8_t* w, float& scale, float&) {
        scale = half_to_float(read_u16(b));
        memcpy(w, b + 2, 32);
    });
}

inline void unpack_i8(const uint8_t* p, Values& v) {
    memcpy(v.w, p, 256);
    for (int i = 0; i < 16; ++i) v.scale[i] = 1.0f, v.offset[i] = 0.0f;
}

inline void iq4_block(const uint8_t* p, int8_t* w) {
    for (int i = 0; i < 16; ++i) {
        w[i] = kIq4Values[p[i] & 15];
        w[i + 16] = kIq4Values[p[i] >> 4];
    }
}

inline void unpack_iq4_nl(const uint8_t* p, Values& v) {
    each_block(p, 18, v, [](const uint8_t* b, int8_t* w, float& scale, float&) {
        scale = half_to_float(read_u16(b));
        iq4_block(b + 2, w);
    });
}

inline void unpack_iq4_xs(const uint8_t* p, Values& v) {
    const float d = half_to_float(read_u16(p));
    const unsigned high = read_u16(p + 2);
    for (int b = 0; b < 8; ++b) {
        const int low = p[4 + b / 2] >> (4 * (b & 1)) & 15;
        const float scale = d * static_cast<float>((low | static_cast<int>(high >> (2 * b) & 3) << 4) - 32);
        v.scale[2 * b] = v.scale[2 * b + 1] = scale;
        v.offset[2 * b] = v.offset[2 * b + 1] = 0.0f;
        iq4_block(p + 8 + 16 * b, v.w + 32 * b);
    }
}

// The 6-bit scale and minimum of group j of Q4_K and Q5_K, from their 12 bytes.
inline void k_scale(const uint8_t* s, int j, int& scale, int& minimum) {
    if (j < 4) {
        scale = s[j] & 63;
        minimum = s[j + 4] & 63;
    } else {
        scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        minimum = s[j + 4] >> 4 | (s[j] >> 6) << 4;
    }
}

inline void k_scales(const uint8_t* p, Values& v) {
    const float d = half_to_float(read_u16(p)), dmin = half_to_float(read_u16(p + 2));
    for (int j = 0; j < 8; ++j) {
        int scale, minimum;
        k_scale(p + 4, j, scale, minimum);
        v.scale[2 * j] = v.scale[2 * j + 1] = d * static_cast<float>(scale);
        v.offset[2 * j] = v.offset[2 * j + 1] = dmin * static_cast<float>(minimum);
    }
}

inline void unpack_q4_k(const uint8_t* p, Values& v) {
    k_scales(p, v);
    for (int c = 0; c < 4; ++c)
        for (int i = 0; i < 32; ++i) {
            const int x = p[16 + 32 * c + i];
            v.w[64 * c + i] = static_cast<int8_t>(x & 15);
            v.w[64 * c + 32 + i] = static_cast<int8_t>(x >> 4);
        }
}

inline void unpack_q5_k(const uint8_t* p, Values& v) {
    k_scales(p, v);
    for (int c = 0; c < 4; ++c)
        for (int i = 0; i < 32; ++i) {
            const int x = p[48 + 32 * c + i], high = p[16 + i] >> (2 * c);
            v.w[64 * c + i] = static_cast<int8_t>((x & 15) | (high & 1) << 4);
            v.w[64 * c + 32 + i] = static_cast<int8_t>(x >> 4 | (high >> 1 & 1) << 4);
        }
}

inline void unpack_q6_k(const uint8_t* p, Values& v) {
    const float d = half_to_float(read_u16(p + 208));
    for (int j = 0; j < 16; ++j) {
        v.scale[j] = d * static_cast<float>(static_cast<int8_t>(p[192 + j]));
        v.offset[j] = 0.0f;
    }
    for (int h = 0; h < 2; ++h)
        for (int i = 0; i < 32; ++i) {
            const int a = p[64 * h + i], b = p[64 * h + 32 + i], high = p[128 + 32 * h + i];
            int8_t* w = v.w + 128 * h + i;
            w[0] = static_cast<int8_t>(((a & 15) | (high & 3) << 4) - 32);
            w[32] = static_cast<int8_t>(((b & 15) | (high >> 2 & 3) << 4) - 32);
            w[64] = static_cast<int8_t>((a >> 4 | (high >> 4 & 3) << 4) - 32);
            w[96] = static_cast<int8_t>((b >> 4 | (high >> 6 & 3) << 4) - 32);
        }
}

inline void unpack_q3_k(const uint8_t* p, Values& v) {
    const float d = half_to_float(read_u16(p + 108));
    for (int j = 0; j < 16; ++j) {
        const int low = p[96 + j % 8] >> (j < 8 ? 0 : 4) & 15;
        const int high = p[104 + j % 4] >> (2 * (j / 4)) & 3;
        v.scale[j] = d * static_cast<float>((low | high << 4) - 32);
        v.offset[j] = 0.0f;
    }
    for (int c = 0; c < 8; ++c)
        for (int i = 0; i < 32; ++i) {
            const int two = p[32 + 32 * (c / 4) + i] >> (2 * (c % 4)) & 3;
            v.w[32 * c + i] = static_cast<int8_t>(two - (p[i] >> c & 1 ? 0 : 4));
        }
}

inline void unpack_q2_k(const uint8_t* p, Values& v) {
    const float d = half_to_float(read_u16(p + 80)), dmin = half_to_float(read_u16(p + 82));
    for (int j = 0; j < 16; ++j) {
        v.scale[j] = d * static_cast<float>(p[j] & 15);
        v.offset[j] = dmin * static_cast<float>(p[j] >> 4);
    }
    for (int c = 0; c < 8; ++c)
        for (int i = 0; i < 32; ++i)
            v.w[32 * c + i] = static_cast<int8_t>(p[16 + 32 * (c / 4) + i] >> (2 * (c % 4)) & 3);
}

}  // namespace
}  // namespace jamba
