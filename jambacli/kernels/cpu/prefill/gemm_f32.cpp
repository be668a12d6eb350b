// f32 panels at the level's vector width: packing, products, the gate.
#include "prefill/dequantize_f32.h"
#include "prefill/tiles.h"

namespace jamba {
namespace {

// f32 inputs: 16 rows of k values to [k][16], zeros up to a whole chunk.
void pack_f32(const float* const* rows, int64_t k, void* out) {
    float* panel = static_cast<float*>(out);
    alignas(64) float tile[kTile];
    for (int64_t i = 0; i < k; i += 16, panel += kTile) {
        const int64_t n = k - i < 16 ? k - i : 16;
        for (int m = 0; m < 16; ++m) {
            float* to = tile + 16 * m;
            if (!rows[m] || n < 16) std::memset(to, 0, 64);
            if (rows[m]) std::memcpy(to, rows[m] + i, static_cast<size_t>(n) * 4);
        }
        transpose_tile(tile, panel, 16);
    }
    if ((k + 15) / 16 % 2) std::memset(panel, 0, kTile * 4);
}

// The gate of an f32 panel: tiles are already [k][16 m].
void gate_f32(const float* g, const float* u, int64_t n_groups, int64_t m_groups, void* out, int64_t stride) {
    for (int64_t mg = 0; mg < m_groups; ++mg) {
        for (int64_t ng = 0; ng < n_groups; ++ng) {
            const int64_t tile = (ng * m_groups + mg) * kTile;
            float* to = static_cast<float*>(out) + mg * stride + ng * kTile;
            for (int64_t i = 0; i < kTile; i += kLanes) store(to + i, siluv(load(g + tile + i)) * load(u + tile + i));
        }
    }
}

// One microkernel of f32 panels: kRows of the 16 rows of weights times kVectors * kLanes rows of inputs, accumulators in
// registers. w: rows 32 apart inside a chunk; x: vector v at x + offset[v] + 16 k.
template <int kRows, int kVectors>
inline void micro_f32(const float* w, const float* const* x, int64_t chunks, float* const* c, bool accumulate) {
    vf acc[kRows][kVectors];
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) acc[r][v] = vf{};
    for (int64_t i = 0; i < chunks; ++i) {
        const float* wc = w + i * kChunkSize;
        for (int k = 0; k < kChunk; ++k) {
            vf b[kVectors];
            for (int v = 0; v < kVectors; ++v) b[v] = load(x[v] + i * kChunkSize + 16 * k);
            for (int r = 0; r < kRows; ++r) {
                const vf a = set1(wc[r * kChunk + k]);
                for (int v = 0; v < kVectors; ++v) acc[r][v] = fma(a, b[v], acc[r][v]);
            }
        }
    }
    for (int r = 0; r < kRows; ++r) {  // one block of k after the other: a long sum of sums loses less than one long sum
        for (int v = 0; v < kVectors; ++v) store(c[v] + 16 * r, accumulate ? load(c[v] + 16 * r) + acc[r][v] : acc[r][v]);
    }
}

// All rows of a group of weights times kVectors vectors.
template <int kRows, int kVectors>
inline void rows_f32(const float* w, int64_t n_groups, int64_t w_stride, const float* const* x, int64_t chunks, float* const* c,
                     int64_t c_stride, bool accumulate) {
    for (int64_t ng = 0; ng < n_groups; ++ng) {
        for (int r = 0; r < 16; r += kRows) {
            float* to[kVectors];
            for (int v = 0; v < kVectors; ++v) to[v] = c[v] + ng * c_stride + 16 * r;
            micro_f32<kRows, kVectors>(w + ng * w_stride + r * kChunk, x, chunks, to, accumulate);
        }
    }
}

void multiply_f32(const void* w, int64_t n_groups, int64_t w_stride, const void* x, int64_t m_groups, int64_t x_stride,
                  int64_t chunks, float* c, bool accumulate) {
#if defined(__AVX512F__)
    constexpr int kRows = 8, kMost = 3;
#elif defined(__AVX2__)
    constexpr int kRows = 4, kMost = 2;  // 8 accumulators hide the latency; 16 registers allow no more rows that divide 16
#else
    constexpr int kRows = 4, kMost = 4;
#endif
    constexpr int kSplit = 16 / kLanes;  // vectors in a group of inputs
    const int64_t vectors = m_groups * kSplit;
    for (int64_t v = 0; v < vectors;) {
        const float* from[kMost];
        float* to[kMost];
        const int take = vectors - v < kMost ? static_cast<int>(vectors - v) : kMost;
        for (int i = 0; i < take; ++i) {
            const int64_t group = (v + i) / kSplit, lane = (v + i) % kSplit * kLanes;
            from[i] = static_cast<const float*>(x) + group * x_stride + lane;
            to[i] = c + group * kTile + lane;
        }
        const float* panel = static_cast<const float*>(w);
        const int64_t c_stride = m_groups * kTile;
        if (take == kMost)
            rows_f32<kRows, kMost>(panel, n_groups, w_stride, from, chunks, to, c_stride, accumulate);
        else if (kMost > 2 && take == 2)
            rows_f32<kRows, 2>(panel, n_groups, w_stride, from, chunks, to, c_stride, accumulate);
        else
            for (int i = 0; i < take; ++i)
                rows_f32<kRows, 1>(panel, n_groups, w_stride, from + i, chunks, to + i, c_stride, accumulate);
        v += take;
    }
}

}  // namespace

namespace JAMBA_VARIANT {

const PanelOps f32_panel_ops{4, 256, f32_dequantizer, pack_f32, nothing, nothing, multiply_f32, store_tiles, gate_f32};

}  // namespace JAMBA_VARIANT
}  // namespace jamba
