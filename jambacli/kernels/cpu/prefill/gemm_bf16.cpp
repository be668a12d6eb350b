// bf16 panels on AVX-512: packing pairs, the gate, and the product by vdpbf16ps. AMX shares all but the product.
#include "prefill/bf16.h"
#include "prefill/gemm_amx.h"
#include "prefill/tiles.h"

namespace jamba {
namespace {

void pack_bf16(const float* const* rows, int64_t k, void* out) {
    __m512i* panel = static_cast<__m512i*>(out);
    for (int64_t i = 0; i < k; i += kChunk, panel += 16) {
        __m512i r[16];
        for (int m = 0; m < 16; ++m)
            r[m] = rows[m] ? to_bf16(load_part(rows[m] + i + 16, k - i - 16), load_part(rows[m] + i, k - i))
                           : _mm512_setzero_si512();
        transpose16(r);
        for (int pair = 0; pair < 16; ++pair) _mm512_store_si512(panel + pair, r[pair]);
    }
}

void gate_bf16(const float* g, const float* u, int64_t n_groups, int64_t m_groups, void* out, int64_t stride) {
    for (int64_t mg = 0; mg < m_groups; ++mg) {
        uint16_t* to = static_cast<uint16_t*>(out) + mg * stride;
        for (int64_t ng = 0; ng < n_groups; ++ng) {
            const int64_t tile = (ng * m_groups + mg) * kTile;
            for (int i = 0; i < 16; i += 2, to += 32) {
                const vf low = siluv(load(g + tile + 16 * i)) * load(u + tile + 16 * i);
                const vf high = siluv(load(g + tile + 16 * i + 16)) * load(u + tile + 16 * i + 16);
                _mm512_storeu_si512(to, pair_rows(low, high));
            }
        }
    }
}

// kRows rows of weights times kGroups groups of inputs, two values of k at a time.
template <int kRows, int kGroups>
inline void micro(const uint16_t* w, const uint16_t* x, int64_t x_stride, int64_t chunks, float* c, bool accumulate) {
    __m512 acc[kRows][kGroups];
    for (int r = 0; r < kRows; ++r)
        for (int g = 0; g < kGroups; ++g)
            acc[r][g] = accumulate ? _mm512_loadu_ps(c + g * kTile + 16 * r) : _mm512_setzero_ps();
    for (int64_t i = 0; i < chunks; ++i, w += kChunkSize, x += kChunkSize) {
        for (int pair = 0; pair < 16; ++pair) {
            __m512i b[kGroups];
            for (int g = 0; g < kGroups; ++g) b[g] = _mm512_loadu_si512(x + g * x_stride + 32 * pair);
            for (int r = 0; r < kRows; ++r) {
                int32_t two;
                std::memcpy(&two, w + r * kChunk + 2 * pair, 4);
                const __m512i a = _mm512_set1_epi32(two);
                for (int g = 0; g < kGroups; ++g) acc[r][g] = _mm512_dpbf16_ps(acc[r][g], (__m512bh)a, (__m512bh)b[g]);
            }
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int g = 0; g < kGroups; ++g) _mm512_storeu_ps(c + g * kTile + 16 * r, acc[r][g]);
}

template <int kGroups>
void columns(const uint16_t* w, int64_t n_groups, int64_t w_stride, const uint16_t* x, int64_t x_stride, int64_t chunks,
             float* c, int64_t c_stride, bool accumulate) {
    for (int64_t ng = 0; ng < n_groups; ++ng, w += w_stride, c += c_stride) {
        micro<8, kGroups>(w, x, x_stride, chunks, c, accumulate);
        micro<8, kGroups>(w + 8 * kChunk, x, x_stride, chunks, c + 8 * 16, accumulate);
    }
}

void multiply_bf16(const void* w, int64_t n_groups, int64_t w_stride, const void* x, int64_t m_groups, int64_t x_stride,
                   int64_t chunks, float* c, bool accumulate) {
    const uint16_t* weights = static_cast<const uint16_t*>(w);
    const uint16_t* inputs = static_cast<const uint16_t*>(x);
    const int64_t c_stride = m_groups * kTile;
    for (int64_t mg = 0; mg < m_groups;) {
        const int64_t left = m_groups - mg, take = left == 4 ? 2 : left < 3 ? left : 3;  // 4 is 2 + 2, not 3 + 1
        const uint16_t* from = inputs + mg * x_stride;
        float* to = c + mg * kTile;
        if (take == 3)
            columns<3>(weights, n_groups, w_stride, from, x_stride, chunks, to, c_stride, accumulate);
        else if (take == 2)
            columns<2>(weights, n_groups, w_stride, from, x_stride, chunks, to, c_stride, accumulate);
        else
            columns<1>(weights, n_groups, w_stride, from, x_stride, chunks, to, c_stride, accumulate);
        mg += take;
    }
}

}  // namespace

namespace bf16 {

const PanelOps panel_ops{2, 256, bf16_dequantizer, pack_bf16, nothing, nothing, multiply_bf16, store_tiles, gate_bf16};

}  // namespace bf16

namespace amx {

const PanelOps panel_ops{2,     512,   bf16::bf16_dequantizer, pack_bf16, enter,
                         leave, multiply, store_tiles,         gate_bf16};

}  // namespace amx
}  // namespace jamba
