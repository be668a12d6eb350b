// Scratch memory, activations and work sizes of the threaded kernels.
#include "decode/team.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "base/scratch.h"

namespace jamba {

uint8_t* scratch_block(size_t bytes) {
    static thread_local Buffer block;
    try {
        return static_cast<uint8_t*>(block.get(static_cast<int64_t>(bytes)));
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

Rounding rounding_for(std::initializer_list<const Matrix*> matrices) {
    Rounding rounding = Rounding::kNone;
    for (const Matrix* w : matrices) {
        if (!wants_int8(*w)) continue;
        if (type_info(w->type).values == 256) return Rounding::kMultiplesOfStep;
        rounding = Rounding::kOwnFactors;
    }
    return rounding;
}

ActBuffer take_act(Scratch& scratch, int64_t m, int64_t n, Rounding rounding) {
    static thread_local int64_t stamp = 0;
    ActBuffer a;
    a.stamp = ++stamp;
    a.f_stride = pad_values(n);
    a.f = scratch.take<float>(m * a.f_stride);
    if (rounding != Rounding::kNone) {
        a.padded = pad_values(n);
        a.q.q = scratch.take<int8_t>(m * a.padded);
        if (scratch.precise()) a.q.fine = scratch.take<int8_t>(m * a.padded);
        a.q.d = scratch.take<float>(m * a.padded / 32);
        a.q.sum32 = scratch.take<float>(m * a.padded / 32);
        a.q.lost32 = scratch.take<float>(m * a.padded / 32);
        a.q.d16 = scratch.take<float>(m * a.padded / 16);
        a.q.sum16 = scratch.take<float>(m * a.padded / 16);
        a.q.pairs = scratch.take<float>(m * a.padded / 16);
    }
    if (rounding == Rounding::kMultiplesOfStep) {
        a.q.step = scratch.take<float>(m * a.padded / 256);
        a.q.multiple16 = scratch.take<int16_t>(m * a.padded / 16);
        a.q.multiple128 = scratch.take<int16_t>(m * a.padded / 32);
        a.q.integer_sum16 = scratch.take<int16_t>(m * a.padded / 16);
    }
    return a;
}

void quantize_part(const InnerKernels& ops, const ActBuffer& a, int64_t token, int64_t n, int64_t begin, int64_t end) {
    float* f = a.f + token * a.f_stride;
    if (end == n) {  // the padding behind the row belongs to its last part
        std::fill(f + n, f + a.padded, 0.0f);
        end = a.padded;
    }
    ops.quantize(f, begin, end, a.row(token));
}

void quantize_shared(Team& team, const InnerKernels& ops, const ActBuffer& a, int64_t m, int64_t n) {
    team.barrier();
    const Range mine = team.share(m * a.padded, kPad);
    for (int64_t t = mine.begin / a.padded; t * a.padded < mine.end; ++t) {
        const int64_t begin = std::max(mine.begin - t * a.padded, int64_t{0});
        const int64_t end = std::min(mine.end - t * a.padded, a.padded);
        quantize_part(ops, a, t, n, begin, std::min(end, n));
    }
    team.barrier();
}

LowProduct take_low(Scratch& scratch, const Matrix& w, int64_t m) {
    return {&w, w.n_low ? scratch.take<float>(m * low_rank_of(w)) : nullptr};
}

void low_rows(const InnerKernels& k, const LowProduct& p, int64_t index, const ActBuffer& act, const int32_t* tokens, int64_t m,
              int64_t r0, int64_t r1) {
    const Matrix& w = *p.w;
    const int64_t all = low_rank_of(w), row_bytes = w.cols * static_cast<int64_t>(sizeof(float));
    int64_t first = 0;
    for (int32_t i = 0; i < w.n_low; first += w.low[i++].rank) {
        const LowRank& low = w.low[i];
        const int64_t from = std::max(r0 - first, int64_t{0}), to = std::min(r1 - first, low.rank);
        if (from >= to) continue;
        const float* a = low.a + index * low.rank * w.cols;
        const Rows rows{reinterpret_cast<const uint8_t*>(a), reinterpret_cast<const uint8_t*>(a + low.rank * w.cols), row_bytes, w.cols,
                        nullptr};
        k.gemv[kF32](rows, act.view(), tokens, static_cast<int>(m), from, to, p.ax + first, all);
        for (int64_t t = 0; t < m; ++t)
            for (int64_t r = from; r < to; ++r) p.ax[t * all + first + r] *= low.scale;
    }
}

void low_shared(Team& team, const InnerKernels& k, std::initializer_list<LowProduct> products, const ActBuffer& act, int64_t m) {
    int64_t all = 0, cols = 0;
    for (const LowProduct& p : products) {
        all += low_rank_of(*p.w);
        cols = p.w->cols;
    }
    if (!all) return;
    team.chunks(all, chunk_rows(cols * static_cast<int64_t>(sizeof(float)), all, team.size, 1), [&](int64_t begin, int64_t end) {
        int64_t first = 0;
        for (const LowProduct& p : products) {
            const int64_t rank = low_rank_of(*p.w);
            const int64_t r0 = std::max(begin - first, int64_t{0}), r1 = std::min(end - first, rank);
            if (r0 < r1) low_rows(k, p, 0, act, nullptr, m, r0, r1);
            first += rank;
        }
    });
    team.barrier();
}

void add_low(const InnerKernels& k, const LowProduct& p, int64_t index, int64_t m, int64_t first, int64_t r0, int64_t r1, float* y,
             int64_t ldy) {
    const Matrix& w = *p.w;
    if (!w.n_low) return;
    const int64_t all = low_rank_of(w);
    for (int64_t t = 0; t < m; ++t) {
        const float* ax = p.ax + t * all;
        for (int32_t i = 0; i < w.n_low; ++i) {
            const LowRank& low = w.low[i];
            const float* b = low.b + index * low.rank * low.b_stride + first;
            for (int64_t r = 0; r < low.rank; ++r) k.add_scaled(y + t * ldy + r0, b + r * low.b_stride + r0, *ax++, r1 - r0);
        }
    }
}

int64_t chunk_rows(int64_t row_bytes, int64_t rows, int team_size, int64_t unit) {
    constexpr int64_t kChunkBytes = 128 << 10;
    const int64_t by_bytes = kChunkBytes / std::max<int64_t>(1, row_bytes);
    const int64_t by_team = rows / (4 * static_cast<int64_t>(team_size));
    return std::max<int64_t>(1, std::min(by_bytes, by_team) / unit) * unit;
}

}  // namespace jamba
