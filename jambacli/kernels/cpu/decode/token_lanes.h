// Products of block-quantized rows with three to eight tokens at once by AVX-512: each token has U = 2 lanes of a vector, or 4 where
// there are no more than four, and 4 U bytes of a row's weights are repeated for all of them. So sums over a group stay in the
// instruction that multiplies, and each group is converted and scaled once for all tokens, where products along a row do it once
// for each.
//
// Units are 16 values: lanes U t to U t + U - 1 are units U r to U r + U - 1 of token t, r = 0 to 16 / U - 1 of each 256 values.
// Every output is computed by the same operations as Products::Sums computes it.
//
// Included by dot_avx512.cpp after Products.
#pragma once

namespace jamba {
namespace {

// Activations of T = 16 / U tokens, interleaved: of every token in turn U floats, or 4 U bytes (four of each unit).
struct TokenLanes {
    const int8_t *q, *fine;      // [blocks of 256][r][4][64]
    const float *factors;        // [blocks][r][16]
    const float *sums, *lost;    // [blocks][256 / group / U][16]
};

// The units of 32 U values' dwords, four of each, by turns: what U lanes multiply in one instruction lies together.
template <int U>
inline __m512i by_turns() {
    return U == 2 ? _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15)
                  : _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
}

// out[4 j + t] = from[t][j] for j < count; sixteen bytes each.
inline void interleave(const void* const (&from)[4], int64_t count, void* out, bool swap_words) {
    char* to = static_cast<char*>(out);
    for (int64_t j = 0; j < count; j += 4) {
        const int64_t left = count - j;
        const __mmask8 valid = left < 4 ? static_cast<__mmask8>((1 << 2 * left) - 1) : 0xFF;
        __m512i x[4];
        for (int t = 0; t < 4; ++t) {
            x[t] = _mm512_maskz_loadu_epi64(valid, static_cast<const char*>(from[t]) + 16 * j);
            if (swap_words) x[t] = _mm512_permutexvar_epi32(by_turns<4>(), x[t]);
        }
        const __m512i a = _mm512_shuffle_i64x2(x[0], x[1], 0x88), b = _mm512_shuffle_i64x2(x[2], x[3], 0x88);
        const __m512i c = _mm512_shuffle_i64x2(x[0], x[1], 0xDD), d = _mm512_shuffle_i64x2(x[2], x[3], 0xDD);
        const __m512i rows[4] = {_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(c, d, 0x88),
                                 _mm512_shuffle_i64x2(a, b, 0xDD), _mm512_shuffle_i64x2(c, d, 0xDD)};
        for (int i = 0; i < (left < 4 ? left : 4); ++i) _mm512_store_si512(to + 64 * (j + i), rows[i]);
    }
}

// out[8 j + t] = from[t][j] for j < count; eight bytes each.
inline void interleave(const void* const (&from)[8], int64_t count, void* out, bool swap_words) {
    char* to = static_cast<char*>(out);
    for (int64_t j = 0; j < count; j += 8) {
        const int64_t left = count - j;
        const __mmask8 valid = left < 8 ? static_cast<__mmask8>((1 << left) - 1) : 0xFF;
        __m512i x[8], y[8];
        for (int t = 0; t < 8; ++t) {
            x[t] = _mm512_maskz_loadu_epi64(valid, static_cast<const char*>(from[t]) + 8 * j);
            if (swap_words) x[t] = _mm512_permutexvar_epi32(by_turns<2>(), x[t]);
        }
        for (int t = 0; t < 8; t += 2) {
            y[t] = _mm512_unpacklo_epi64(x[t], x[t + 1]);
            y[t + 1] = _mm512_unpackhi_epi64(x[t], x[t + 1]);
        }
        for (int h = 0; h < 2; ++h) {  // columns h, 2 + h, 4 + h, 6 + h of eight rows: two at a time
            const __m512i a = _mm512_shuffle_i64x2(y[h], y[2 + h], 0x88), b = _mm512_shuffle_i64x2(y[4 + h], y[6 + h], 0x88);
            const __m512i c = _mm512_shuffle_i64x2(y[h], y[2 + h], 0xDD), d = _mm512_shuffle_i64x2(y[4 + h], y[6 + h], 0xDD);
            x[h] = _mm512_shuffle_i64x2(a, b, 0x88);
            x[4 + h] = _mm512_shuffle_i64x2(a, b, 0xDD);
            x[2 + h] = _mm512_shuffle_i64x2(c, d, 0x88);
            x[6 + h] = _mm512_shuffle_i64x2(c, d, 0xDD);
        }
        for (int i = 0; i < (left < 8 ? left : 8); ++i) _mm512_store_si512(to + 64 * (j + i), x[i]);
    }
}

template <class P, int U>
constexpr int kSumVectors = 256 / P::Format::kGroup / U;  // of a block: U groups' sums in each

// Bytes for 16 / U tokens, the same for all formats of the same kGroup: a matrix's rows are not always of one format.
template <class P, int U>
inline int64_t lane_bytes(int64_t padded) {
    return padded / 256 * ((2048 * (P::kPrecise ? 2 : 1) + 512 + 256) * 2 / U + 64 * kSumVectors<P, U>);
}

// Where the interleaved activations are in lane_bytes() of memory.
template <class P, int U>
inline TokenLanes token_lanes(int64_t padded, char* memory) {
    const int64_t blocks = padded / 256;
    const auto take = [&](int64_t bytes) {
        char* at = memory;
        memory += blocks * bytes;
        return at;
    };
    TokenLanes lanes = {};
    lanes.q = reinterpret_cast<int8_t*>(take(4096 / U));
    if (P::kPrecise) lanes.fine = reinterpret_cast<int8_t*>(take(4096 / U));
    lanes.factors = reinterpret_cast<float*>(take(1024 / U));
    lanes.sums = reinterpret_cast<float*>(take(64 * kSumVectors<P, U>));
    lanes.lost = reinterpret_cast<float*>(take(512 / U));
    return lanes;
}

// Interleaves the activations of those tokens into `memory`, aligned to 64.
template <class P, int U>
void interleave_tokens(const typename P::Token (&a)[16 / U], int64_t padded, char* memory) {
    using Token = typename P::Token;
    const TokenLanes lanes = token_lanes<P, U>(padded, memory);
    const auto put = [&](auto field, int64_t bytes, const void* out, bool swap_words) {
        const void* from[16 / U];
        for (int t = 0; t < 16 / U; ++t) from[t] = field(a[t]);
        interleave(from, bytes / (4 * U), const_cast<void*>(out), swap_words);
    };
    put([](const Token& x) { return x.q; }, padded, lanes.q, true);
    if (P::kPrecise) put([](const Token& x) { return x.fine; }, padded, lanes.fine, true);
    put([](const Token& x) { return x.d16; }, padded / 4, lanes.factors, false);
    put([](const Token& x) { return P::Format::kGroup == 32 ? x.sum32 : x.sums; }, padded / P::Format::kGroup * 4, lanes.sums, false);
    put([](const Token& x) { return x.lost; }, padded / 8, lanes.lost, false);
}

// A block's weights and factors where single values can be repeated from.
template <class P, int U>
struct Spread {
    alignas(64) uint8_t w[256];
    alignas(64) float scale[16];   // of units
    alignas(64) float offset[16];  // of groups
    alignas(64) float middle[16];  // of groups

    inline void set(const Unpacked& u) {
        for (int k = 0; k < 4; ++k) _mm512_store_si512(w + 64 * k, _mm512_permutexvar_epi32(by_turns<U>(), u.w[k]));
        if constexpr (P::Format::kGroup == 32) {
            const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 8, 8, 9, 9, 10, 10, 11, 11);
            const __m512i groups = _mm512_setr_epi32(4, 5, 6, 7, 12, 13, 14, 15, 4, 5, 6, 7, 12, 13, 14, 15);
            _mm512_store_ps(scale, _mm512_permutexvar_ps(twice, u.scale));
            if constexpr (P::kOffset) _mm512_store_ps(offset, _mm512_permutexvar_ps(groups, u.scale));
            if constexpr (P::Format::kMiddle != 0.0f)
                _mm512_store_ps(middle, _mm512_permutexvar_ps(groups, P::middle(u)));
        } else {
            _mm512_store_ps(scale, u.scale);
            if constexpr (P::kOffset) _mm512_store_ps(offset, u.offset16);
        }
    }
};

// U floats, or 4 U bytes, repeated.
template <int U>
inline __m512 repeated(const float* p) {
    if constexpr (U == 4) return _mm512_broadcast_f32x4(_mm_loadu_ps(p));
    double both;
    memcpy(&both, p, sizeof both);
    return _mm512_castpd_ps(_mm512_set1_pd(both));
}
template <int U>
inline __m512i repeated(const uint8_t* p) {
    if constexpr (U == 4) return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm512_set1_epi64(static_cast<int64_t>(read_u64(p)));
}

// A vector in a register, where compilers would load it again for each row: loads are what these products wait for.
inline __m512i loaded(const void* p) {
    __m512i x = _mm512_load_si512(p);
    __asm__("" : "+v"(x));
    return x;
}

// What the lanes of units U r to U r + U - 1 are multiplied by at the end.
template <Lanes kLanes, int U>
inline __m512 unit_factors(int r) {
    float each[U];
    for (int i = 0; i < U; ++i) {
        const int unit = U * r + i;
        each[i] = kLanes == Lanes::kQuarters ? (unit & 1 ? 1.0f / 16 : 1.0f)
                  : kLanes == Lanes::kHalves ? (unit & 2 ? 1.0f / 16 : 1.0f)
                                             : 1.0f / static_cast<float>(1 << (2 * (unit / 2 & 3)));
    }
    return repeated<U>(each);
}

// The sums of one row for 16 / U tokens.
template <class P, int U>
struct LaneSums {
    using Format = typename P::Format;
    static constexpr int kOffsets = P::kOffset ? kSumVectors<P, U> : 1;
    __m512 sums[16 / U], offsets[kOffsets];

    inline void clear() {
        for (auto& x : sums) x = _mm512_setzero_ps();
        for (auto& x : offsets) x = _mm512_setzero_ps();
    }

    inline void add_offsets(const Spread<P, U>& w, const TokenLanes& a, int64_t b) {
        if constexpr (P::kOffset) {
#pragma GCC unroll 8
            for (int p = 0; p < kOffsets; ++p) {
                const __m512 of_token = _mm512_load_ps(a.sums + 16 * (kOffsets * b + p));
                offsets[p] = _mm512_fmadd_ps(repeated<U>(w.offset + U * p), of_token, offsets[p]);
            }
            if constexpr (Format::kMiddle != 0.0f) {
#pragma GCC unroll 8
                for (int p = 0; p < kOffsets; ++p) {
                    const __m512 lost = _mm512_load_ps(a.lost + 16 * (kOffsets * b + p));
                    offsets[p] = _mm512_fmadd_ps(repeated<U>(w.middle + U * p), lost, offsets[p]);
                }
            }
        }
    }

    // The tokens' outputs: the first 16 / U lanes.
    inline __m256 total() {
        if constexpr (Format::kLanes != Lanes::kPlain) {
#pragma GCC unroll 8
            for (int r = 0; r < 16 / U; ++r) sums[r] = _mm512_mul_ps(sums[r], unit_factors<Format::kLanes, U>(r));
        }
        const __m512 bias = _mm512_set1_ps(Format::kBias);
        if constexpr (P::kOffset && Format::kGroup == 16) {
#pragma GCC unroll 8
            for (int r = 0; r < 16 / U; ++r) sums[r] = _mm512_fnmadd_ps(offsets[r], bias, sums[r]);
        } else if constexpr (P::kOffset && U == 2) {  // groups 2 p and 2 p + 1 beside units 4 p and 4 p + 1
#pragma GCC unroll 4
            for (int p = 0; p < 4; ++p) sums[2 * p] = _mm512_fnmadd_ps(offsets[p], bias, sums[2 * p]);
        } else if constexpr (P::kOffset) {
#pragma GCC unroll 4
            for (int p = 0; p < 4; ++p) {
                const __m512 of_units = p & 1 ? _mm512_permute_ps(offsets[p / 2], 0x4E) : offsets[p / 2];
                sums[p] = _mm512_mask3_fnmadd_ps(of_units, bias, sums[p], 0x3333);
            }
        }
        __m512 four[4];
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
            __m512 both;
            if constexpr (U == 2)
                both = _mm512_add_ps(sums[2 * k], sums[2 * k + 1]);
            else
                both = _mm512_add_ps(sums[k], _mm512_permute_ps(sums[k], 0x4E));
            four[k] = _mm512_add_ps(both, _mm512_permute_ps(both, 0xB1));
        }
        const __m512 sum = _mm512_add_ps(_mm512_add_ps(four[0], four[2]), _mm512_add_ps(four[1], four[3]));
        const __m512i first = U == 2 ? _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14)
                                     : _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
        return _mm512_castps512_ps256(_mm512_permutexvar_ps(first, sum));
    }
};

// kRows rows with 16 / U tokens, of which the first `used` are written.
template <class P, int U, int kRows>
inline void lane_rows(const Rows& w, const TokenLanes& a, int used, int64_t row, float* y, int64_t ldy) {
    using Block = typename P::Format::Block;
    constexpr int kBytes = P::Format::kBytes;
    const int64_t full = w.n / 256, rest = w.row_bytes - full * kBytes;
    const int rest_groups = static_cast<int>((w.n % 256 + 31) / 32);
    const uint8_t* p = w.data + row * w.row_bytes;
    LaneSums<P, U> sums[kRows];
    for (auto& each : sums) each.clear();
    for (int64_t b = 0; b < full + (rest != 0); ++b, p += kBytes) {
        Spread<P, U> spread[kRows];
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) {
            const uint8_t* block = p + i * w.row_bytes;
            if (b < full) {
                // Behind the row's end follow the rows that are taken with this one, then the next ones.
                prefetch(block + (b * kBytes + kPrefetch >= w.row_bytes ? (kRows - 1) * w.row_bytes : 0), kBytes);
                spread[i].set(P::template unpack<false>(reinterpret_cast<const Block*>(block), 8));
            } else {
                uint8_t copy[kBytes];
                block = last_blocks<kBytes>(w, block, rest, copy);
                spread[i].set(P::template unpack<true>(reinterpret_cast<const Block*>(block), rest_groups));
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < 16 / U; ++r) {
            const int64_t at = 256 * (16 / U * b + r);
            __m512i dot[kRows];
#pragma GCC unroll 4
            for (int i = 0; i < kRows; ++i) dot[i] = _mm512_setzero_si512();
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) {
                const __m512i x = loaded(a.q + at + 64 * v);
#pragma GCC unroll 4
                for (int i = 0; i < kRows; ++i)
                    dot[i] = add_products<P::kSigned>(dot[i], repeated<U>(spread[i].w + 16 * U * r + 4 * U * v), x);
            }
            if constexpr (P::kPrecise) {
#pragma GCC unroll 4
                for (int v = 0; v < 4; ++v) {
                    const __m512i x = loaded(a.fine + at + 64 * v);
#pragma GCC unroll 4
                    for (int i = 0; i < kRows; ++i) {
                        if (v == 0) dot[i] = _mm512_slli_epi32(dot[i], 7);
                        dot[i] = add_products<P::kSigned>(dot[i], repeated<U>(spread[i].w + 16 * U * r + 4 * U * v), x);
                    }
                }
            }
            const __m512 factors = _mm512_castsi512_ps(loaded(a.factors + 16 * (16 / U * b + r)));
#pragma GCC unroll 4
            for (int i = 0; i < kRows; ++i) {
                const __m512 by = _mm512_mul_ps(repeated<U>(spread[i].scale + U * r), factors);
                sums[i].sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[i]), by, sums[i].sums[r]);
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) sums[i].add_offsets(spread[i], a, b);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
        alignas(32) float out[8];
        __m256 total = sums[i].total();
        if (w.scale) total = _mm256_mul_ps(total, _mm256_set1_ps(w.scale[row + i]));
        _mm256_store_ps(out, total);
        for (int t = 0; t < used; ++t) y[t * ldy + row + i] = out[t];
    }
}

// Rows [r0, r1): four at a time where groups are of 32 values, whose sums and offsets fit the registers better.
template <class P, int U>
void lane_tokens(const Rows& w, const TokenLanes& a, int used, int64_t r0, int64_t r1, float* y, int64_t ldy) {
    constexpr int kRows = P::Format::kGroup == 32 ? 4 : U == 4 ? 2 : 1;
    int64_t r = r0;
    for (; r + kRows <= r1; r += kRows) lane_rows<P, U, kRows>(w, a, used, r, y, ldy);
    for (; r < r1; ++r) lane_rows<P, U, 1>(w, a, used, r, y, ldy);
}

// From so many tokens on lanes are faster than one pass over a block's values for each; from so many, those of eight tokens.
constexpr int kLeastLanes = 3, kLeastEight = 5;

// The interleaved activations that a thread keeps, for those of one stamp: the rows of a matrix are multiplied a chunk at a time.
class KeptLanes {
   public:
    // Where `bytes` for m tokens are, and whether they are filled; null where memory is short. What it returned before may be
    // overwritten.
    char* find(const Act& act, const int32_t* tokens, int m, int group, int64_t bytes, bool& filled) {
        if (act.stamp != stamp_ || !act.stamp) clear();
        stamp_ = act.stamp;
        for (int i = 0; i < count_; ++i) {
            const Entry& e = entries_[i];
            filled = e.q == act.q && e.tokens == tokens && e.m == m && e.group == group;
            if (filled) return memory_ + e.at;
        }
        if (used_ + bytes > size_ || count_ == kMost) clear();
        if (bytes > size_) {
            const int64_t size = bytes < kBytes ? kBytes : bytes;
            size_ = 0;
            try {
                memory_ = static_cast<char*>(buffer_.get(size));
            } catch (const std::bad_alloc&) {
                return nullptr;
            }
            size_ = size;
        }
        entries_[count_++] = {act.q, tokens, m, group, used_};
        used_ += bytes;
        return memory_ + used_ - bytes;
    }

   private:
    struct Entry {
        const int8_t* q;
        const int32_t* tokens;
        int m, group;
        int64_t at;
    };
    void clear() { used_ = 0, count_ = 0; }

    static constexpr int kMost = 64;
    static constexpr int64_t kBytes = 4 << 20;
    Buffer buffer_;
    char* memory_ = nullptr;
    int64_t size_ = 0, used_ = 0, stamp_ = 0;
    int count_ = 0;
    Entry entries_[kMost];
};

inline KeptLanes& kept_lanes() {
    static thread_local KeptLanes kept;
    return kept;
}

// The activations of those tokens that are multiplied in lanes.
template <class P>
class TokensInLanes {
   public:
    // pick(a, first, used) sets a to the tokens from `first` on. m: at most kTokensOfPass.
    template <class Pick>
    TokensInLanes(const Act& act, const int32_t* tokens, int m, const Pick& pick) {
        const int left = m % 8, eights = m / 8 + (left >= kLeastEight);
        const bool four = left >= kLeastLanes && left < kLeastEight;
        if (!eights && !four) return;
        const int64_t bytes = lane_bytes<P, 2>(act.padded), bytes_of_four = four ? lane_bytes<P, 4>(act.padded) : 0;
        bool filled = false;
        char* memory = kept_lanes().find(act, tokens, m, P::Format::kGroup, eights * bytes + bytes_of_four, filled);
        if (!memory) return;  // the other way needs none
        const auto add = [&](auto lanes, int first) {
            constexpr int U = decltype(lanes)::value;
            used_[count_] = m - first < 16 / U ? m - first : 16 / U;
            if (!filled) {
                typename P::Token a[16 / U];
                pick(a, first, used_[count_]);
                interleave_tokens<P, U>(a, act.padded, memory);
            }
            lanes_[count_++] = token_lanes<P, U>(act.padded, memory);
        };
        for (int i = 0; i < eights; ++i, memory += bytes) add(Constant<2>{}, 8 * i);
        if (four) add(Constant<4>{}, 8 * eights);
        four_ = four;
    }

    // Rows [from, to) of those tokens; returns how many there are.
    int multiply(const Rows& w, int64_t from, int64_t to, float* y, int64_t ldy) const {
        int done = 0;
        for (int i = 0; i < count_; ++i) {
            const auto multiply = four_ && i == count_ - 1 ? lane_tokens<P, 4> : lane_tokens<P, 2>;
            multiply(w, lanes_[i], used_[i], from, to, y + done * ldy, ldy);
            done += used_[i];
        }
        return done;
    }

   private:
    int count_ = 0;
    bool four_ = false;
    int used_[4];
    TokenLanes lanes_[4];
};

}  // namespace
}  // namespace jamba
