// Decode attention over q8_0 keys: scores by products of bytes, with a key in each lane.
//
// Queries are integers 128 * coarse + fine, as activations are (inner_kernels.h). Values are weighted as at other levels.
#include "decode/attention_tiles.h"

namespace jamba {
namespace {

constexpr int64_t kGroupKeys = 16;
constexpr int64_t kGroups = kBlockKeys / kGroupKeys;

void pack_query(const float* q, int64_t n, uint8_t* out) {
    vf most{};
    for (int64_t i = 0; i < n; i += kLanes) most = vmax(most, vabs(load(q + i)));
    const float top = hmax(most);
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

// Keys of a block: fours of their bytes as 128 + byte, [groups, n / 4, 16 keys], and their factors [groups, n / 32, 16 keys].
struct ByteKeys {
    uint8_t* bytes;
    float* factors;
};

void arrange_keys(const Source& from, int64_t count, int64_t n, const ByteKeys& out) {
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    for (int64_t g = 0; g < kGroups; ++g) {
        const uint8_t* row[kGroupKeys];
        for (int64_t j = 0; j < kGroupKeys; ++j) row[j] = from.row(g * kGroupKeys + j < count ? g * kGroupKeys + j : count - 1);
        for (int64_t b = 0; b < n / 32; ++b) {
            const int64_t at = b * static_cast<int64_t>(sizeof(block_q8_0));
            alignas(32) uint16_t halves[kGroupKeys];
            for (int64_t j = 0; j < kGroupKeys; ++j) halves[j] = read_u16(row[j] + at);
            store(out.factors + (g * n / 32 + b) * kGroupKeys, load_f16(halves));
            // Of keys 0-7, then 8-15: fours 0-7 of two keys, four keys apart, become four i of keys 0-3, four 4 + i of keys
            // 0-3, then the same of keys 4-7.
            __m512i part[2][4];
            for (int h = 0; h < 2; ++h) {
                __m512i x[4];
                for (int j = 0; j < 4; ++j) {
                    const auto half = [&](int key) {
                        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row[8 * h + key] + at + 2));
                    };
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
template <int R>
void score_bytes(const uint8_t* packed, int64_t n, const ByteKeys& keys, float* s, const Source* ahead) {
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
        }
        if (ahead)
            for (int64_t j = kBlockKeys * b / blocks; j < kBlockKeys * (b + 1) / blocks; ++j)
                ahead->prefetch(j, 0, ahead->ahead_bytes);
    }
    for (int r = 0; r < R; ++r) {
        float factor;
        memcpy(&factor, packed + r * row_bytes + 2 * n + n / 8, 4);
        for (int g = 0; g < kGroups; ++g) store(s + r * kBlockKeys + g * kGroupKeys, sums[r][g] * factor);
    }
}

void attend_bytes(const KeyBlock& b, const QueryRows& r, float* work) {
    if (b.type != kQ8_0 || !r.packed) return attend(b, r, work);
    const int64_t n = r.head_dim, bytes = kv_bytes(b.type, n), next = kBlockKeys * b.stride;
    float *tile = work, *s = work + kBlockKeys * r.depth;
    const ByteKeys arranged{reinterpret_cast<uint8_t*>(tile), tile + kBlockKeys * n / 4};
    const Source keys{b.k, b.stride, b.k + next, bytes}, values{b.v, b.stride, b.v + next, bytes};
    arrange_keys(keys, b.count, n, arranged);
    by_rows(0, r.tokens * r.group, [&](auto rows, int64_t i) {
        score_bytes<decltype(rows)::value>(r.packed + i * packed_query_bytes(n), n, arranged, s + i * kBlockKeys,
                                           i ? nullptr : &keys);
    });
    weigh_scores<ByteValues>(b, values, r, tile, s);
}

}  // namespace

namespace vnni {

void fill_attention(InnerKernels& ops) {
    ops.attend = attend_bytes;
    ops.pack_query = pack_query;
}

}  // namespace vnni
}  // namespace jamba
