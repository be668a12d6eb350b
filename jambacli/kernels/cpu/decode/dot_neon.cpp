// Block products for arm64: SDOT, four products a lane; at level i8mm SMMLA too, two rows with two tokens at once.
//
// Order of the arithmetic for one output, the same for either instruction and any number of tokens: the sum of a group's products
// is an integer; those of four groups are the lanes of a vector, which is scaled and added to one float accumulator. Offsets are
// taken from it too; one reduction at the end.
#include "base/unpack_neon.h"
#include "decode/inner_kernels.h"

namespace jamba {
namespace {

constexpr int kMost = 8;  // tokens for which a block is unpacked once

// Where a token's activations are.
template <class Fmt>
struct Token {
    const int8_t *q = nullptr, *fine = nullptr;
    const float *d = nullptr, *sums = nullptr, *lost = nullptr;  // of groups
    Token() = default;
    Token(const Act& act, int64_t token, bool precise) {
        constexpr int kGroup = Fmt::kGroup;
        q = act.q + token * act.padded;
        if (precise) fine = act.fine + token * act.padded;
        d = (kGroup == 32 ? act.d : act.d16) + token * (act.padded / kGroup);
        sums = (kGroup == 32 ? act.sum32 : act.sum16) + token * (act.padded / kGroup);
        lost = act.lost32 + token * (act.padded / 32);
    }
};

// The sum of an output so far, and the only float arithmetic that makes it.
struct Sum {
    float32x4_t value;

    template <class Fmt>
    inline void add(int32x4_t groups, const Factors& f, const Token<Fmt>& a, int first, int64_t b) {
        const int64_t at = 256 / Fmt::kGroup * b + first;
        value = vfmaq_f32(value, vcvtq_f32_s32(groups), vmulq_f32(vld1q_f32(f.scale + first), vld1q_f32(a.d + at)));
        if constexpr (Fmt::kOffset) value = vfmsq_f32(value, vld1q_f32(f.offset + first), vld1q_f32(a.sums + at));
        if constexpr (Fmt::kMiddle != 0.0f) {
            const float32x4_t middle = vmulq_n_f32(vld1q_f32(f.scale + first), Fmt::kMiddle);
            value = vfmaq_f32(value, vsubq_f32(middle, vld1q_f32(f.offset + first)), vld1q_f32(a.lost + at));
        }
    }
    inline float total() const { return vaddvq_f32(value); }
};

// The sums of four groups of products, from group `first` on.
template <class Fmt>
inline int32x4_t four_sums(const int8x16_t* w, const int8_t* q, int first) {
    constexpr int kVectors = Fmt::kGroup / 16;
    int32x4_t s[4];
    for (int g = 0; g < 4; ++g) {
        const int at = kVectors * (first + g);
        s[g] = vdotq_s32(vdupq_n_s32(0), w[at], vld1q_s8(q + 16 * at));
        if constexpr (kVectors == 2) s[g] = vdotq_s32(s[g], w[at + 1], vld1q_s8(q + 16 * at + 16));
    }
    return vpaddq_s32(vpaddq_s32(s[0], s[1]), vpaddq_s32(s[2], s[3]));
}

// A block of a row with one token.
template <class Fmt, bool kPrecise>
inline void one_by_one(const int8x16_t* w, const Factors& f, const Token<Fmt>& a, int64_t b, Sum& sum) {
    for (int first = 0; first < 256 / Fmt::kGroup; first += 4) {
        int32x4_t groups = four_sums<Fmt>(w, a.q + 256 * b, first);
        if constexpr (kPrecise) groups = vaddq_s32(vshlq_n_s32(groups, 7), four_sums<Fmt>(w, a.fine + 256 * b, first));
        sum.add<Fmt>(groups, f, a, first, b);
    }
}

// Rows [r0, r0 + kRows) and their blocks: where they lie, or a copy padded with zeros for the last one of fewer than 256 values.
template <class Fmt, int kRows, class Body>
inline void each_block(const Rows& w, int64_t r0, Body body) {
    constexpr int kBytes = Fmt::kBytes;
    const int64_t full = w.n / 256, rest = w.row_bytes - full * kBytes;
    const uint8_t* p = w.data + r0 * w.row_bytes;
    for (int64_t b = 0; b < full; ++b, p += kBytes) {
        int8x16_t values[kRows][16];
        Factors factors[kRows];
        for (int r = 0; r < kRows; ++r) {
            const auto* block = reinterpret_cast<const typename Fmt::Block*>(p + r * w.row_bytes);
            Fmt::weights(block, values[r]);
            Fmt::factors(block, factors[r]);
        }
        body(values, factors, b);
    }
    if (rest) {
        int8x16_t values[kRows][16];
        Factors factors[kRows];
        for (int r = 0; r < kRows; ++r) {
            uint8_t copy[kBytes] = {};
            memcpy(copy, p + r * w.row_bytes, static_cast<size_t>(rest));
            Fmt::weights(reinterpret_cast<const typename Fmt::Block*>(copy), values[r]);
            Fmt::factors(reinterpret_cast<const typename Fmt::Block*>(copy), factors[r]);
        }
        body(values, factors, full);
    }
}

inline void put(const Rows& w, int64_t r, float sum, float* y) { *y = w.scale ? sum * w.scale[r] : sum; }

// Row r with `count` tokens.
template <class Fmt, bool kPrecise>
void row(const Rows& w, const Token<Fmt>* a, int count, int64_t r, float* y, int64_t ldy) {
    Sum sums[kMost];
    for (int t = 0; t < count; ++t) sums[t].value = vdupq_n_f32(0.0f);
    each_block<Fmt, 1>(w, r, [&](const int8x16_t(*values)[16], const Factors* factors, int64_t b) {
        for (int t = 0; t < count; ++t) one_by_one<Fmt, kPrecise>(values[0], factors[0], a[t], b, sums[t]);
    });
    for (int t = 0; t < count; ++t) put(w, r, sums[t].total(), y + t * ldy + r);
}

#if defined(__ARM_FEATURE_MATMUL_INT8)

inline int8x16_t low_halves(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s64(vzip1q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}
inline int8x16_t high_halves(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s64(vzip2q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}

inline void pair_up(const int8_t* a, const int8_t* b, int64_t n, int8_t* to) {
    for (int64_t i = 0; i < n; i += 16, to += 32) {
        const int8x16_t x = vld1q_s8(a + i), y = vld1q_s8(b + i);
        vst1q_s8(to, low_halves(x, y));
        vst1q_s8(to + 16, high_halves(x, y));
    }
}

// The sums of four groups, of each of two rows with each of two tokens: [row][token][group]. `w`: the rows in turn, as
// pair_up() has tokens.
template <class Fmt>
inline void pair_sums(const int8x16_t* w, const int8_t* pairs, int first, int32x4_t (&sums)[2][2]) {
    constexpr int kSteps = Fmt::kGroup / 8;
    int32x4_t s[4];
    for (int g = 0; g < 4; ++g) {
        s[g] = vdupq_n_s32(0);
        for (int k = 0; k < kSteps; ++k) {
            const int at = kSteps * (first + g) + k;
            s[g] = vmmlaq_s32(s[g], w[at], vld1q_s8(pairs + 16 * at));
        }
    }
    const int32x4x2_t a = vtrnq_s32(s[0], s[1]), b = vtrnq_s32(s[2], s[3]);  // lanes: row 0 and row 1, of each token
    const auto join = [](int32x4_t x, int32x4_t y, bool high) {
        const int64x2_t p = vreinterpretq_s64_s32(x), q = vreinterpretq_s64_s32(y);
        return vreinterpretq_s32_s64(high ? vzip2q_s64(p, q) : vzip1q_s64(p, q));
    };
    for (int t = 0; t < 2; ++t)
        for (int r = 0; r < 2; ++r) sums[r][t] = join(a.val[t], b.val[t], r);
}

// Rows [r, r + kRows) with `count` tokens, an even number. A block's tokens are paired up once for all these rows.
template <class Fmt, bool kPrecise, int kRows>
void some_rows(const Rows& w, const Token<Fmt>* a, int count, int64_t r, float* y, int64_t ldy) {
    Sum sums[kRows][kMost];
    for (int i = 0; i < kRows; ++i)
        for (int t = 0; t < count; ++t) sums[i][t].value = vdupq_n_f32(0.0f);
    each_block<Fmt, kRows>(w, r, [&](const int8x16_t(*values)[16], const Factors* factors, int64_t b) {
        int8x16_t turns[kRows / 2][32];
        for (int i = 0; i < kRows; i += 2)
            for (int k = 0; k < 16; ++k) {
                turns[i / 2][2 * k] = low_halves(values[i][k], values[i + 1][k]);
                turns[i / 2][2 * k + 1] = high_halves(values[i][k], values[i + 1][k]);
            }
        for (int t = 0; t < count; t += 2) {
            int8_t pairs[512], fine_pairs[kPrecise ? 512 : 1];
            pair_up(a[t].q + 256 * b, a[t + 1].q + 256 * b, 256, pairs);
            if constexpr (kPrecise) pair_up(a[t].fine + 256 * b, a[t + 1].fine + 256 * b, 256, fine_pairs);
            for (int i = 0; i < kRows; i += 2)
                for (int first = 0; first < 256 / Fmt::kGroup; first += 4) {
                    int32x4_t s[2][2], fine[2][2];
                    pair_sums<Fmt>(turns[i / 2], pairs, first, s);
                    if constexpr (kPrecise) pair_sums<Fmt>(turns[i / 2], fine_pairs, first, fine);
                    for (int j = 0; j < 2; ++j)
                        for (int u = 0; u < 2; ++u) {
                            if constexpr (kPrecise) s[j][u] = vaddq_s32(vshlq_n_s32(s[j][u], 7), fine[j][u]);
                            sums[i + j][t + u].template add<Fmt>(s[j][u], factors[i + j], a[t + u], first, b);
                        }
                }
        }
    });
    for (int t = 0; t < count; ++t)
        for (int i = 0; i < kRows; ++i) put(w, r + i, sums[i][t].total(), y + t * ldy + r + i);
}

#endif

template <class Fmt, bool kPrecise>
void products(const Rows& w, const Act& act, const int32_t* tokens, int m, int64_t r0, int64_t r1, float* y, int64_t ldy) {
    for (int first = 0; first < m; first += kMost, y += kMost * ldy) {
        const int count = m - first < kMost ? m - first : kMost;
        Token<Fmt> a[kMost];
        for (int t = 0; t < count; ++t) a[t] = Token<Fmt>(act, tokens ? tokens[first + t] : first + t, kPrecise);
        int64_t r = r0;
#if defined(__ARM_FEATURE_MATMUL_INT8)
        if (const int even = count & ~1) {
            for (; r + 8 <= r1; r += 8) some_rows<Fmt, kPrecise, 8>(w, a, even, r, y, ldy);
            for (; r + 2 <= r1; r += 2) some_rows<Fmt, kPrecise, 2>(w, a, even, r, y, ldy);
            if (even < count)
                for (int64_t i = r0; i < r; ++i) row<Fmt, kPrecise>(w, a + even, 1, i, y + even * ldy, ldy);
        }
#endif
        for (; r < r1; ++r) row<Fmt, kPrecise>(w, a, count, r, y, ldy);
    }
}

template <class Fmt>
void gemv(const Rows& w, const Act& act, const int32_t* tokens, int m, int64_t r0, int64_t r1, float* y, int64_t ldy) {
    (act.fine ? products<Fmt, true> : products<Fmt, false>)(w, act, tokens, m, r0, r1, y, ldy);
}

}  // namespace

namespace JAMBA_VARIANT {

void fill_dot(InnerKernels& ops) {
#define FORMAT(name, block, id) ops.gemv[k##name] = gemv<name>;
    BLOCK_FORMATS(FORMAT)
#undef FORMAT
    ops.gemv[kI8] = gemv<I8>;
}

}  // namespace JAMBA_VARIANT
}  // namespace jamba
