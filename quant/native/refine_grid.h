// The fields of blocks as a refinement changes them: scales, minimums and levels, apart from the bytes they are packed in.
//
// A Grid is one column block of LANES rows, a row per lane: a super-block of 256 values, or up to eight blocks of 32. A value is
// factor * level - shift, with one factor and one shift per sub-block, rounded as the dequantizers do.
#pragma once

#include "iq4_search.h"
#include "quant.h"

namespace quant {
namespace JAMBA_VARIANT {
namespace refine {

constexpr int COLUMNS = 256, SUBS = 16;

// The fields of one row's column block, as integers and f16 bits.
struct Fields {
    int32_t d[8], dmin[8];        // f16 bits; a super-block uses the first
    int32_t scale[SUBS], minimum[SUBS];
    int32_t level[COLUMNS];       // value = factor * (level, or its entry in the table) - shift
};

struct Grid {
    alignas(64) vf level[COLUMNS];
    vf factor[SUBS], shift[SUBS];
    vf d[8], dmin[8];             // as f32: a super-block uses the first
    vf scale[SUBS], minimum[SUBS];
};

// What the formats have in common. NESTED: integer scales times d; else each block of 32 has its own d. AFFINE: with minimums.
template <typename BlockType, int SUB_, int LOW_, int HIGH_, bool NESTED_, bool AFFINE_, int LEAST_ = 0, int MOST_ = 0, bool TABLE_ = false>
struct Layout {
    using Block = BlockType;
    static constexpr int SUB = SUB_, LOW = LOW_, HIGH = HIGH_, LEAST = LEAST_, MOST = MOST_;
    static constexpr bool NESTED = NESTED_, AFFINE = AFFINE_, TABLE = TABLE_;
};

LANE_FN int half_bits(const Half &half) { return read_u16(&half); }

LANE_FN void put_half(Half &half, int bits) {
    const uint16_t h = (uint16_t)bits;
    std::memcpy(&half, &h, sizeof h);
}

static inline void read_six_bits(const uint8_t *packed, Fields &f) {
    for (int j = 0; j < 8; ++j) {
        int scale, minimum;
        k_scale_and_minimum(packed, j, scale, minimum);
        f.scale[j] = scale, f.minimum[j] = minimum;
    }
}

static inline void write_six_bits(const Fields &f, uint8_t *packed) {
    for (int j = 0; j < 4; ++j) {
        packed[j] = (uint8_t)(f.scale[j] | f.scale[j + 4] >> 4 << 6);
        packed[j + 4] = (uint8_t)(f.minimum[j] | f.minimum[j + 4] >> 4 << 6);
        packed[j + 8] = (uint8_t)((f.scale[j + 4] & 15) | (f.minimum[j + 4] & 15) << 4);
    }
}

struct Q4K : Layout<block_q4_k, 32, 0, 15, true, true, 0, 63> {
    static void read(const Block &b, Fields &f) {
        f.d[0] = half_bits(b.d), f.dmin[0] = half_bits(b.dmin);
        read_six_bits(b.scales, f);
        for (int i = 0; i < 256; ++i) f.level[i] = b.qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
    }
    static void write(const Fields &f, Block &b) {
        put_half(b.d, f.d[0]), put_half(b.dmin, f.dmin[0]);
        write_six_bits(f, b.scales);
        for (int i = 0; i < 128; ++i) {
            const int32_t *level = f.level + i / 32 * 64 + i % 32;
            b.qs[i] = (uint8_t)(level[0] | level[32] << 4);
        }
    }
};

struct Q5K : Layout<block_q5_k, 32, 0, 31, true, true, 0, 63> {
    static void read(const Block &b, Fields &f) {
        f.d[0] = half_bits(b.d), f.dmin[0] = half_bits(b.dmin);
        read_six_bits(b.scales, f);
        for (int i = 0; i < 256; ++i)
            f.level[i] = (b.qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15) | (b.qh[i % 32] >> (i / 32) & 1) << 4;
    }
    static void write(const Fields &f, Block &b) {
        put_half(b.d, f.d[0]), put_half(b.dmin, f.dmin[0]);
        write_six_bits(f, b.scales);
        for (int i = 0; i < 128; ++i) {
            const int32_t *level = f.level + i / 32 * 64 + i % 32;
            b.qs[i] = (uint8_t)((level[0] & 15) | (level[32] & 15) << 4);
        }
        for (int i = 0; i < 32; ++i) {
            int bits = 0;
            for (int j = 0; j < 8; ++j) bits |= (f.level[32 * j + i] >> 4) << j;
            b.qh[i] = (uint8_t)bits;
        }
    }
};

struct Q2K : Layout<block_q2_k, 16, 0, 3, true, true, 0, 15> {
    static void read(const Block &b, Fields &f) {
        f.d[0] = half_bits(b.d), f.dmin[0] = half_bits(b.dmin);
        for (int j = 0; j < 16; ++j) f.scale[j] = b.scales[j] & 15, f.minimum[j] = b.scales[j] >> 4;
        for (int i = 0; i < 256; ++i) f.level[i] = b.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    }
    static void write(const Fields &f, Block &b) {
        put_half(b.d, f.d[0]), put_half(b.dmin, f.dmin[0]);
        for (int j = 0; j < 16; ++j) b.scales[j] = (uint8_t)(f.scale[j] | f.minimum[j] << 4);
        for (int i = 0; i < 64; ++i) {
            const int32_t *level = f.level + i / 32 * 128 + i % 32;
            b.qs[i] = (uint8_t)(level[0] | level[32] << 2 | level[64] << 4 | level[96] << 6);
        }
    }
};

struct Q3K : Layout<block_q3_k, 16, -4, 3, true, false, -32, 31> {
    static void read(const Block &b, Fields &f) {
        f.d[0] = half_bits(b.d);
        for (int j = 0; j < 16; ++j) f.scale[j] = q3_scale(b.scales, j);
        for (int i = 0; i < 256; ++i) {
            const int low = b.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
            f.level[i] = (low | (b.hmask[i % 32] >> (i / 32) & 1) << 2) - 4;
        }
    }
    static void write(const Fields &f, Block &b) {
        put_half(b.d, f.d[0]);
        for (int j = 0; j < 8; ++j) b.scales[j] = (uint8_t)(((f.scale[j] + 32) & 15) | ((f.scale[j + 8] + 32) & 15) << 4);
        for (int j = 0; j < 4; ++j) {
            int bits = 0;
            for (int k = 0; k < 4; ++k) bits |= (f.scale[j + 4 * k] + 32) >> 4 << 2 * k;
            b.scales[8 + j] = (uint8_t)bits;
        }
        for (int i = 0; i < 64; ++i) {
            const int32_t *level = f.level + i / 32 * 128 + i % 32;
            int bits = 0;
            for (int k = 0; k < 4; ++k) bits |= ((level[32 * k] + 4) & 3) << 2 * k;
            b.qs[i] = (uint8_t)bits;
        }
        for (int i = 0; i < 32; ++i) {
            int bits = 0;
            for (int j = 0; j < 8; ++j) bits |= (f.level[32 * j + i] + 4) >> 2 << j;
            b.hmask[i] = (uint8_t)bits;
        }
    }
};

struct Q6K : Layout<block_q6_k, 16, -32, 31, true, false, -128, 127> {
    static void read(const Block &b, Fields &f) {
        f.d[0] = half_bits(b.d);
        for (int j = 0; j < 16; ++j) f.scale[j] = b.scales[j];
        for (int i = 0; i < 256; ++i) {
            const int half = i / 128, part = i % 128 / 32, at = i % 32;
            const int low = b.ql[64 * half + 32 * (part % 2) + at] >> (part / 2 * 4) & 15;
            f.level[i] = (low | (b.qh[32 * half + at] >> (2 * part) & 3) << 4) - 32;
        }
    }
    static void write(const Fields &f, Block &b) {
        put_half(b.d, f.d[0]);
        for (int j = 0; j < 16; ++j) b.scales[j] = (int8_t)f.scale[j];
        for (int i = 0; i < 128; ++i) {
            const int32_t *level = f.level + i / 64 * 128 + i % 64;
            b.ql[i] = (uint8_t)(((level[0] + 32) & 15) | ((level[64] + 32) & 15) << 4);
        }
        for (int i = 0; i < 64; ++i) {
            const int32_t *level = f.level + i / 32 * 128 + i % 32;
            int bits = 0;
            for (int k = 0; k < 4; ++k) bits |= (level[32 * k] + 32) >> 4 << 2 * k;
            b.qh[i] = (uint8_t)bits;
        }
    }
};

struct IQ4XS : Layout<block_iq4_xs, 32, 0, 15, true, false, -32, 31, true> {
    static void read(const Block &b, Fields &f) {
        f.d[0] = half_bits(b.d);
        for (int j = 0; j < 8; ++j) f.scale[j] = iq4_xs_scale(b, j);
        for (int i = 0; i < 256; ++i) f.level[i] = b.qs[i / 32 * 16 + i % 16] >> (i / 16 % 2 * 4) & 15;
    }
    static void write(const Fields &f, Block &b) {
        put_half(b.d, f.d[0]);
        int high = 0;
        for (int j = 0; j < 8; ++j) high |= (f.scale[j] + 32) >> 4 << 2 * j;
        b.scales_h[0] = (uint8_t)high, b.scales_h[1] = (uint8_t)(high >> 8);
        for (int j = 0; j < 4; ++j)
            b.scales_l[j] = (uint8_t)(((f.scale[2 * j] + 32) & 15) | ((f.scale[2 * j + 1] + 32) & 15) << 4);
        for (int i = 0; i < 128; ++i) {
            const int32_t *level = f.level + i / 16 * 32 + i % 16;
            b.qs[i] = (uint8_t)(level[0] | level[16] << 4);
        }
    }
};

// ---- blocks of 32: d, and levels from `level` on ----

static inline void read_nibbles(const uint8_t *qs, int32_t *level) {
    for (int i = 0; i < 32; ++i) level[i] = qs[i % 16] >> (i / 16 * 4) & 15;
}

// Four bits of each of 32 levels, counted from `low`.
static inline void write_nibbles(const int32_t *level, int low, uint8_t *qs) {
    for (int i = 0; i < 16; ++i) qs[i] = (uint8_t)(((level[i] - low) & 15) | ((level[i + 16] - low) & 15) << 4);
}

static inline void write_fifth_bits(const int32_t *level, int low, uint8_t *qh) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; ++i) bits |= (uint32_t)((level[i] - low) >> 4) << i;
    std::memcpy(qh, &bits, sizeof bits);
}

struct Q40 : Layout<block_q4_0, 32, -8, 7, false, false> {
    static void read(const Block &b, int32_t *level) {
        read_nibbles(b.qs, level);
        for (int i = 0; i < 32; ++i) level[i] -= 8;
    }
    static void write(const int32_t *level, Block &b) { write_nibbles(level, -8, b.qs); }
};

struct Q50 : Layout<block_q5_0, 32, -16, 15, false, false> {
    static void read(const Block &b, int32_t *level) {
        read_nibbles(b.qs, level);
        for (int i = 0; i < 32; ++i) level[i] += (int)(read_u32(b.qh) >> i & 1) * 16 - 16;
    }
    static void write(const int32_t *level, Block &b) {
        write_nibbles(level, -16, b.qs);
        write_fifth_bits(level, -16, b.qh);
    }
};

struct Q80 : Layout<block_q8_0, 32, -127, 127, false, false> {
    static void read(const Block &b, int32_t *level) {
        for (int i = 0; i < 32; ++i) level[i] = b.qs[i];
    }
    static void write(const int32_t *level, Block &b) {
        for (int i = 0; i < 32; ++i) b.qs[i] = (int8_t)level[i];
    }
};

struct IQ4NL : Layout<block_iq4_nl, 32, 0, 15, false, false, 0, 0, true> {
    static void read(const Block &b, int32_t *level) { read_nibbles(b.qs, level); }
    static void write(const int32_t *level, Block &b) { write_nibbles(level, 0, b.qs); }
};

// Blocks of 32 with a minimum `m` that is added: the shift is -m.
struct Q41 : Layout<block_q4_1, 32, 0, 15, false, true> {
    static void read(const Block &b, int32_t *level) { read_nibbles(b.qs, level); }
    static void write(const int32_t *level, Block &b) { write_nibbles(level, 0, b.qs); }
};

struct Q51 : Layout<block_q5_1, 32, 0, 31, false, true> {
    static void read(const Block &b, int32_t *level) {
        read_nibbles(b.qs, level);
        for (int i = 0; i < 32; ++i) level[i] += (int)(read_u32(b.qh) >> i & 1) * 16;
    }
    static void write(const int32_t *level, Block &b) {
        write_nibbles(level, 0, b.qs);
        write_fifth_bits(level, 0, b.qh);
    }
};

// ---- a Grid from bytes and back ----

template <typename F>
LANE_FN vf factor_of(const Grid &g, int j) {
    if constexpr (F::NESTED) return g.d[0] * g.scale[j];
    return g.d[j];
}

template <typename F>
LANE_FN vf shift_of(const Grid &g, int j) {
    if constexpr (!F::AFFINE) return vf{};
    if constexpr (F::NESTED) return g.dmin[0] * g.minimum[j];
    return -g.dmin[j];
}

template <typename F>
LANE_FN void set_factors(Grid &g, int subs) {
    for (int j = 0; j < subs; ++j) g.factor[j] = factor_of<F>(g, j), g.shift[j] = shift_of<F>(g, j);
}

// The level nearest to a value in units of the factor; a table's entry itself.
template <typename F>
LANE_FN vf nearest(vf x) {
    if constexpr (F::TABLE) return iq4::look_up(iq4::GRID, iq4::nearest_level(x));
    return kq::level<F::LOW, F::HIGH, kq::BOUNDED>(x);
}

LANE_FN vf reciprocal(vf x) { return select(eq(x, vf{}), vf{}, 1.0f / x); }

template <typename T>
LANE_FN void set_lane(T &v, int lane, float x) {
    std::memcpy(reinterpret_cast<float *>(&v) + lane, &x, sizeof x);
}

template <typename T>
LANE_FN float get_lane(const T &v, int lane) {
    float x;
    std::memcpy(&x, reinterpret_cast<const float *>(&v) + lane, sizeof x);
    return x;
}

template <typename F>
static void read_lane(const uint8_t *bytes, int columns, int lane, Grid &g) {
    using Block = typename F::Block;
    const Block *block = reinterpret_cast<const Block *>(bytes);
    Fields f;
    if constexpr (F::NESTED) {
        F::read(*block, f);
    } else {
        for (int j = 0; j < columns / 32; ++j) {
            f.d[j] = half_bits(block[j].d);
            if constexpr (F::AFFINE) f.dmin[j] = half_bits(block[j].m);
            F::read(block[j], f.level + 32 * j);
        }
    }
    const int halves = F::NESTED ? 1 : columns / 32;
    for (int j = 0; j < halves; ++j) {
        set_lane(g.d[j], lane, from_half(splat(f.d[j]))[0]);
        if (F::AFFINE) set_lane(g.dmin[j], lane, from_half(splat(f.dmin[j]))[0]);
    }
    if constexpr (F::NESTED) {
        for (int j = 0; j < columns / F::SUB; ++j) {
            set_lane(g.scale[j], lane, (float)f.scale[j]);
            if (F::AFFINE) set_lane(g.minimum[j], lane, (float)f.minimum[j]);
        }
    }
    for (int i = 0; i < columns; ++i) set_lane(g.level[i], lane, F::TABLE ? iq4::GRID[f.level[i]] : (float)f.level[i]);
}

template <typename F>
static void write_lane(const Grid &g, const vi *level, int columns, int lane, uint8_t *bytes) {
    using Block = typename F::Block;
    Block *block = reinterpret_cast<Block *>(bytes);
    Fields f;
    for (int i = 0; i < columns; ++i) f.level[i] = reinterpret_cast<const int32_t *>(level + i)[lane];
    if constexpr (F::NESTED) {
        f.d[0] = to_half(splat(get_lane(g.d[0], lane)))[0];
        if (F::AFFINE) f.dmin[0] = to_half(splat(get_lane(g.dmin[0], lane)))[0];
        for (int j = 0; j < columns / F::SUB; ++j) {
            f.scale[j] = (int32_t)get_lane(g.scale[j], lane);
            if (F::AFFINE) f.minimum[j] = (int32_t)get_lane(g.minimum[j], lane);
        }
        F::write(f, *block);
    } else {
        for (int j = 0; j < columns / 32; ++j) {
            put_half(block[j].d, to_half(splat(get_lane(g.d[j], lane)))[0]);
            if constexpr (F::AFFINE) put_half(block[j].m, to_half(splat(get_lane(g.dmin[j], lane)))[0]);
            F::write(f.level + 32 * j, block[j]);
        }
    }
}

// `row[l]`: the bytes of lane l; lanes from `count` on repeat the last.
template <typename F>
static void read_grid(const uint8_t *const row[], int columns, Grid &g) {
    for (int l = 0; l < LANES; ++l) read_lane<F>(row[l], columns, l, g);
    set_factors<F>(g, columns / F::SUB);
}

template <typename F>
static void write_grid(const Grid &g, int columns, int count, uint8_t *const row[]) {
    alignas(64) vi level[COLUMNS];
    for (int i = 0; i < columns; ++i) level[i] = F::TABLE ? iq4::nearest_level(g.level[i]) : truncate(g.level[i]);
    for (int l = 0; l < count; ++l) write_lane<F>(g, level, columns, l, row[l]);
}

}  // namespace refine
}  // namespace JAMBA_VARIANT
}  // namespace quant
