// The loops over rows and tokens that the SIMD block products share, and their table. Included at the end of a file whose
// anonymous namespace has Tokens, Sums, kPrefetch, kTokens and the formats.
#pragma once

namespace jamba {
namespace {

template <class Fmt, int M>
void gemv_tokens(const Rows& w, const Tokens<M>& a, int64_t r0, int64_t r1, float* const* y) {
    const int64_t full = w.n / 256;
    const int64_t rest = w.row_bytes - full * Fmt::kBytes;
    const int rest_blocks = static_cast<int>((w.n % 256 + 31) / 32);
    uint8_t tail[Fmt::kBytes];
    for (int64_t r = r0; r < r1; ++r) {
        const uint8_t* p = w.data + r * w.row_bytes;
        Sums<Fmt, M> sums;
        sums.clear();
        for (int64_t b = 0; b < full; ++b, p += Fmt::kBytes) {
            for (int line = 0; line < Fmt::kBytes; line += 64)
                _mm_prefetch(reinterpret_cast<const char*>(p + kPrefetch + line), _MM_HINT_T0);
            sums.template step<false>(reinterpret_cast<const typename Fmt::Block*>(p), a, b, 8);
        }
        if (rest) {  // the last blocks of the row; values of the next row behind them are multiplied by zero
            if (p + Fmt::kBytes > w.end) {
                memset(tail, 0, sizeof tail);
                memcpy(tail, p, static_cast<size_t>(rest));
                p = tail;
            }
            sums.template step<true>(reinterpret_cast<const typename Fmt::Block*>(p), a, full, rest_blocks);
        }
        for (int t = 0; t < M; ++t) y[t][r] = w.scale ? sums.total(t) * w.scale[r] : sums.total(t);
    }
}

template <class Fmt>
void gemv(const Rows& w, const Act& act, const int32_t* tokens, int m, int64_t r0, int64_t r1, float* y, int64_t ldy) {
    const auto run = [&](auto count, int first, int64_t from, int64_t to) {
        constexpr int M = decltype(count)::value;
        const Tokens<M> a(act, tokens, first, Fmt::kGroup);
        float* out[M];
        for (int i = 0; i < M; ++i) out[i] = y + (first + i) * ldy;
        gemv_tokens<Fmt, M>(w, a, from, to, out);
    };
    // A panel of rows is used for all tokens while it is in the nearest cache.
    const int64_t panel = m > kTokens ? (w.row_bytes < 16384 ? 16384 / w.row_bytes : 1) : r1 - r0;
    for (int64_t from = r0; from < r1; from += panel) {
        const int64_t to = from + panel < r1 ? from + panel : r1;
        int t = 0;
        for (; t + kTokens <= m; t += kTokens) run(Constant<kTokens>{}, t, from, to);
        if constexpr (kTokens > 2)
            for (; t + 2 <= m; t += 2) run(Constant<2>{}, t, from, to);
        for (; t < m; ++t) run(Constant<1>{}, t, from, to);
    }
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
