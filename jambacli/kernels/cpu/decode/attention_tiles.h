// The inner loops of decode attention over a tile of keys or values, at the level's vector width.
#pragma once

#include "decode/inner_kernels.h"
#include "base/simd_convert.h"

namespace jamba {
namespace {

template <int H>
void score_heads(const float* q, int64_t ldq, const float* keys, int64_t n_keys, int64_t head_dim, float* out,
                 int64_t ld_out) {
    for (int64_t j = 0; j < n_keys; ++j) {
        const float* key = keys + j * head_dim;
        vf acc[H] = {};
        int64_t i = 0;
        for (; i + kLanes <= head_dim; i += kLanes) {
            const vf k = load(key + i);
            for (int h = 0; h < H; ++h) acc[h] = fma(load(q + h * ldq + i), k, acc[h]);
        }
        if constexpr (H == 4)
            hsum4(acc, out + j, ld_out);
        else
            for (int h = 0; h < H; ++h) out[h * ld_out + j] = hsum(acc[h]);
        if (i < head_dim)
            for (int h = 0; h < H; ++h) {
                float rest = 0.0f;
                for (int64_t r = i; r < head_dim; ++r) rest += q[h * ldq + r] * key[r];
                out[h * ld_out + j] += rest;
            }
    }
}

void scores(const float* q, int64_t ldq, int heads, const float* keys, int64_t n_keys, int64_t head_dim, float* out,
            int64_t ld_out) {
    int h = 0;
    for (; h + 4 <= heads; h += 4) score_heads<4>(q + h * ldq, ldq, keys, n_keys, head_dim, out + h * ld_out, ld_out);
    for (; h < heads; ++h) score_heads<1>(q + h * ldq, ldq, keys, n_keys, head_dim, out + h * ld_out, ld_out);
}

// V vectors of the head's dimension for H heads stay in registers while the keys go by.
template <int H, int V>
void weighted_part(const float* weights, int64_t ldw, const float* values, int64_t n_keys, int64_t head_dim, float* out,
                   int64_t ld_out) {
    vf acc[H][V];
    for (int h = 0; h < H; ++h)
        for (int v = 0; v < V; ++v) acc[h][v] = load(out + h * ld_out + v * kLanes);
    for (int64_t j = 0; j < n_keys; ++j) {
        const float* value = values + j * head_dim;
        vf x[V];
        for (int v = 0; v < V; ++v) x[v] = load(value + v * kLanes);
        for (int h = 0; h < H; ++h) {
            const vf w = set1(weights[h * ldw + j]);
            for (int v = 0; v < V; ++v) acc[h][v] = fma(w, x[v], acc[h][v]);
        }
    }
    for (int h = 0; h < H; ++h)
        for (int v = 0; v < V; ++v) store(out + h * ld_out + v * kLanes, acc[h][v]);
}

template <int H>
void weighted_heads(const float* weights, int64_t ldw, const float* values, int64_t n_keys, int64_t head_dim, float* out,
                    int64_t ld_out) {
    int64_t i = 0;
    for (; i + 4 * kLanes <= head_dim; i += 4 * kLanes)
        weighted_part<H, 4>(weights, ldw, values + i, n_keys, head_dim, out + i, ld_out);
    for (; i + kLanes <= head_dim; i += kLanes)
        weighted_part<H, 1>(weights, ldw, values + i, n_keys, head_dim, out + i, ld_out);
    for (; i < head_dim; ++i)
        for (int h = 0; h < H; ++h) {
            float acc = out[h * ld_out + i];
            for (int64_t j = 0; j < n_keys; ++j) acc += weights[h * ldw + j] * values[j * head_dim + i];
            out[h * ld_out + i] = acc;
        }
}

void weighted(const float* weights, int64_t ldw, int heads, const float* values, int64_t n_keys, int64_t head_dim,
              float* out, int64_t ld_out) {
    constexpr int kHeads = kLanes == 16 ? 4 : 2;
    int h = 0;
    for (; h + kHeads <= heads; h += kHeads)
        weighted_heads<kHeads>(weights + h * ldw, ldw, values, n_keys, head_dim, out + h * ld_out, ld_out);
    for (; h < heads; ++h)
        weighted_heads<1>(weights + h * ldw, ldw, values, n_keys, head_dim, out + h * ld_out, ld_out);
}

}  // namespace
}  // namespace jamba
