// K-quant blocks to values, one block after another.
//
// Each value is scale * level (- offset), in the order of operations of ggml and of the gguf package. A vector is LANES
// neighbouring values of one sub-block.
#pragma once

#include "lanes.h"
#include "quant.h"

namespace quant {
namespace JAMBA_VARIANT {
namespace kq {

constexpr int SUPER = 256;

// LANES bytes, one per lane.
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

struct Q2KBlocks {
    using Block = block_q2_k;
    static void dequantize(const Block &block, float *y) {
        const float d = to_float(block.d), offset = to_float(block.dmin);
        for (int j = 0; j < 16; ++j) {
            const float scale = d * (float)(block.scales[j] & 15), shift = offset * (float)(block.scales[j] >> 4);
            const uint8_t *q = block.qs + 32 * (j / 8) + 16 * (j % 2);
            const int at = j % 8 / 2 * 2;
            for (int i = 0; i < 16; i += LANES) store(y + 16 * j + i, scale * to_float(bytes_at(q + i) >> at & 3) - shift);
        }
    }
};

struct Q3KBlocks {
    using Block = block_q3_k;
    static void dequantize(const Block &block, float *y) {
        const float d = to_float(block.d);
        for (int j = 0; j < 16; ++j) {
            const float scale = d * (float)q3_scale(block.scales, j);
            const uint8_t *q = block.qs + 32 * (j / 8) + 16 * (j % 2), *h = block.hmask + 16 * (j % 2);
            const int at = j % 8 / 2 * 2, bit = j / 2;
            for (int i = 0; i < 16; i += LANES) {
                const vi level = (bytes_at(q + i) >> at & 3) | (bytes_at(h + i) >> bit & 1) << 2;
                store(y + 16 * j + i, scale * to_float(level - 4));
            }
        }
    }
};

struct Q4KBlocks {
    using Block = block_q4_k;
    static void dequantize(const Block &block, float *y) {
        const float d = to_float(block.d), offset = to_float(block.dmin);
        for (int j = 0; j < 8; ++j) {
            int s, o;
            k_scale_and_minimum(block.scales, j, s, o);
            const float scale = d * (float)s, shift = offset * (float)o;
            const uint8_t *q = block.qs + 32 * (j / 2);
            const int at = j % 2 * 4;
            for (int i = 0; i < 32; i += LANES) store(y + 32 * j + i, scale * to_float(bytes_at(q + i) >> at & 15) - shift);
        }
    }
};

struct Q5KBlocks {
    using Block = block_q5_k;
    static void dequantize(const Block &block, float *y) {
        const float d = to_float(block.d), offset = to_float(block.dmin);
        for (int j = 0; j < 8; ++j) {
            int s, o;
            k_scale_and_minimum(block.scales, j, s, o);
            const float scale = d * (float)s, shift = offset * (float)o;
            const uint8_t *q = block.qs + 32 * (j / 2);
            const int at = j % 2 * 4;
            for (int i = 0; i < 32; i += LANES) {
                const vi level = (bytes_at(q + i) >> at & 15) | (bytes_at(block.qh + i) >> j & 1) << 4;
                store(y + 32 * j + i, scale * to_float(level) - shift);
            }
        }
    }
};

struct Q6KBlocks {
    using Block = block_q6_k;
    static void dequantize(const Block &block, float *y) {
        const float d = to_float(block.d);
        for (int j = 0; j < 16; ++j) {
            const float scale = d * (float)block.scales[j];
            const int part = j % 8 / 2;  // which quarter of its half of the block
            const uint8_t *low = block.ql + 64 * (j / 8) + 32 * (part % 2) + 16 * (j % 2);
            const uint8_t *high = block.qh + 32 * (j / 8) + 16 * (j % 2);
            const int at = part / 2 * 4, high_at = part * 2;
            for (int i = 0; i < 16; i += LANES) {
                const vi level = (bytes_at(low + i) >> at & 15) | (bytes_at(high + i) >> high_at & 3) << 4;
                store(y + 16 * j + i, scale * to_float(level - 32));
            }
        }
    }
};

template <typename Q>
static void dequantize(const uint8_t *src, int64_t rows, int64_t n, float *dst) {
    const typename Q::Block *block = reinterpret_cast<const typename Q::Block *>(src);
    const int64_t blocks = rows * n / SUPER;
    for (int64_t k = 0; k < blocks; ++k) Q::dequantize(block[k], dst + k * SUPER);
}

}  // namespace kq
}  // namespace JAMBA_VARIANT
}  // namespace quant
