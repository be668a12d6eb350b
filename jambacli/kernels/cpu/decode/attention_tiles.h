// Decode attention over one block of keys and values, at the level's vector width.
//
// The first query rows convert what they read to floats; where there are more of them they leave a tile of floats for the
// others, so each key and value is read and converted once. Every score is summed in the same order and every row meets its
// keys in order, so a row's result does not depend on the rows beside it.
#pragma once

#include "decode/inner_kernels.h"
#include "base/simd_convert.h"

namespace jamba {
namespace {

constexpr int kTileRows = kLanes == 16 ? 4 : 2;  // query rows whose sums stay in registers
constexpr int kTileKeys = 4;

// kLanes times the float16 at p.
SIMD_FN vf broadcast_f16(const void* p) {
    const uint16_t half = read_u16(p);
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm256_set1_epi16(static_cast<short>(half)));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtph_ps(_mm_set1_epi16(static_cast<short>(half)));
#else
    return set1(half_to_float(half));
#endif
}

// Vectors of stored values as floats: kLanes values from value i on, a multiple of kLanes.
struct FloatValues {
    SIMD_FN vf at(const uint8_t* row, int64_t i) { return load(reinterpret_cast<const float*>(row) + i); }
};
struct HalfValues {
    SIMD_FN vf at(const uint8_t* row, int64_t i) { return load_f16(reinterpret_cast<const uint16_t*>(row) + i); }
};
struct BrainValues {
    SIMD_FN vf at(const uint8_t* row, int64_t i) { return load_bf16(reinterpret_cast<const uint16_t*>(row) + i); }
};
struct ByteValues {
    SIMD_FN vf at(const uint8_t* row, int64_t i) {
        const auto* block = reinterpret_cast<const block_q8_0*>(row) + i / 32;
        return broadcast_f16(&block->d) * load_i8(block->qs + i % 32);
    }
};

struct FourBitValues {
    SIMD_FN vf at(const uint8_t* row, int64_t i) {
        const auto* block = reinterpret_cast<const block_q4_0*>(row) + i / 32;
        return broadcast_f16(&block->d) * (load_nibbles(block->qs, i % 32) - 8.0f);
    }
};
struct FiveBitValues {
    SIMD_FN vf at(const uint8_t* row, int64_t i) {
        const auto* block = reinterpret_cast<const block_q5_1*>(row) + i / 32;
        uint32_t high;
        memcpy(&high, block->qh, 4);
        const vf level = load_nibbles(block->qs, i % 32) + load_fifth_bits(high, i % 32);
        return broadcast_f16(&block->d) * level + broadcast_f16(&block->m);
    }
};

// One row of n stored values to floats.
template <class S>
void convert_row(const uint8_t* from, int64_t n, float* out) {
    for (int64_t i = 0; i + kLanes <= n; i += kLanes) store(out + i, S::at(from, i));
}

void kv_row(const uint8_t* from, int32_t type, int64_t n, float* out) {
    if (type == kQ8_0) return convert_row<ByteValues>(from, n, out);
    if (type == kQ4_0) return convert_row<FourBitValues>(from, n, out);
    if (type == kQ5_1) return convert_row<FiveBitValues>(from, n, out);
    if (type == kF32) {
        memcpy(out, from, static_cast<size_t>(n) * sizeof(float));
        return;
    }
    const uint16_t* p = reinterpret_cast<const uint16_t*>(from);
    type == kF16 ? convert_row<HalfValues>(from, n, out) : convert_row<BrainValues>(from, n, out);
    for (int64_t i = n - n % kLanes; i < n; ++i) out[i] = type == kF16 ? half_to_float(p[i]) : bf16_to_float(p[i]);
}

// Rows of a block to floats [count, depth], zero from head_dim on.
void load_tile(const uint8_t* from, const KeyBlock& b, const QueryRows& r, float* tile) {
    for (int64_t j = 0; j < b.count; ++j) {
        kv_row(from + j * b.stride, b.type, r.head_dim, tile + j * r.depth);
        for (int64_t i = r.head_dim; i < r.depth; ++i) tile[j * r.depth + i] = 0.0f;
    }
}

// Rows that a loop reads, and bytes of rows that it prefetches meanwhile: those of the next block. Other heads' rows lie between
// them, which hardware prefetchers do not follow.
struct Source {
    const uint8_t* rows;
    int64_t stride;
    const uint8_t* ahead;  // null: nothing to prefetch
    int64_t ahead_bytes;   // of each row

    const uint8_t* row(int64_t j) const { return rows + j * stride; }
    // Into the second-level cache: the first-level one has too few misses in flight for this many.
    void prefetch(int64_t j, int64_t begin, int64_t end) const {
        for (int64_t at = begin; at < end; at += 64) __builtin_prefetch(ahead + j * stride + at, 0, 2);
    }
};

Source tile_source(const float* tile, int64_t depth) {
    return {reinterpret_cast<const uint8_t*>(tile), depth * static_cast<int64_t>(sizeof(float)), nullptr, 0};
}

// Sums of each of four vectors, in the order of hsum4(): four floats.
SIMD_FN void store_sums(const vf* x, float* out) { hsum4(x, out, 1); }

#if defined(__AVX512F__)
// The same for four rows of four: a row of four floats each, `step` floats apart.
SIMD_FN void store_sums4(const vf (*x)[kTileKeys], float* out, int64_t step) {
    const auto pairs = [](__m512 a, __m512 b) {
        return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    };
    const auto four = [&](const vf* v) {
        const __m512d ab = _mm512_castps_pd(pairs((__m512)v[0], (__m512)v[1]));
        const __m512d cd = _mm512_castps_pd(pairs((__m512)v[2], (__m512)v[3]));
        return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
    };
    const __m512 a = four(x[0]), b = four(x[1]), c = four(x[2]), d = four(x[3]);
    const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    const __m512 all = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    _mm_store_ps(out, _mm512_castps512_ps128(all));
    _mm_store_ps(out + step, _mm512_extractf32x4_ps(all, 1));
    _mm_store_ps(out + 2 * step, _mm512_extractf32x4_ps(all, 2));
    _mm_store_ps(out + 3 * step, _mm512_extractf32x4_ps(all, 3));
}
#endif

// Scores of R rows and `count` keys: s[r, j], rows kBlockKeys apart; written to a multiple of kTileKeys. Where `tile` is not
// null the keys are left there as floats.
template <int R, class S, bool Keep>
void score_rows(const float* q, const Source& from, int64_t count, int64_t depth, float* s, float* tile) {
    for (int64_t j = 0; j < count; j += kTileKeys) {
        const uint8_t* keys[kTileKeys];
        for (int k = 0; k < kTileKeys; ++k) keys[k] = from.row(j + k < count ? j + k : count - 1);
        vf acc[R][kTileKeys] = {};
        for (int64_t i = 0; i < depth; i += kLanes) {
            vf x[R];
            for (int r = 0; r < R; ++r) x[r] = load(q + r * depth + i);
            for (int k = 0; k < kTileKeys; ++k) {
                const vf key = S::at(keys[k], i);
                if (Keep) store(tile + (j + k) * depth + i, key);
                for (int r = 0; r < R; ++r) acc[r][k] = fma(x[r], key, acc[r][k]);
            }
        }
        if (from.ahead)
            for (int k = 0; k < kTileKeys; ++k) from.prefetch(j + k, 0, from.ahead_bytes);
#if defined(__AVX512F__)
        if constexpr (R == 4) {
            store_sums4(acc, s + j, kBlockKeys);
            continue;
        }
#endif
        for (int r = 0; r < R; ++r) store_sums(acc[r], s + r * kBlockKeys + j);
    }
}

// The largest of a row's `seen` scores; later ones become those of keys that are not seen.
float top_score(float* s, int64_t seen) {
    for (int64_t j = seen; j < kBlockKeys; ++j) s[j] = -1e30f;
    vf most = load(s);
    for (int64_t j = kLanes; j < kBlockKeys; j += kLanes) most = vmax(most, load(s + j));
    return hmax(most);
}

// A row's softmax is scaled to a larger best score.
void raise_best(float top, float* best, float* sum, float* values, int64_t depth) {
    if (!(top > *best)) return;
    const vf factor = exp2v(set1(*best - top));
    for (int64_t i = 0; i < depth; i += kLanes) store(values + i, load(values + i) * factor);
    *sum *= factor[0];
    *best = top;
}

// A row's scores become weights 2^(score - from). Returns their sum.
float weights_of_scores(float* s, float from) {
    vf total{};
    const vf shift = set1(from);
    for (int64_t j = 0; j < kBlockKeys; j += kLanes) {
        const vf weight = exp2v(load(s + j) - shift);
        store(s + j, weight);
        total = total + weight;
    }
    return hsum(total);
}

// One row's scores of `seen` keys become weights, and its softmax moves on.
void softmax_row(float* s, int64_t seen, float* best, float* sum, float* values, int64_t depth) {
    raise_best(top_score(s, seen), best, sum, values, depth);
    *sum += weights_of_scores(s, *best);
}

// V vectors of the head's dimension, from value i on, for R rows stay in registers while the keys go by.
template <int R, int V, class S, bool Keep>
void weigh_part(const float* s, const Source& from, int64_t count, int64_t depth, int64_t i, float* values, float* tile) {
    vf acc[R][V];
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) acc[r][v] = load(values + r * depth + i + v * kLanes);
    const int64_t begin = from.ahead_bytes * i / depth, end = from.ahead_bytes * (i + V * kLanes) / depth;
    for (int64_t j = 0; j < count; ++j) {
        vf x[V];
        for (int v = 0; v < V; ++v) {
            x[v] = S::at(from.row(j), i + v * kLanes);
            if (Keep) store(tile + j * depth + i + v * kLanes, x[v]);
        }
        for (int r = 0; r < R; ++r) {
            const vf weight = set1(s[r * kBlockKeys + j]);
            for (int v = 0; v < V; ++v) acc[r][v] = fma(weight, x[v], acc[r][v]);
        }
        if (from.ahead) from.prefetch(j, begin, end);
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) store(values + r * depth + i + v * kLanes, acc[r][v]);
}

// values[r] += sum over j of s[r, j] * row j, keys in order. The rows are left in `tile` as score_rows() does.
template <int R, class S, bool Keep>
void weigh_rows(const float* s, const Source& from, int64_t count, int64_t depth, float* values, float* tile) {
    int64_t i = 0;
    for (; i + 4 * kLanes <= depth; i += 4 * kLanes) weigh_part<R, 4, S, Keep>(s, from, count, depth, i, values, tile);
    for (; i < depth; i += kLanes) weigh_part<R, 1, S, Keep>(s, from, count, depth, i, values, tile);
}

// body(R, first row) for rows [begin, end) in groups of R = kTileRows, then the rest.
template <class F>
SIMD_FN void by_rows(int64_t begin, int64_t end, F&& body) {
    int64_t r = begin;
    for (; r + kTileRows <= end; r += kTileRows) body(Constant<kTileRows>{}, r);
    if (kTileRows > 2 && end - r == 3) return body(Constant<3>{}, r);
    if (kTileRows > 2 && end - r == 2) return body(Constant<2>{}, r);
    if (end > r) body(Constant<1>{}, r);
}

// All rows' scores of the block's keys, read through S.
template <class S>
void score_block(const Source& from, int64_t count, const QueryRows& r, int64_t rows, float* s, float* tile) {
    if (rows <= kTileRows)
        return by_rows(0, rows, [&](auto n, int64_t) {
            score_rows<decltype(n)::value, S, false>(r.q, from, count, r.depth, s, nullptr);
        });
    score_rows<kTileRows, S, true>(r.q, from, count, r.depth, s, tile);
    by_rows(kTileRows, rows, [&](auto n, int64_t i) {
        score_rows<decltype(n)::value, FloatValues, false>(r.q + i * r.depth, tile_source(tile, r.depth), count, r.depth,
                                                           s + i * kBlockKeys, nullptr);
    });
}

// `count` values of the block, weighted, added to rows [first, first + rows).
template <class S>
void weigh_block(const Source& from, int64_t count, const QueryRows& r, int64_t first, int64_t rows, const float* s, float* tile) {
    s += first * kBlockKeys;
    float* values = r.values + first * r.depth;
    if (rows <= kTileRows)
        return by_rows(0, rows, [&](auto n, int64_t) {
            weigh_rows<decltype(n)::value, S, false>(s, from, count, r.depth, values, nullptr);
        });
    weigh_rows<kTileRows, S, true>(s, from, count, r.depth, values, tile);
    by_rows(kTileRows, rows, [&](auto n, int64_t i) {
        weigh_rows<decltype(n)::value, FloatValues, false>(s + i * kBlockKeys, tile_source(tile, r.depth), count, r.depth,
                                                           values + i * r.depth, nullptr);
    });
}

// From the scores on: all rows' softmax, and the weighted values.
template <class S>
void weigh_scores(const KeyBlock& b, const Source& values, const QueryRows& r, float* tile, float* s) {
    const int64_t rows = r.tokens * r.group;
    for (int64_t i = 0; i < rows; ++i) {
        const int64_t seen = b.visible + i / r.group;
        if (seen > 0)
            softmax_row(s + i * kBlockKeys, seen < b.count ? seen : b.count, r.best + i, r.sum + i, r.values + i * r.depth, r.depth);
    }
    if (b.visible >= b.count) return weigh_block<S>(values, b.count, r, 0, rows, s, tile);
    for (int64_t t = 0; t < r.tokens; ++t) {  // each token sees one more key
        const int64_t seen = b.visible + t < b.count ? b.visible + t : b.count;
        if (seen > 0) weigh_block<S>(values, seen, r, t * r.group, r.group, s, tile);
    }
}

template <class S>
void attend_through(const KeyBlock& b, const Source& keys, const Source& values, const QueryRows& r, float* tile, float* s) {
    score_block<S>(keys, b.count, r, r.tokens * r.group, s, tile);
    weigh_scores<S>(b, values, r, tile, s);
}

void attend(const KeyBlock& b, const QueryRows& r, float* work) {
    float *tile = work, *s = work + kBlockKeys * r.depth;
    const int64_t bytes = kv_bytes(b.type, r.head_dim), next = kBlockKeys * b.stride;
    if (r.head_dim % 32) {  // no whole vectors
        float* keys = s + kBlockKeys * r.tokens * r.group;
        load_tile(b.k, b, r, keys);
        float* values = keys + kBlockKeys * r.depth;
        load_tile(b.v, b, r, values);
        return attend_through<FloatValues>(b, tile_source(keys, r.depth), tile_source(values, r.depth), r, tile, s);
    }
    const Source keys{b.k, b.stride, b.k + next, bytes}, values{b.v, b.stride, b.v + next, bytes};
    if (b.type == kF16) return attend_through<HalfValues>(b, keys, values, r, tile, s);
    if (b.type == kBF16) return attend_through<BrainValues>(b, keys, values, r, tile, s);
    if (b.type == kQ8_0) return attend_through<ByteValues>(b, keys, values, r, tile, s);
    if (b.type == kQ4_0) return attend_through<FourBitValues>(b, keys, values, r, tile, s);
    if (b.type == kQ5_1) return attend_through<FiveBitValues>(b, keys, values, r, tile, s);
    attend_through<FloatValues>(b, keys, values, r, tile, s);
}

}  // namespace
}  // namespace jamba
