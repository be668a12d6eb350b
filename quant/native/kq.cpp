// K-quant rows to blocks, LANES super-blocks at a time, and back.
//
// A batch holds LANES super-blocks transposed: x[i] is value i of each. Sub-block searches, scale rounding and packing all
// work on such vectors; only the finished 32-bit words are stored block by block. Rows are taken as one run of
// super-blocks, so that short rows fill the lanes too.
#include "kq_dequantize.h"
#include "kq_search.h"

namespace quant {
namespace JAMBA_VARIANT {
namespace kq {

// Sub-blocks searched together: as many as the registers hold.
constexpr int STREAMS = LANES == 16 ? 4 : 2;

struct Batch {
    alignas(64) vf x[SUPER];
    alignas(64) vf importance[SUPER];  // only read where there is an imatrix
    bool weighted;

    vi *level(int i) { return (vi *)&x[i]; }  // levels take the place of the values they came from
};

// w[i] = importance * sqrt(spread + x^2), ggml's weight of a value.
template <int N>
LANE_FN void importance_weights(const Batch &b, int at, vf spread, vf *w) {
    for (int i = at; i < at + N; ++i) w[i - at] = b.importance[i] * square_root(spread + b.x[i] * b.x[i]);
}

LANE_FN vf sum_of_squares(const vf *x, int count) {
    vf sum = {};
    for (int i = 0; i < count; ++i) sum += x[i] * x[i];
    return sum;
}

LANE_FN vf sum_of(const vf *x, int count) {
    vf sum = {};
    for (int i = 0; i < count; ++i) sum += x[i];
    return sum;
}

// word[k] = bytes 4k..4k+3 of `count` bytes held one a vector.
LANE_FN void pack_bytes(const vi *byte, int count, vi *word) {
    for (int i = 0; i < count; i += 4) {
        word[i / 4] = (byte[i] & 255) | (byte[i + 1] & 255) << 8 | (byte[i + 2] & 255) << 16 | byte[i + 3] << 24;
    }
}

// Two-bit levels as Q2_K and Q3_K hold them: byte l of a half has levels l, l + 32, l + 64, l + 96.
LANE_FN void pack_two_bits(Batch &b, vi *word) {
    for (int half = 0; half < 2; ++half) {
        vi byte[32];
        for (int l = 0; l < 32; ++l) {
            const vi *q = b.level(128 * half + l);
            byte[l] = q[0] | q[32] << 2 | q[64] << 4 | q[96] << 6;
        }
        pack_bytes(byte, 32, word + 8 * half);
    }
}

// levels = nearest((x + offset) / d) where d is not zero, else those of the search.
template <int N, int LOW, int HIGH, typename Searched>
LANE_FN void round_levels(Batch &b, int at, vf d, vf offset, Searched searched) {
    const vm flat = eq(d, vf{});
    if (__builtin_expect(any(flat), 0)) {
        for (int i = at; i < at + N; ++i) {
            const vi kept = searched(b.x[i]);
            *b.level(i) = select(flat, kept, clamp(nearest_int((b.x[i] + offset) / d), LOW, HIGH) - LOW);
        }
        return;
    }
    for (int i = at; i < at + N; ++i) *b.level(i) = clamp(nearest_int((b.x[i] + offset) / d), LOW, HIGH) - LOW;
}

// ---- Q4_K, Q5_K: eight sub-blocks of 32, six-bit scales and offsets ----

struct SixBitScales {
    vi packed[12];  // bytes

    void set(int j, vi scale, vi offset) {
        if (j < 4) {
            packed[j] = scale;
            packed[j + 4] = offset;
        } else {
            packed[j + 4] = (scale & 15) | (offset & 15) << 4;
            packed[j - 4] = (packed[j - 4] | (scale >> 4) << 6) & 255;
            packed[j] = (packed[j] | (offset >> 4) << 6) & 255;
        }
    }
    vi scale(int j) const { return j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4; }
    vi offset(int j) const { return j < 4 ? packed[j + 4] & 63 : (packed[j + 4] >> 4 & 15) | (packed[j] >> 6) << 4; }
};

// Levels in b, factors and scales in `word`; block_q4_k and block_q5_k begin alike.
template <int TOP>
static __attribute__((noinline)) void levels_of_32(Batch &b, vi *word) {
    AffineFit fit[8];
    SixBitScales scales;
    vi d_half, offset_half;
    alignas(64) vf w[32 * STREAMS];
    if (b.weighted) {
        vf weight[8], scale[8], offset[8];
        vi scale_level[8], offset_level[8];
        const vf spread = 2 * sum_of_squares(b.x, SUPER) / float(SUPER);
        for (int j = 0; j < 8; j += STREAMS) {
            importance_weights<32 * STREAMS>(b, 32 * j, spread, w);
            for (int s = 0; s < STREAMS; ++s) weight[j + s] = sum_of(w + 32 * s, 32);
            fit_affine<32, TOP, false, STREAMS>(b.x + 32 * j, w, -0.9f, 0.05f, 36, fit + j);
        }
        for (int j = 0; j < 8; ++j) scale[j] = fit[j].scale, offset[j] = fit[j].offset;
        d_half = to_half(fit_scales<8, 63>(scale, weight, scale_level));
        offset_half = to_half(fit_scales<8, 63>(offset, weight, offset_level));
        for (int j = 0; j < 8; ++j) {
            // ggml bounds the bytes again in Q5_K only.
            const vi s = TOP == 31 ? lesser(scale_level[j], splat(63)) : scale_level[j];
            const vi o = TOP == 31 ? lesser(offset_level[j], splat(63)) : offset_level[j];
            scales.set(j, s, o);
        }
    } else {
        vf top_scale = {}, top_offset = {};
        for (int j = 0; j < 8; j += STREAMS) {
            for (int s = 0; s < STREAMS; ++s) {
                const vf *x = b.x + 32 * (j + s);
                const vf typical = square_root(sum_of_squares(x, 32) / 32.0f);
                for (int i = 0; i < 32; ++i) w[32 * s + i] = typical + absolute(x[i]);
            }
            constexpr bool four = TOP == 15;
            fit_affine<32, TOP, false, STREAMS>(b.x + 32 * j, w, four ? -1.0f : -0.5f, 0.1f, four ? 20 : 15, fit + j);
        }
        for (int j = 0; j < 8; ++j) {
            top_scale = upper_or(fit[j].scale, top_scale);
            top_offset = upper_or(fit[j].offset, top_offset);
        }
        const vf per_scale = select(gt(top_scale, vf{}), 63.0f / top_scale, vf{});
        const vf per_offset = select(gt(top_offset, vf{}), 63.0f / top_offset, vf{});
        for (int j = 0; j < 8; ++j) {
            scales.set(j, lesser(nearest_int(per_scale * fit[j].scale) & 255, splat(63)),
                       lesser(nearest_int(per_offset * fit[j].offset) & 255, splat(63)));
        }
        d_half = to_half(top_scale / 63.0f);
        offset_half = to_half(top_offset / 63.0f);
    }
    const vf d = from_half(d_half), offset = from_half(offset_half);
    for (int j = 0; j < 8; ++j) {
        const AffineFit &f = fit[j];
        round_levels<32, 0, TOP>(b, 32 * j, d * to_float(scales.scale(j)), offset * to_float(scales.offset(j)),
                                 [&](vf x) { return affine_level<TOP>(f, x); });
    }
    word[WORD(block_q4_k, d)] = (d_half & 0xffff) | offset_half << 16;
    pack_bytes(scales.packed, 12, word + WORD(block_q4_k, scales));
}

// Byte l of a quarter has the low four bits of levels l and l + 32.
LANE_FN void pack_four_bits(Batch &b, vi *word) {
    for (int quarter = 0; quarter < 4; ++quarter) {
        vi byte[32];
        for (int l = 0; l < 32; ++l) {
            const vi *q = b.level(64 * quarter + l);
            byte[l] = (q[0] & 15) | (q[32] & 15) << 4;
        }
        pack_bytes(byte, 32, word + 8 * quarter);
    }
}

struct Q4K : Q4KBlocks {
    static void quantize(Batch &b, vi *word) {
        levels_of_32<15>(b, word);
        pack_four_bits(b, word + WORD(Block, qs));
    }
};

struct Q5K : Q5KBlocks {
    static void quantize(Batch &b, vi *word) {
        levels_of_32<31>(b, word);
        vi high[32];
        for (int l = 0; l < 32; ++l) {
            high[l] = vi{};
            for (int j = 0; j < 8; ++j) high[l] |= (*b.level(32 * j + l) >> 4) << j;
        }
        pack_bytes(high, 32, word + WORD(Block, qh));
        pack_four_bits(b, word + WORD(Block, qs));
    }
};

// ---- Q2_K: sixteen sub-blocks of 16, four-bit scales and offsets ----

struct Q2K : Q2KBlocks {
    static void quantize(Batch &b, vi *word) {
        AffineFit fit[16];
        vi scale_byte[16], d_half, offset_half;
        alignas(64) vf w[16 * STREAMS];
        if (b.weighted) {
            vf weight[16], scale[16], offset[16];
            vi scale_level[16], offset_level[16];
            const vf spread = sum_of_squares(b.x, SUPER) / float(SUPER);
            for (int j = 0; j < 16; j += STREAMS) {
                importance_weights<16 * STREAMS>(b, 16 * j, spread, w);
                for (int s = 0; s < STREAMS; ++s) weight[j + s] = sum_of(w + 16 * s, 16);
                fit_affine<16, 3, false, STREAMS>(b.x + 16 * j, w, -0.9f, 0.05f, 36, fit + j);
            }
            for (int j = 0; j < 16; ++j) scale[j] = fit[j].scale, offset[j] = fit[j].offset;
            d_half = to_half(fit_scales<16, 15>(scale, weight, scale_level));
            offset_half = to_half(fit_scales<16, 15>(offset, weight, offset_level));
            for (int j = 0; j < 16; ++j) scale_byte[j] = (scale_level[j] | offset_level[j] << 4) & 255;
        } else {
            vf top_scale = {}, top_offset = {};
            for (int j = 0; j < 16; j += STREAMS) {
                for (int i = 0; i < 16 * STREAMS; ++i) w[i] = absolute(b.x[16 * j + i]);
                fit_affine<16, 3, true, STREAMS>(b.x + 16 * j, w, -0.5f, 0.1f, 15, fit + j);
            }
            for (int j = 0; j < 16; ++j) {
                top_scale = upper_or(fit[j].scale, top_scale);
                top_offset = upper_or(fit[j].offset, top_offset);
            }
            const vm scaled = gt(top_scale, vf{}), shifted = gt(top_offset, vf{});
            const vf per_scale = 15.0f / top_scale, per_offset = 15.0f / top_offset;
            for (int j = 0; j < 16; ++j) {
                const vi s = select(scaled, nearest_int(per_scale * fit[j].scale) & 255, vi{});
                const vi o = select(shifted, nearest_int(per_offset * fit[j].offset), vi{});
                scale_byte[j] = (s | o << 4) & 255;
            }
            d_half = to_half(select(scaled, top_scale / 15.0f, vf{}));
            offset_half = to_half(select(shifted, top_offset / 15.0f, vf{}));
        }
        const vf d = from_half(d_half), offset = from_half(offset_half);
        for (int j = 0; j < 16; ++j) {
            const AffineFit &f = fit[j];
            round_levels<16, 0, 3>(b, 16 * j, d * to_float(scale_byte[j] & 15), offset * to_float(scale_byte[j] >> 4),
                                   [&](vf x) { return affine_level<3>(f, x); });
        }
        pack_bytes(scale_byte, 16, word + WORD(Block, scales));
        pack_two_bits(b, word + WORD(Block, qs));
        word[WORD(Block, d)] = (d_half & 0xffff) | offset_half << 16;
    }
};

// ---- Q3_K: sixteen sub-blocks of 16, six-bit signed scales ----

struct Q3K : Q3KBlocks {
    static void quantize(Batch &b, vi *word) {
        alignas(64) vf found[SUPER];  // levels of the descent
        SymmetricFit fit[16];
        vf scale[16];
        vi scale_level[16], d_half;  // levels 0..63: scale + 32
        if (b.weighted) {
            vf weight[16];
            const vf spread = 2 * sum_of_squares(b.x, SUPER) / float(SUPER);
            for (int j = 0; j < 16; ++j) {
                vf w[16];
                importance_weights<16>(b, 16 * j, spread, w);
                weight[j] = sum_of(w, 16);
                fit[j] = fit_symmetric<16, 4, true>(b.x + 16 * j, w);
                scale[j] = fit[j].scale;
            }
            const SymmetricFit outer = fit_symmetric<16, 32, false>(scale, weight);
            for (int j = 0; j < 16; ++j) scale_level[j] = symmetric_level<32>(outer, scale[j]);
            d_half = to_half(outer.scale);
        } else {
            for (int j = 0; j < 16; j += 4) fit_descent<16, 4, 4>(b.x + 16 * j, found + 16 * j, scale + j);
            vf most = {}, peak = {};
            for (int j = 0; j < 16; ++j) {
                const vf size = absolute(scale[j]);
                peak = select(gt(size, most), scale[j], peak);
                most = upper_or(size, most);
            }
            const vm scaled = inverse(eq(peak, vf{}));
            const vf step = -32.0f / peak;
            for (int j = 0; j < 16; ++j) {
                const vi byte = nearest_int(step * scale[j]) << 24 >> 24;
                scale_level[j] = select(scaled, clamp(byte, -32, 31) + 32, vi{});
            }
            d_half = to_half(select(scaled, 1.0f / step, vf{}));
        }
        const vf d = from_half(d_half);
        for (int j = 0; j < 16; ++j) {
            const vf *levels = found + 16 * j;
            const vf sub = d * to_float(scale_level[j] - 32);
            if (b.weighted)
                round_levels<16, -4, 3>(b, 16 * j, sub, vf{}, [&](vf x) { return symmetric_level<4>(fit[j], x); });
            else
                round_levels<16, -4, 3>(b, 16 * j, sub, vf{}, [&](vf) { return __builtin_convertvector(*levels++, vi); });
        }

        vi byte[32];
        for (int l = 0; l < 32; ++l) {
            byte[l] = vi{};
            for (int j = 0; j < 8; ++j) {
                vi *q = b.level(32 * j + l);
                byte[l] |= (*q >> 2) << j;
                *q &= 3;
            }
        }
        pack_bytes(byte, 32, word + WORD(Block, hmask));
        pack_two_bits(b, word + WORD(Block, qs));
        for (int j = 0; j < 8; ++j) byte[j] = (scale_level[j] & 15) | (scale_level[j + 8] & 15) << 4;
        for (int j = 0; j < 4; ++j) {
            byte[8 + j] = scale_level[j] >> 4 | scale_level[j + 4] >> 4 << 2 | scale_level[j + 8] >> 4 << 4 |
                          scale_level[j + 12] >> 4 << 6;
        }
        pack_bytes(byte, 12, word + WORD(Block, scales));
        word[WORD(Block, d)] = d_half;
    }
};

// ---- Q6_K: sixteen sub-blocks of 16, eight-bit signed scales ----

struct Q6K : Q6KBlocks {
    static void quantize(Batch &b, vi *word) {
        SymmetricFit fit[16];
        vf most = {}, peak = {};
        for (int j = 0; j < 16; ++j) {
            vf w[16];
            const vf *x = b.x + 16 * j;
            for (int i = 0; i < 16; ++i) w[i] = b.weighted ? b.importance[16 * j + i] : x[i] * x[i];
            fit[j] = fit_symmetric<16, 32, true>(x, w);
            const vf size = absolute(fit[j].scale);
            peak = select(gt(size, most), fit[j].scale, peak);
            most = upper_or(size, most);
        }
        const vm empty = lt(most, splat(NEGLIGIBLE));  // such a block is all zero bytes
        const vf step = -128.0f / peak;
        const vi d_half = select(empty, vi{}, to_half(1.0f / step));
        const vf d = from_half(d_half);
        vi scale_byte[16];
        for (int j = 0; j < 16; ++j) {
            const vi byte = lesser(nearest_int(step * fit[j].scale), splat(127)) << 24 >> 24;
            scale_byte[j] = select(empty, vi{}, byte);
            round_levels<16, -32, 31>(b, 16 * j, d * to_float(scale_byte[j]), vf{},
                                      [&](vf x) { return symmetric_level<32>(fit[j], x); });
        }
        if (any(empty)) {
            for (int i = 0; i < SUPER; ++i) *b.level(i) = select(empty, vi{}, *b.level(i));
        }
        for (int half = 0; half < 2; ++half) {
            vi low[64], high[32];
            for (int l = 0; l < 32; ++l) {
                const vi *q = b.level(128 * half + l);
                low[l] = (q[0] & 15) | (q[64] & 15) << 4;
                low[l + 32] = (q[32] & 15) | (q[96] & 15) << 4;
                high[l] = q[0] >> 4 | q[32] >> 4 << 2 | q[64] >> 4 << 4 | q[96] >> 4 << 6;
            }
            pack_bytes(low, 64, word + WORD(Block, ql) + 16 * half);
            pack_bytes(high, 32, word + WORD(Block, qh) + 8 * half);
        }
        pack_bytes(scale_byte, 16, word + WORD(Block, scales));
        word[WORD(Block, d)] = d_half;
    }
};

template <typename Q>
static void quantize(const float *x, int64_t rows, int64_t n, const float *imatrix, uint8_t *dst) {
    constexpr int BYTES = sizeof(typename Q::Block), WORDS = (BYTES + 3) / 4;
    const int64_t blocks = rows * n / SUPER, per_row = n / SUPER;
    Batch b;
    alignas(64) vi word[WORDS];
    b.weighted = imatrix != nullptr;
    for (int64_t first = 0; first < blocks; first += LANES) {
        const float *block[LANES], *importance[LANES];
        for (int l = 0; l < LANES; ++l) {
            const int64_t k = first + l < blocks ? first + l : blocks - 1;  // spare lanes repeat the last block
            block[l] = x + k * SUPER;
            importance[l] = imatrix + (imatrix ? k % per_row * SUPER : 0);
        }
        load_blocks(block, SUPER, b.x);
        if (imatrix) load_blocks(importance, SUPER, b.importance);
        Q::quantize(b, word);
        for (int l = 0; l < LANES && first + l < blocks; ++l) {
            uint8_t *out = dst + (first + l) * BYTES;
            for (int k = 0; k < BYTES / 4; ++k) std::memcpy(out + 4 * k, (const int32_t *)&word[k] + l, 4);
            if (BYTES % 4) std::memcpy(out + BYTES / 4 * 4, (const int32_t *)&word[WORDS - 1] + l, BYTES % 4);
        }
    }
}

}  // namespace kq

const Codec kq_codecs[] = {
    {kQ2_K, kq::quantize<kq::Q2K>, kq::dequantize<kq::Q2K>}, {kQ3_K, kq::quantize<kq::Q3K>, kq::dequantize<kq::Q3K>},
    {kQ4_K, kq::quantize<kq::Q4K>, kq::dequantize<kq::Q4K>}, {kQ5_K, kq::quantize<kq::Q5K>, kq::dequantize<kq::Q5K>},
    {kQ6_K, kq::quantize<kq::Q6K>, kq::dequantize<kq::Q6K>}, {-1, nullptr, nullptr},
};

}  // namespace JAMBA_VARIANT
}  // namespace quant
