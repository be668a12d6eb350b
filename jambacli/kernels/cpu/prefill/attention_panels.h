// Blockwise softmax and the packing of keys and values, at the level's vector width.
#pragma once

#include "prefill/attention.h"
#include "prefill/tiles.h"

namespace jamba {
namespace {

constexpr float kHidden = -1e30f;  // a masked score: finite, so that no maximum is infinite and no difference is NaN

// f32 panels: packed weights of the values' product are the rows of scores themselves.
struct EmitF32 {
    static constexpr int kRows = 1;
    static void put(const vf* rows, void* out, int64_t key, int lane) { store(static_cast<float*>(out) + key * 16 + lane, rows[0]); }
};

template <class Emit>
void softmax_block(const Softmax& s) {
    const int64_t keys = s.key_groups * 16, between = s.m_groups * kTile;
    for (int64_t mg = 0; mg < s.m_groups; ++mg) {
        uint8_t* weights = static_cast<uint8_t*>(s.weights) + mg * s.weights_stride * (4 / Emit::kRows);
        for (int lane = 0; lane < 16; lane += kLanes) {
            float* column = s.scores + mg * kTile + lane;
            float *best = s.best + mg * 16 + lane, *total = s.total + mg * 16 + lane;
            const auto at = [&](int64_t key) { return column + key / 16 * between + key % 16 * 16; };
            const vf before = load(best), last = load(s.last + mg * 16 + lane);
            vf top = before;
            if (s.masked) {
                for (int64_t key = 0; key < keys; ++key) {
                    const vf visible = load(at(key));
                    const vf number = set1(key < s.n_keys ? static_cast<float>(s.first_key + key) : 1e30f);
                    const vf x = number > last ? set1(kHidden) : visible;
                    store(at(key), x);
                    top = vmax(top, x);
                }
            } else {
                for (int64_t key = 0; key < keys; ++key) top = vmax(top, load(at(key)));
            }
            const vf shift = top * s.scale;
            vf sum{};
            for (int64_t key = 0; key < keys; key += Emit::kRows) {
                vf e[Emit::kRows];
                for (int i = 0; i < Emit::kRows; ++i) {
                    e[i] = exp2v(fma(load(at(key + i)), set1(s.scale), -shift));
                    sum = sum + e[i];
                }
                Emit::put(e, weights, key, lane);
            }
            const vf shrink = exp2v(fma(before, set1(s.scale), -shift));
            store(best, top);
            store(total, fma(load(total), shrink, sum));
            bool same = true;
            for (int i = 0; i < kLanes; ++i) same &= before[i] == top[i];
            if (same) continue;
            for (int64_t v = 0; v < s.value_groups; ++v)
                for (int i = 0; i < 16; ++i) {
                    float* p = s.out + v * between + mg * kTile + 16 * i + lane;
                    store(p, load(p) * shrink);
                }
        }
    }
}

inline void finish_block(float* out, int64_t value_groups, int64_t m_groups, const float* total) {
    for (int64_t v = 0; v < value_groups; ++v)
        for (int64_t mg = 0; mg < m_groups; ++mg)
            for (int i = 0; i < 16; ++i)
                for (int lane = 0; lane < 16; lane += kLanes) {
                    float* p = out + (v * m_groups + mg) * kTile + 16 * i + lane;
                    store(p, load(p) / load(total + mg * 16 + lane));
                }
}

inline void keys_f32(const float* rows, int64_t count, int64_t n, void* out, int64_t stride) {
    for (int64_t j = 0; j < 32; ++j) {
        float* to = static_cast<float*>(out) + j / 16 * stride + j % 16 * kChunk;
        for (int64_t i = 0; i < n; i += kChunk, to += kChunkSize)
            for (int64_t l = 0; l < kChunk; l += kLanes) store(to + l, j < count ? load_part(rows + j * n + i + l, n - i - l) : vf{});
    }
}

// 16 columns from `first` on of 16 rows, to rows of a tile; what does not exist is zero.
inline void turn_columns(const float* rows, int64_t count, int64_t n, int64_t first, float* out, int64_t stride) {
    alignas(64) float tile[kTile];
    for (int64_t j = 0; j < 16; ++j)
        for (int l = 0; l < 16; l += kLanes)
            store(tile + 16 * j + l, j < count ? load_part(rows + j * n + first + l, n - first - l) : vf{});
    transpose_tile(tile, out, stride);
}

inline void values_f32(const float* rows, int64_t count, int64_t n, void* out, int64_t stride) {
    float* to = static_cast<float*>(out);
    for (int64_t first = 0; first < n; first += 16, to += stride) {
        turn_columns(rows, count, n, first, to, kChunk);
        turn_columns(rows + 16 * n, count - 16, n, first, to + 16, kChunk);
    }
}

}  // namespace
}  // namespace jamba
