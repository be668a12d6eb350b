// Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 back to values.
#pragma once

#include "bytes16.h"
#include "quant.h"

namespace quant {
namespace JAMBA_VARIANT {
namespace legacy {

// one(block, to) for each block of 32 values.
template <typename Block, typename One>
LANE_FN void each_block(const uint8_t *src, int64_t rows, int64_t n, float *dst, One one) {
    const Block *block = reinterpret_cast<const Block *>(src);
    for (int64_t b = 0; b < rows * n / 32; ++b, ++block, dst += 32) one(*block, dst);
}

static void dequantize_q8_0(const uint8_t *src, int64_t rows, int64_t n, float *dst) {
    each_block<block_q8_0>(src, rows, n, dst, [](const block_q8_0 &b, float *to) {
        const float d = to_float(b.d);
        store_scaled(load_bytes(b.qs), d, to);
        store_scaled(load_bytes(b.qs + 16), d, to + 16);
    });
}

static void dequantize_q4_0(const uint8_t *src, int64_t rows, int64_t n, float *dst) {
    each_block<block_q4_0>(src, rows, n, dst, [](const block_q4_0 &b, float *to) {
        const float d = to_float(b.d);
        const Bytes16 pairs = load_bytes(b.qs);
        store_scaled(low_nibbles(pairs) - 8, d, to);
        store_scaled(high_nibbles(pairs) - 8, d, to + 16);
    });
}

static void dequantize_q4_1(const uint8_t *src, int64_t rows, int64_t n, float *dst) {
    each_block<block_q4_1>(src, rows, n, dst, [](const block_q4_1 &b, float *to) {
        const float d = to_float(b.d), low = to_float(b.m);
        const Bytes16 pairs = load_bytes(b.qs);
        store_affine(low_nibbles(pairs), d, low, to);
        store_affine(high_nibbles(pairs), d, low, to + 16);
    });
}

static void dequantize_q5_0(const uint8_t *src, int64_t rows, int64_t n, float *dst) {
    each_block<block_q5_0>(src, rows, n, dst, [](const block_q5_0 &b, float *to) {
        const float d = to_float(b.d);
        const uint32_t fifth = read_u32(b.qh);
        const Bytes16 pairs = load_bytes(b.qs);
        store_scaled((low_nibbles(pairs) | sixteens(fifth)) - 16, d, to);
        store_scaled((high_nibbles(pairs) | sixteens(fifth >> 16)) - 16, d, to + 16);
    });
}

static void dequantize_q5_1(const uint8_t *src, int64_t rows, int64_t n, float *dst) {
    each_block<block_q5_1>(src, rows, n, dst, [](const block_q5_1 &b, float *to) {
        const float d = to_float(b.d), low = to_float(b.m);
        const uint32_t fifth = read_u32(b.qh);
        const Bytes16 pairs = load_bytes(b.qs);
        store_affine(low_nibbles(pairs) | sixteens(fifth), d, low, to);
        store_affine(high_nibbles(pairs) | sixteens(fifth >> 16), d, low, to + 16);
    });
}

}  // namespace legacy
}  // namespace JAMBA_VARIANT
}  // namespace quant
