// What the threaded kernels of a decode step share: scratch memory, activations in the forms that weights need, and
// products shared out over a team.
#pragma once

#include <initializer_list>

#include "decode/inner_kernels.h"
#include "base/threads.h"

namespace jamba {

// Gives out aligned pieces of a block of scratch; without a block it only measures. All threads of a team make the same
// calls on copies of one Scratch and so get the same pieces. `precise`: activations are taken in 15 bits (see Act).
class Scratch {
   public:
    explicit Scratch(uint8_t* base, bool precise) : base_(base), precise_(precise) {}
    bool precise() const { return precise_; }

    template <class T>
    T* take(int64_t count) {
        const size_t at = used_;
        used_ += (static_cast<size_t>(count) * sizeof(T) + 127) / 128 * 128;
        return reinterpret_cast<T*>(base_ + at);
    }
    size_t used() const { return used_; }

   private:
    uint8_t* base_;
    bool precise_;
    size_t used_ = 0;
};

// The calling thread's own scratch block of at least `bytes`, kept for its next call; null when memory is short.
uint8_t* scratch_block(size_t bytes);

// How activations are rounded. Formats of 256 values multiply them by integers and so want factors that are multiples of one step;
// all others keep the exact factor of every 32, with which the largest of them loses nothing.
enum class Rounding { kNone, kOwnFactors, kMultiplesOfStep };

// The rounding that suits all of these matrices; kNone where all of them multiply floats.
Rounding rounding_for(std::initializer_list<const Matrix*> matrices);

// Activations that a kernel writes and Act reads.
struct ActBuffer {
    float* f = nullptr;
    int64_t f_stride = 0;
    Quantized q{};
    int64_t padded = 0;
    int64_t stamp = 0;

    Act view() const {
        return {f, f_stride, q.q, q.fine, q.d, q.sum32, q.lost32, q.d16, q.sum16, q.pairs, q.step, q.multiple16,
                q.multiple128, q.integer_sum16, padded, stamp};
    }
    // The arrays of one token.
    Quantized row(int64_t token) const {
        const int64_t by32 = token * (padded / 32), by16 = token * (padded / 16);
        int8_t* fine = q.fine ? q.fine + token * padded : nullptr;
        return {q.q + token * padded, fine, q.d + by32, q.sum32 + by32, q.lost32 + by32, q.d16 + by16, q.sum16 + by16, q.pairs + by16,
                q.step ? q.step + token * (padded / 256) : nullptr, q.step ? q.multiple16 + by16 : nullptr,
                q.step ? q.multiple128 + by32 : nullptr, q.step ? q.integer_sum16 + by16 : nullptr};
    }
};

// Room for the activations of m tokens of n values; the integer form, unless kNone, is to be filled once before it is read.
ActBuffer take_act(Scratch& scratch, int64_t m, int64_t n, Rounding rounding);

// Fills the integer form of values [begin, end) of one token from its floats; begin and end are multiples of 256, or end is
// that of the row (the padding behind it is then cleared).
void quantize_part(const InnerKernels& ops, const ActBuffer& a, int64_t token, int64_t n, int64_t begin, int64_t end);

// Fills the integer form of m tokens of n values, shared out over the team, with a barrier before and behind it.
void quantize_shared(Team& team, const InnerKernels& ops, const ActBuffer& a, int64_t m, int64_t n);

inline bool wants_int8(const Matrix& w) { return !is_float_type(w.type); }
// Matrix `index` of a stack, from row `first` on.
inline Rows rows_of(const Matrix& w, int64_t index = 0, int64_t first = 0) {
    const uint8_t* data = w.data + index * w.rows * w.row_bytes;
    return {data + first * w.row_bytes, data + w.rows * w.row_bytes, w.row_bytes, w.cols,
            w.scale ? w.scale + index * w.rows + first : nullptr};
}

// A weight, and what its adapters make of the activations: a x of all of them, [m, low_rank_of(w)] floats.
struct LowProduct {
    const Matrix* w;
    float* ax;
};

// Room for the low-rank products of m tokens with w; nothing where it has no adapters.
LowProduct take_low(Scratch& scratch, const Matrix& w, int64_t m);

// Rows [r0, r1) of all a of matrix `index` of a stack, one after another, times the floats of m activations (those that
// `tokens` lists, or all in order), scaled, into p.ax.
void low_rows(const InnerKernels& k, const LowProduct& p, int64_t index, const ActBuffer& act, const int32_t* tokens, int64_t m,
              int64_t r0, int64_t r1);

// All of them for some weights that multiply the same activations, shared out over the team, with a barrier at the end. Nothing,
// and no barrier, where none of them has an adapter.
void low_shared(Team& team, const InnerKernels& k, std::initializer_list<LowProduct> products, const ActBuffer& act, int64_t m);

// y[i * ldy + r] += row `first` + r of b times p.ax of token i, for r0 <= r < r1.
void add_low(const InnerKernels& k, const LowProduct& p, int64_t index, int64_t m, int64_t first, int64_t r0, int64_t r1, float* y,
             int64_t ldy);

// Rows a thread takes at a time: about 128 KB of weights, a multiple of `unit`, but few enough that every thread gets some.
// `row_bytes`: the bytes that are read for one row.
int64_t chunk_rows(int64_t row_bytes, int64_t rows, int team_size, int64_t unit);

}  // namespace jamba
