// K-quant blocks to values, one block after another; knows nothing of how the levels were found.
//
// Each value is scale * level (- offset), in the order of operations of ggml and of the gguf package; here a vector is LANES
// neighbouring values of one sub-block.
#pragma once

#include "lanes.h"
#include "quant.h"

namespace quant {
namespace QUANT_ISA {
namespace kq {

constexpr int SUPER = 256;

LANE_FN float half_at(const uint8_t *p) {
    uint16_t h;
    std::memcpy(&h, p, 2);
    return from_half(splat((int32_t)h))[0];
}

// LANES bytes, one a lane.
LANE_FN vi bytes_at(const uint8_t *p) {
#if QUANT_LANES == 16
    return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
#elif QUANT_LANES == 8
    return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
#elif defined(__SSE2__)
    int32_t four;
    std::memcpy(&four, p, sizeof four);
    const __m128i zero = _mm_setzero_si128();
    return (vi)_mm_unpacklo_epi16(_mm_unpacklo_epi8(_mm_cvtsi32_si128(four), zero), zero);
#else
    typedef uint8_t vb __attribute__((vector_size(QUANT_LANES)));
    vb b;
    std::memcpy(&b, p, sizeof b);
    return __builtin_convertvector(b, vi);
#endif
}

// Scale and offset j of the twelve bytes that Q4_K and Q5_K keep them in, six bits each.
LANE_FN void six_bits(const uint8_t *p, int j, int *scale, int *offset) {
    if (j < 4) {
        *scale = p[j] & 63;
        *offset = p[j + 4] & 63;
    } else {
        *scale = (p[j + 4] & 15) | (p[j - 4] >> 6) << 4;
        *offset = (p[j + 4] >> 4) | (p[j] >> 6) << 4;
    }
}

struct Q2KBlocks {
    static constexpr int BYTES = 84;
    static void decode(const uint8_t *block, float *y) {
        const uint8_t *levels = block + 16;
        const float d = half_at(block + 80), offset = half_at(block + 82);
        for (int j = 0; j < 16; ++j) {
            const float scale = d * (float)(block[j] & 15), shift = offset * (float)(block[j] >> 4);
            const uint8_t *q = levels + 32 * (j / 8) + 16 * (j % 2);
            const int at = j % 8 / 2 * 2;
            for (int i = 0; i < 16; i += LANES) store(y + 16 * j + i, scale * to_float(bytes_at(q + i) >> at & 3) - shift);
        }
    }
};

struct Q3KBlocks {
    static constexpr int BYTES = 110;
    static void decode(const uint8_t *block, float *y) {
        const uint8_t *high = block, *levels = block + 32, *scales = block + 96;
        const float d = half_at(block + 108);
        for (int j = 0; j < 16; ++j) {
            const int low_bits = scales[j % 8] >> (j < 8 ? 0 : 4) & 15, high_bits = scales[8 + j % 4] >> (j / 4 * 2) & 3;
            const float scale = d * (float)((low_bits | high_bits << 4) - 32);
            const uint8_t *q = levels + 32 * (j / 8) + 16 * (j % 2), *h = high + 16 * (j % 2);
            const int at = j % 8 / 2 * 2, bit = j / 2;
            for (int i = 0; i < 16; i += LANES) {
                const vi level = (bytes_at(q + i) >> at & 3) | (bytes_at(h + i) >> bit & 1) << 2;
                store(y + 16 * j + i, scale * to_float(level - 4));
            }
        }
    }
};

struct Q4KBlocks {
    static constexpr int BYTES = 144;
    static void decode(const uint8_t *block, float *y) {
        const float d = half_at(block), offset = half_at(block + 2);
        for (int j = 0; j < 8; ++j) {
            int s, o;
            six_bits(block + 4, j, &s, &o);
            const float scale = d * (float)s, shift = offset * (float)o;
            const uint8_t *q = block + 16 + 32 * (j / 2);
            const int at = j % 2 * 4;
            for (int i = 0; i < 32; i += LANES) store(y + 32 * j + i, scale * to_float(bytes_at(q + i) >> at & 15) - shift);
        }
    }
};

struct Q5KBlocks {
    static constexpr int BYTES = 176;
    static void decode(const uint8_t *block, float *y) {
        const float d = half_at(block), offset = half_at(block + 2);
        const uint8_t *high = block + 16;
        for (int j = 0; j < 8; ++j) {
            int s, o;
            six_bits(block + 4, j, &s, &o);
            const float scale = d * (float)s, shift = offset * (float)o;
            const uint8_t *q = block + 48 + 32 * (j / 2);
            const int at = j % 2 * 4;
            for (int i = 0; i < 32; i += LANES) {
                const vi level = (bytes_at(q + i) >> at & 15) | (bytes_at(high + i) >> j & 1) << 4;
                store(y + 32 * j + i, scale * to_float(level) - shift);
            }
        }
    }
};

struct Q6KBlocks {
    static constexpr int BYTES = 210;
    static void decode(const uint8_t *block, float *y) {
        const float d = half_at(block + 208);
        for (int j = 0; j < 16; ++j) {
            const float scale = d * (float)(int8_t)block[192 + j];
            const int part = j % 8 / 2;  // which quarter of its half of the block
            const uint8_t *low = block + 64 * (j / 8) + 32 * (part % 2) + 16 * (j % 2);
            const uint8_t *high = block + 128 + 32 * (j / 8) + 16 * (j % 2);
            const int at = part / 2 * 4, high_at = part * 2;
            for (int i = 0; i < 16; i += LANES) {
                const vi level = (bytes_at(low + i) >> at & 15) | (bytes_at(high + i) >> high_at & 3) << 4;
                store(y + 16 * j + i, scale * to_float(level - 32));
            }
        }
    }
};

template <typename Q>
static void decode(const uint8_t *src, int64_t rows, int64_t n, float *dst) {
    const int64_t blocks = rows * n / SUPER;
    for (int64_t k = 0; k < blocks; ++k) Q::decode(src + k * Q::BYTES, dst + k * SUPER);
}

}  // namespace kq
}  // namespace QUANT_ISA
}  // namespace quant
