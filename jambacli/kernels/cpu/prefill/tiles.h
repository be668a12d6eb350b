// 16 x 16 tiles of floats at the level's vector width: transposing them, storing products.
#pragma once

#include "prefill/gemm.h"
#include "base/simd.h"

namespace jamba {
namespace {

// dst[j][i] = src[i][j] of a 16 x 16 tile; src rows 16 apart, dst rows `stride` apart.
#if defined(__AVX512F__)
inline void transpose16(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {  // r[4 g + i] holds columns i, i + 4, ... of rows 4 g on, in its four quarters
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 8] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 4], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 4], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0xdd);
    }
}

inline void transpose_tile(const float* src, float* dst, int64_t stride) {
    __m512i r[16];
    for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(src + 16 * i);
    transpose16(r);
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(dst + stride * i, r[i]);
}
#elif defined(__AVX2__)
inline void transpose_tile(const float* src, float* dst, int64_t stride) {
    for (int a = 0; a < 16; a += 8) {
        for (int c = 0; c < 16; c += 4) {  // four columns of eight rows; halves are joined as they are loaded
            __m256 r[4], t[4];
            for (int i = 0; i < 4; ++i) {
                const float* p = src + 16 * (a + i) + c;
                r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 64), 1);
            }
            for (int i = 0; i < 4; i += 2) {
                t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
                t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
            }
            for (int i = 0; i < 2; ++i) {
                _mm256_storeu_ps(dst + stride * (c + 2 * i) + a, _mm256_shuffle_ps(t[i], t[i + 2], 0x44));
                _mm256_storeu_ps(dst + stride * (c + 2 * i + 1) + a, _mm256_shuffle_ps(t[i], t[i + 2], 0xee));
            }
        }
    }
}
#else
inline void transpose_tile(const float* src, float* dst, int64_t stride) {
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) dst[stride * j + i] = src[16 * i + j];
}
#endif

inline void store_tiles(const float* c, int64_t n_groups, int64_t m_groups, int64_t n_valid, int64_t m_valid, const Output& to) {
    alignas(64) float turned[kTile];
    for (int64_t mg = 0; mg < m_groups && mg * 16 < m_valid; ++mg) {
        const int64_t n_rows = m_valid - mg * 16 < 16 ? m_valid - mg * 16 : 16;
        for (int64_t ng = 0; ng < n_groups && ng * 16 < n_valid; ++ng) {
            const int64_t width = n_valid - ng * 16 < 16 ? n_valid - ng * 16 : 16;
            const float* tile = c + (ng * m_groups + mg) * kTile;
            if (n_rows == 16 && width == 16 && !to.rows && !to.weights) {
                transpose_tile(tile, to.out + mg * 16 * to.stride + ng * 16, to.stride);
                continue;
            }
            transpose_tile(tile, turned, 16);
            for (int64_t i = 0; i < n_rows; ++i) {
                const int64_t m = mg * 16 + i;
                float* out = to.out + (to.rows ? to.rows[m] : m) * to.stride + ng * 16;
                for (int64_t j = 0; j < width; j += kLanes) {
                    vf y = load(turned + 16 * i + j);
                    if (to.weights) y = fma(y, set1(to.weights[m]), load_part(out + j, width - j));
                    store_part(out + j, y, width - j);
                }
            }
        }
    }
}

inline void nothing() {}

}  // namespace
}  // namespace jamba
