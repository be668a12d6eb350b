// Decode attention over keys and values in blocks (q8_0, q5_1, q4_0) by integer products.
//
// Scores: products of bytes with a key in each lane; queries are integers 128 * coarse + fine, as activations are
// (inner_kernels.h). Values: bytes widened to 16 bits, in pairs of keys; the weights of a block of keys, times the values'
// factors, are integers of 15 bits. A row's weights are relative to its best key of the block, so that small ones stay exact.
#include <algorithm>
#include <type_traits>

#include "decode/attention_tiles.h"

namespace jamba {
namespace {

constexpr int64_t kGroupKeys = 16;
constexpr int64_t kGroups = kBlockKeys / kGroupKeys;

// The next block's rows, prefetched evenly over `steps` steps of work: only so many misses can wait at a time.
struct Ahead {
    const Source& from;
    int64_t steps, step = 0;

    void next() {
        const int64_t begin = kBlockKeys * step / steps, end = kBlockKeys * (step + 1) / steps;
        for (int64_t j = begin; j < end; ++j) from.prefetch(j, 0, from.ahead_bytes);
        ++step;
    }
};

int64_t row_groups(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }

void pack_query(const float* q, int64_t n, uint8_t* out) {
    vf most{}, poison{};
    for (int64_t i = 0; i < n; i += kLanes) {
        most = vmax(most, vabs(load(q + i)));
        poison = fma(load(q + i), vf{}, poison);
    }
    const float top = hmax(most) + hsum(poison);  // NaN where a value is no number, and so all scores
    const vf inverse = set1(top > 0.0f ? 127.0f / top : 0.0f);
    const float factor = top / (127.0f * 128.0f);
    auto* coarse = reinterpret_cast<int8_t*>(out);
    auto* fine = coarse + n;
    for (int64_t b = 0; b < n / 32; ++b) {
        float sum = 0.0f;  // of integers: exact in any order
        for (int64_t i = 32 * b; i < 32 * (b + 1); i += kLanes) {
            const vf exact = load(q + i) * inverse;
            const vf high = store_i8(coarse + i, exact);
            const vf low = store_i8(fine + i, (exact - high) * 128.0f);
            sum += hsum(high * 128.0f + low);
        }
        const int32_t bias = -128 * static_cast<int32_t>(sum);  // keys are multiplied as 128 + key, without a sign
        memcpy(out + 2 * n + 4 * b, &bias, 4);
    }
    memcpy(out + 2 * n + n / 8, &factor, 4);
}

// Whether values are factor * level + minimum, with the minimum behind the factor. Levels are then taken less their middle, 16, and
// minimums as 16 factors more: large parts that cancel would leave the rounding of the weights.
template <class Block>
constexpr bool kHasMinimum = std::is_same_v<Block, block_q5_1>;

// A block's 32 levels as signed bytes.
SIMD_FN __m256i block_levels(const block_q8_0& b) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b.qs)); }

SIMD_FN __m256i nibble_levels(const uint8_t* qs) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(qs));
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(x, 4), x), _mm256_set1_epi8(15));
}

SIMD_FN __m256i block_levels(const block_q4_0& b) { return _mm256_sub_epi8(nibble_levels(b.qs), _mm256_set1_epi8(8)); }

SIMD_FN __m256i block_levels(const block_q5_1& b) {
    uint32_t high;
    memcpy(&high, b.qh, 4);
    return _mm256_or_si256(nibble_levels(b.qs), _mm256_maskz_set1_epi8(~high, static_cast<char>(0xf0)));
}

// The first words of stored block `b` of 16 rows from `first` on; rows from `count` on repeat the last.
template <class Block>
SIMD_FN __m512i row_words(const Source& from, int64_t first, int64_t count, int64_t b) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i last = _mm512_set1_epi32(static_cast<int>(count - 1)), start = _mm512_set1_epi32(static_cast<int>(first));
    const __m512i row = _mm512_min_epi32(_mm512_add_epi32(lanes, start), last);
    const __m512i at = _mm512_mullo_epi32(row, _mm512_set1_epi32(static_cast<int>(from.stride)));
    return _mm512_i32gather_epi32(at, from.rows + b * static_cast<int64_t>(sizeof(Block)), 1);
}

SIMD_FN vf low_halves(__m512i words) { return (vf)_mm512_cvtph_ps(_mm512_cvtepi32_epi16(words)); }
SIMD_FN vf middles(__m512i words) { return fma(low_halves(words), set1(16.0f), low_halves(_mm512_srli_epi32(words, 16))); }

// Keys of a block: fours of their bytes as 128 + byte, [groups, n / 4, 16 keys], and their factors and minimums [groups, n / 32,
// 16 keys].
struct ByteKeys {
    uint8_t* bytes;
    float *factors, *minimums;
};

template <class Block>
void arrange_keys(const Source& from, int64_t count, int64_t n, const ByteKeys& out) {
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    for (int64_t g = 0; g < kGroups; ++g) {
        const uint8_t* row[kGroupKeys];
        for (int64_t j = 0; j < kGroupKeys; ++j) row[j] = from.row(g * kGroupKeys + j < count ? g * kGroupKeys + j : count - 1);
        for (int64_t b = 0; b < n / 32; ++b) {
            const __m512i words = row_words<Block>(from, g * kGroupKeys, count, b);
            store(out.factors + (g * n / 32 + b) * kGroupKeys, low_halves(words));
            if constexpr (kHasMinimum<Block>) store(out.minimums + (g * n / 32 + b) * kGroupKeys, middles(words));
            // Of keys 0-7, then 8-15: fours 0-7 of two keys, four keys apart, become four i of keys 0-3, four 4 + i of keys
            // 0-3, then the same of keys 4-7.
            __m512i part[2][4];
            for (int h = 0; h < 2; ++h) {
                __m512i x[4];
                for (int j = 0; j < 4; ++j) {
                    const auto half = [&](int key) { return block_levels(reinterpret_cast<const Block*>(row[8 * h + key])[b]); };
                    x[j] = _mm512_inserti64x4(_mm512_castsi256_si512(half(j)), half(j + 4), 1);
                }
                const __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b4 = _mm512_unpackhi_epi32(x[0], x[1]);
                const __m512i c = _mm512_unpacklo_epi32(x[2], x[3]), d = _mm512_unpackhi_epi32(x[2], x[3]);
                part[h][0] = _mm512_unpacklo_epi64(a, c);
                part[h][1] = _mm512_unpackhi_epi64(a, c);
                part[h][2] = _mm512_unpacklo_epi64(b4, d);
                part[h][3] = _mm512_unpackhi_epi64(b4, d);
            }
            uint8_t* to = out.bytes + (g * n / 4 + 8 * b) * 64;
            for (int i = 0; i < 4; ++i) {
                _mm512_store_si512(to + 64 * i, _mm512_xor_si512(sign, _mm512_shuffle_i64x2(part[0][i], part[1][i], 0x88)));
                _mm512_store_si512(to + 64 * (4 + i), _mm512_xor_si512(sign, _mm512_shuffle_i64x2(part[0][i], part[1][i], 0xdd)));
            }
        }
    }
}

// Scores of R rows and the block's keys.
template <int R, class Block>
void score_bytes(const uint8_t* packed, int64_t n, const ByteKeys& keys, float* s, Ahead& ahead) {
    const int64_t row_bytes = packed_query_bytes(n), blocks = n / 32;
    const auto word = [&](int r, int64_t at) {
        int32_t x;
        memcpy(&x, packed + r * row_bytes + at, 4);
        return x;
    };
    vf sums[R][kGroups] = {};
    for (int64_t b = 0; b < blocks; ++b) {
        __m512i high[R][kGroups], low[R][kGroups];
        for (int r = 0; r < R; ++r)
            for (int g = 0; g < kGroups; ++g) {
                high[r][g] = _mm512_setzero_si512();
                low[r][g] = _mm512_set1_epi32(word(r, 2 * n + 4 * b));
            }
        for (int64_t i = 8 * b; i < 8 * (b + 1); ++i) {
            __m512i key[kGroups];
            for (int g = 0; g < kGroups; ++g) key[g] = _mm512_load_si512(keys.bytes + (g * n / 4 + i) * 64);
            for (int r = 0; r < R; ++r) {
                const __m512i coarse = _mm512_set1_epi32(word(r, 4 * i)), fine = _mm512_set1_epi32(word(r, n + 4 * i));
                for (int g = 0; g < kGroups; ++g) {
                    high[r][g] = _mm512_dpbusd_epi32(high[r][g], key[g], coarse);
                    low[r][g] = _mm512_dpbusd_epi32(low[r][g], key[g], fine);
                }
            }
        }
        for (int g = 0; g < kGroups; ++g) {
            const vf factor = load(keys.factors + (g * blocks + b) * kGroupKeys);
            for (int r = 0; r < R; ++r) {
                const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high[r][g], 7), low[r][g]);
                sums[r][g] = fma((vf)_mm512_cvtepi32_ps(sum), factor, sums[r][g]);
            }
            if constexpr (kHasMinimum<Block>) {
                const vf minimum = load(keys.minimums + (g * blocks + b) * kGroupKeys);
                for (int r = 0; r < R; ++r)  // the bias is -128 times the sum of the query's integers
                    sums[r][g] = fma(set1(static_cast<float>(word(r, 2 * n + 4 * b) / -128)), minimum, sums[r][g]);
            }
        }
        ahead.next();
    }
    for (int r = 0; r < R; ++r) {
        float factor;
        memcpy(&factor, packed + r * row_bytes + 2 * n + n / 8, 4);
        for (int g = 0; g < kGroups; ++g) store(s + r * kBlockKeys + g * kGroupKeys, sums[r][g] * factor);
    }
}

// Values of a block: pairs of two keys' values, int16 [n / 32, key pairs, 2 vectors], and their factors and minimums [n / 32,
// keys]; room for the weights of kTileRows rows, int16 [n / 32, rows, keys], for what one level of them is worth, [n / 32], and
// for the sums of weighted minimums, [n / 32, rows].
struct PairedValues {
    int16_t* pairs;
    float *factors, *minimums;
    int16_t* levels;
    float *steps, *offsets;
};

constexpr int64_t kPairs = kBlockKeys / 2;
constexpr int64_t kBlockLevels = kTileRows * kBlockKeys;

template <class Block>
void pair_values(const Source& from, int64_t count, int64_t n, const PairedValues& out) {
    for (int64_t p = 0; p < kPairs; ++p) {
        const auto widened = [&](int64_t key, int64_t b) {
            return _mm512_cvtepi8_epi16(block_levels(reinterpret_cast<const Block*>(from.row(std::min(key, count - 1)))[b]));
        };
        for (int64_t b = 0; b < n / 32; ++b) {
            const __m512i even = widened(2 * p, b), odd = widened(2 * p + 1, b);
            int16_t* to = out.pairs + (b * kPairs + p) * 64;
            _mm512_store_si512(to, _mm512_unpacklo_epi16(even, odd));
            _mm512_store_si512(to + 32, _mm512_unpackhi_epi16(even, odd));
        }
    }
    for (int64_t b = 0; b < n / 32; ++b)
        for (int64_t g = 0; g < kGroups; ++g) {
            const __m512i words = row_words<Block>(from, g * kGroupKeys, count, b);
            store(out.factors + b * kBlockKeys + g * kGroupKeys, low_halves(words));
            if constexpr (kHasMinimum<Block>) store(out.minimums + b * kBlockKeys + g * kGroupKeys, middles(words));
        }
}

// The weights of R rows times the factors of the first `seen` keys as integers. Factors of other keys do not count: results
// are those of a shorter block.
template <int R, class Block>
void weight_levels(const float* s, int64_t seen, int64_t n, const PairedValues& out) {
    constexpr float kLevels = 32767.0f;
    for (int64_t b = 0; b < n / 32; ++b) {
        const auto counted = [&](const float* of, int64_t g) {
            const auto mask = static_cast<__mmask16>((1u << std::clamp<int64_t>(seen - g * kGroupKeys, 0, kGroupKeys)) - 1);
            return (vf)_mm512_maskz_load_ps(mask, of + b * kBlockKeys + g * kGroupKeys);
        };
        vf factor[kGroups];
        for (int64_t g = 0; g < kGroups; ++g) factor[g] = counted(out.factors, g);
        if constexpr (kHasMinimum<Block>) {
            for (int r = 0; r < R; ++r) {
                vf sum{};
                for (int64_t g = 0; g < kGroups; ++g)
                    sum = fma(load(s + r * kBlockKeys + g * kGroupKeys), counted(out.minimums, g), sum);
                out.offsets[b * kTileRows + r] = hsum(sum);
            }
        }
        const float most = std::max(hmax(vmax(vabs(factor[0]), vabs(factor[1]))), 1e-30f);
        out.steps[b] = most / kLevels;
        for (int g = 0; g < kGroups; ++g) factor[g] = factor[g] * set1(kLevels / most);
        for (int r = 0; r < R; ++r)
            for (int g = 0; g < kGroups; ++g) {
                const vf level = load(s + r * kBlockKeys + g * kGroupKeys) * factor[g];
                _mm256_store_si256(reinterpret_cast<__m256i*>(out.levels + b * kBlockLevels + r * kBlockKeys + g * kGroupKeys),
                                   _mm512_cvtepi32_epi16(_mm512_cvtps_epi32((__m512)level)));
            }
    }
}

// B blocks of 32 values from block `b` on, weighted, added to R rows. `scale` of each row: what its weights were divided by.
template <int R, int B, class Block>
void weigh_blocks(const PairedValues& from, int64_t b, const float* scale, int64_t depth, float* values) {
    __m512i low[B][R], high[B][R];
    for (int i = 0; i < B; ++i)
        for (int r = 0; r < R; ++r) low[i][r] = high[i][r] = _mm512_setzero_si512();
#pragma GCC unroll 16
    for (int64_t p = 0; p < kPairs; ++p)
        for (int i = 0; i < B; ++i) {
            const int16_t* pair = from.pairs + ((b + i) * kPairs + p) * 64;
            const __m512i x = _mm512_load_si512(pair), y = _mm512_load_si512(pair + 32);
            for (int r = 0; r < R; ++r) {
                int32_t two;
                memcpy(&two, from.levels + (b + i) * kBlockLevels + r * kBlockKeys + 2 * p, 4);
                low[i][r] = _mm512_dpwssd_epi32(low[i][r], x, _mm512_set1_epi32(two));
                high[i][r] = _mm512_dpwssd_epi32(high[i][r], y, _mm512_set1_epi32(two));
            }
        }
    // Each quarter of `low` has values 8 q to 8 q + 3 of the block, each of `high` the next four.
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    for (int i = 0; i < B; ++i)
        for (int r = 0; r < R; ++r) {
            float* to = values + r * depth + 32 * (b + i);
            const vf step = set1(scale[r] * from.steps[b + i]);
            const auto add = [&](__m512i order, float* at) {
                const __m512i sums = _mm512_permutex2var_epi32(low[i][r], order, high[i][r]);
                vf before = load(at);
                if constexpr (kHasMinimum<Block>) before = before + set1(scale[r] * from.offsets[(b + i) * kTileRows + r]);
                store(at, fma((vf)_mm512_cvtepi32_ps(sums), step, before));
            };
            add(first, to);
            add(second, to + kLanes);
        }
}

template <class Block>
void weigh_bytes(const KeyBlock& b, const Source& values, const QueryRows& r, uint8_t* tile, float* s) {
    const int64_t n = r.head_dim, rows = r.tokens * r.group;
    float* factors = reinterpret_cast<float*>(tile + 2 * kBlockKeys * n);
    float* minimums = factors + kBlockKeys * (n / 32);
    int16_t* levels = reinterpret_cast<int16_t*>(minimums + kBlockKeys * (n / 32));
    float* steps = reinterpret_cast<float*>(levels + kBlockLevels * (n / 32));
    const PairedValues paired{reinterpret_cast<int16_t*>(tile), factors, minimums, levels, steps, steps + n / 32};
    pair_values<Block>(values, b.count, n, paired);
    Ahead ahead{values, row_groups(rows) * (n / 32)};
    const auto seen_by = [&](int64_t row) { return std::min(b.visible + row / r.group, b.count); };
    const auto weigh = [&](int64_t begin, int64_t end) {
        by_rows(begin, end, [&](auto count, int64_t first) {
            constexpr int R = decltype(count)::value;
            float scale[R];
            for (int i = 0; i < R; ++i) {
                const int64_t row = first + i;
                float *own = s + row * kBlockKeys, *at = r.values + row * r.depth;
                const float top = top_score(own, seen_by(row));
                raise_best(top, r.best + row, r.sum + row, at, r.depth);
                scale[i] = exp2v(set1(top - r.best[row]))[0];
                r.sum[row] += weights_of_scores(own, top) * scale[i];
            }
            weight_levels<R, Block>(s + first * kBlockKeys, seen_by(first), n, paired);
            float* to = r.values + first * r.depth;
            int64_t b32 = 0;
            for (; b32 + 2 <= n / 32; b32 += 2) {
                ahead.next(), ahead.next();
                weigh_blocks<R, 2, Block>(paired, b32, scale, r.depth, to);
            }
            if (b32 < n / 32) weigh_blocks<R, 1, Block>(paired, b32, scale, r.depth, to);
        });
    };
    if (b.visible >= b.count) return weigh(0, rows);
    for (int64_t t = 0; t < r.tokens; ++t)  // each token sees one more key
        if (b.visible + t > 0) weigh(t * r.group, (t + 1) * r.group);
}

template <class Block>
void attend_blocks(const KeyBlock& b, const QueryRows& r, float* work) {
    const int64_t n = r.head_dim, bytes = kv_bytes(b.type, n), next = kBlockKeys * b.stride;
    float *tile = work, *s = work + kBlockKeys * r.depth;
    const ByteKeys arranged{reinterpret_cast<uint8_t*>(tile), tile + kBlockKeys * n / 4, tile + kBlockKeys * (n / 4 + n / 32)};
    const Source keys{b.k, b.stride, b.k + next, bytes}, values{b.v, b.stride, b.v + next, bytes};
    arrange_keys<Block>(keys, b.count, n, arranged);
    Ahead ahead{keys, row_groups(r.tokens * r.group) * (n / 32)};
    by_rows(0, r.tokens * r.group, [&](auto rows, int64_t i) {
        score_bytes<decltype(rows)::value, Block>(r.packed + i * packed_query_bytes(n), n, arranged, s + i * kBlockKeys, ahead);
    });
    weigh_bytes<Block>(b, values, r, reinterpret_cast<uint8_t*>(tile), s);
}

void attend_bytes(const KeyBlock& b, const QueryRows& r, float* work) {
    if (!r.packed) return attend(b, r, work);
    if (b.type == kQ8_0) return attend_blocks<block_q8_0>(b, r, work);
    if (b.type == kQ5_1) return attend_blocks<block_q5_1>(b, r, work);
    if (b.type == kQ4_0) return attend_blocks<block_q4_0>(b, r, work);
    attend(b, r, work);
}

}  // namespace

namespace vnni {

void fill_attention(InnerKernels& ops) {
    ops.attend = attend_bytes;
    ops.pack_query = pack_query;
}

}  // namespace vnni
}  // namespace jamba
