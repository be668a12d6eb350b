// The loops over rows and tokens that the SIMD block products share, and their table. Included at the end of a file whose
// anonymous namespace has prepare(), which is called before the first product, and, for each format and precision, a
// kernel: Products<Format, kPrecise> with
//   Format::Block, kBytes   256 values
//   Weights                 an unpacked block, from unpack(block, blocks): only the first `blocks` groups of 32 are the row's
//   Token                   where a token's activations are; next(): those of its next 256 values
//   Sums                    of one row and token: clear(), add(weights, token, b) for block b of the activations,
//                           add(block, token) for the first one, unpacked as it is multiplied; total()
//   kAhead                  whether a single token's factors are computed a block ahead of its products, into Factors: Sums
//                           then has prepare(block, token, i, factors) for block i from there, add(block, token, factors)
// and TokensInLanes<Products>, which may take the first tokens of several.
#pragma once

namespace jamba {
namespace {

constexpr int kMostTokens = 8;  // for which a block is unpacked once, the most of 1, 2, 4, 6 and 8

// Rows [r0, r1) with M tokens, of which the first `used` are written: a block of the weights is unpacked once for all of them.
template <class P, int M>
void some_tokens(const Rows& w, const typename P::Token* a, int used, int64_t r0, int64_t r1, float* y, int64_t ldy) {
    using Block = typename P::Format::Block;
    constexpr int kBytes = P::Format::kBytes;
    const int64_t full = w.n / 256, rest = w.row_bytes - full * kBytes;
    const int rest_groups = static_cast<int>((w.n % 256 + 31) / 32);
    for (int64_t r = r0; r < r1; ++r) {
        const uint8_t* p = w.data + r * w.row_bytes;
        typename P::Sums sums[M];
        for (int t = 0; t < M; ++t) sums[t].clear();
        for (int64_t b = 0; b < full; ++b, p += kBytes) {
            prefetch(p, kBytes);
            const typename P::Weights u = P::template unpack<false>(reinterpret_cast<const Block*>(p), 8);
            for (int t = 0; t < M; ++t) sums[t].add(u, a[t], b);
        }
        if (rest) {
            uint8_t copy[kBytes];
            p = last_blocks<kBytes>(w, p, rest, copy);
            const typename P::Weights u = P::template unpack<true>(reinterpret_cast<const Block*>(p), rest_groups);
            for (int t = 0; t < M; ++t) sums[t].add(u, a[t], full);
        }
        for (int t = 0; t < used; ++t) y[t * ldy + r] = w.scale ? sums[t].total() * w.scale[r] : sums[t].total();
    }
}

// The same for one token: a block is unpacked as it is multiplied.
template <class P>
__attribute__((noinline)) void one_token(const Rows& w, const typename P::Token& a, int64_t r0, int64_t r1, float* y) {
    using Block = typename P::Format::Block;
    constexpr int kBytes = P::Format::kBytes;
    const int64_t full = w.n / 256, rest = w.row_bytes - full * kBytes;
    const int rest_groups = static_cast<int>((w.n % 256 + 31) / 32);
    for (int64_t r = r0; r < r1; ++r) {
        const uint8_t* p = w.data + r * w.row_bytes;
        typename P::Token at = a;
        typename P::Sums sums;
        sums.clear();
        const auto take = [&](const auto&... factors) {
            prefetch(p, kBytes);
            sums.add(reinterpret_cast<const Block*>(p), at, factors...);
            at.next();
            p += kBytes;
        };
        if constexpr (P::kAhead) {
            typename P::Factors factors[2];
            if (full > 0) sums.prepare(reinterpret_cast<const Block*>(p), at, 0, factors[0]);
            for (int64_t b = 0; b < full; ++b) {
                if (b + 1 < full) sums.prepare(reinterpret_cast<const Block*>(p), at, 1, factors[(b + 1) & 1]);
                take(factors[b & 1]);
            }
        } else {
            for (int64_t b = 0; b < full; ++b) take();
        }
        if (rest) {
            uint8_t copy[kBytes];
            p = last_blocks<kBytes>(w, p, rest, copy);
            sums.add(P::template unpack<true>(reinterpret_cast<const Block*>(p), rest_groups), a, full);
        }
        y[r] = w.scale ? sums.total() * w.scale[r] : sums.total();
    }
}

// Tokens that one pass over the weights takes, at most.
constexpr int kTokensOfPass = 32;

template <class P>
void products(const Rows& w, const Act& act, const int32_t* tokens, int m, int64_t r0, int64_t r1, float* y, int64_t ldy) {
    // The tokens first to first + used - 1; those up to first + M are the last one again.
    const auto pick = [&](auto& a, int first, int used) {
        int i = 0;
        for (auto& each : a) {
            const int t = first + (i < used ? i : used - 1);
            each = typename P::Token(act, tokens ? tokens[t] : t);
            ++i;
        }
    };
    // An odd number is made even by the last one again, which costs less than a second pass over the weights.
    const auto run = [&](auto count, int first, int used, int64_t from, int64_t to) {
        constexpr int M = decltype(count)::value;
        typename P::Token a[M];
        pick(a, first, used);
        if constexpr (M == 1)
            one_token<P>(w, a[0], from, to, y + first * ldy);
        else
            some_tokens<P, M>(w, a, used, from, to, y + first * ldy, ldy);
    };
    const TokensInLanes<P> in_lanes(act, tokens, m, pick);
    // A panel of rows is used for all tokens while it is in the nearest cache.
    const int64_t panel = m > kMostTokens ? (w.row_bytes < 16384 ? 16384 / w.row_bytes : 1) : r1 - r0;
    for (int64_t from = r0; from < r1; from += panel) {
        const int64_t to = from + panel < r1 ? from + panel : r1;
        int t = in_lanes.multiply(w, from, to, y, ldy);
        for (; t + kMostTokens <= m; t += kMostTokens) run(Constant<kMostTokens>{}, t, kMostTokens, from, to);
        switch (const int left = m - t) {
            case 1: run(Constant<1>{}, t, 1, from, to); break;
            case 2: run(Constant<2>{}, t, 2, from, to); break;
            case 3:
            case 4: run(Constant<4>{}, t, left, from, to); break;
            case 5:
            case 6: run(Constant<6>{}, t, left, from, to); break;
            case 7: run(Constant<8>{}, t, left, from, to); break;
            default: break;
        }
    }
}

template <class Fmt>
void gemv(const Rows& w, const Act& act, const int32_t* tokens, int m, int64_t r0, int64_t r1, float* y, int64_t ldy) {
    const auto multiply = act.fine ? products<Products<Fmt, true>> : products<Products<Fmt, false>>;
    for (int t = 0; t < m; t += kTokensOfPass) {
        const int count = m - t < kTokensOfPass ? m - t : kTokensOfPass;
        if (tokens)
            multiply(w, act, tokens + t, count, r0, r1, y + t * ldy, ldy);
        else
            multiply(w, act.from(t), nullptr, count, r0, r1, y + t * ldy, ldy);
    }
}

}  // namespace

namespace JAMBA_VARIANT {

void fill_dot(InnerKernels& ops) {
    prepare();
#define FORMAT(name, block, id) ops.gemv[k##name] = gemv<name>;
    BLOCK_FORMATS(FORMAT)
#undef FORMAT
    ops.gemv[kI8] = gemv<I8>;
}

}  // namespace JAMBA_VARIANT
}  // namespace jamba
