// The block formats of GGUF: type ids, the fields of every block, and the reading of fields that are packed across bytes.
//
// Included by the quantizer's library and by the CPU kernels. A format is one line of BLOCK_FORMATS and one struct. Structs
// have no alignment, since rows may begin at any address, and are little-endian as the file is. Field names are ggml's.
#pragma once

#include <string.h>

#include <cstdint>

namespace native {

// FORMAT(name, struct, type id): formats whose values share scales. quant/formats.py has the same ones as `native`.
#define BLOCK_FORMATS(FORMAT)        \
    FORMAT(Q4_0, block_q4_0, 2)      \
    FORMAT(Q4_1, block_q4_1, 3)      \
    FORMAT(Q5_0, block_q5_0, 6)      \
    FORMAT(Q5_1, block_q5_1, 7)      \
    FORMAT(Q8_0, block_q8_0, 8)      \
    FORMAT(Q2_K, block_q2_k, 10)     \
    FORMAT(Q3_K, block_q3_k, 11)     \
    FORMAT(Q4_K, block_q4_k, 12)     \
    FORMAT(Q5_K, block_q5_k, 13)     \
    FORMAT(Q6_K, block_q6_k, 14)     \
    FORMAT(IQ4_NL, block_iq4_nl, 20) \
    FORMAT(IQ4_XS, block_iq4_xs, 23)

#define FORMAT(name, block, id) k##name = id,
enum Type : int32_t { kF32 = 0, kF16 = 1, kI8 = 24, kBF16 = 30, BLOCK_FORMATS(FORMAT) kTypes = 64 };
#undef FORMAT

// Arrays indexed by type have kTypes entries.
#define FORMAT(name, block, id) static_assert(id >= 0 && id < kTypes, "raise kTypes");
BLOCK_FORMATS(FORMAT)
#undef FORMAT

// The bits of an f16.
struct Half {
    uint8_t bytes[2];
};

struct block_q4_0 {
    static constexpr int kValues = 32;
    Half d;          // value = d * (level - 8)
    uint8_t qs[16];  // levels i low, i + 16 high
};

struct block_q4_1 {
    static constexpr int kValues = 32;
    Half d, m;  // value = d * level + m
    uint8_t qs[16];
};

struct block_q5_0 {
    static constexpr int kValues = 32;
    Half d;          // value = d * (level - 16)
    uint8_t qh[4];   // bit i: the fifth bit of level i
    uint8_t qs[16];  // the low four bits, as in block_q4_0
};

struct block_q5_1 {
    static constexpr int kValues = 32;
    Half d, m;  // value = d * level + m
    uint8_t qh[4];
    uint8_t qs[16];
};

struct block_q8_0 {
    static constexpr int kValues = 32;
    Half d;  // value = d * level
    int8_t qs[32];
};

struct block_q2_k {
    static constexpr int kValues = 256;
    uint8_t scales[16];  // of 16 values each: four bits of scale, then four of minimum
    uint8_t qs[64];      // byte i of a half: levels i, i + 32, i + 64, i + 96, two bits each
    Half d, dmin;        // value = d * scale * level - dmin * minimum
};

struct block_q3_k {
    static constexpr int kValues = 256;
    uint8_t hmask[32];   // bit j of byte i: the third bit of level 32 j + i
    uint8_t qs[64];      // the low two bits, as in block_q2_k
    uint8_t scales[12];  // sixteen of six bits (q3_scale)
    Half d;              // value = d * (scale - 32) * (level - 4)
};

struct block_q4_k {
    static constexpr int kValues = 256;
    Half d, dmin;        // value = d * scale * level - dmin * minimum
    uint8_t scales[12];  // eight scales and minimums of six bits (k_scale_and_minimum)
    uint8_t qs[128];     // byte i of a quarter: levels i low, i + 32 high
};

struct block_q5_k {
    static constexpr int kValues = 256;
    Half d, dmin;
    uint8_t scales[12];
    uint8_t qh[32];   // bit j of byte i: the fifth bit of level 32 j + i
    uint8_t qs[128];  // the low four bits, as in block_q4_k
};

struct block_q6_k {
    static constexpr int kValues = 256;
    uint8_t ql[128];    // byte i of a half: the low four bits of levels i and i + 64 (i < 64)
    uint8_t qh[64];     // byte i of a half: the high two bits of levels i, i + 32, i + 64, i + 96
    int8_t scales[16];  // of 16 values each
    Half d;             // value = d * scale * (level - 32)
};

struct block_iq4_nl {
    static constexpr int kValues = 32;
    Half d;  // value = d * kIq4Values[level]
    uint8_t qs[16];
};

struct block_iq4_xs {
    static constexpr int kValues = 256;
    Half d;              // value = d * (scale - 32) * kIq4Values[level]
    uint8_t scales_h[2];  // the high two bits of eight scales
    uint8_t scales_l[4];  // the low four bits
    uint8_t qs[128];      // 16 bytes for each 32 levels, as in block_iq4_nl
};

// One value of ExpertsInt8, whose scale is the row's.
struct block_i8 {
    static constexpr int kValues = 1;
    int8_t q;
};

static_assert(sizeof(block_q4_0) == 18 && sizeof(block_q4_1) == 20 && sizeof(block_q5_0) == 22, "the layout of GGUF");
static_assert(sizeof(block_q5_1) == 24 && sizeof(block_q8_0) == 34 && sizeof(block_q2_k) == 84, "the layout of GGUF");
static_assert(sizeof(block_q3_k) == 110 && sizeof(block_q4_k) == 144 && sizeof(block_q5_k) == 176, "the layout of GGUF");
static_assert(sizeof(block_q6_k) == 210 && sizeof(block_iq4_nl) == 18 && sizeof(block_iq4_xs) == 136, "the layout of GGUF");
static_assert(sizeof(block_i8) == 1, "one byte a value");

struct TypeInfo {
    int values;  // in a block; 0: no type of this table
    int bytes;   // of a block
};

static inline TypeInfo type_info(int32_t type) {
    switch (type) {
        case kF32: return {1, 4};
        case kF16: case kBF16: return {1, 2};
        case kI8: return {1, 1};
#define FORMAT(name, block, id) \
    case k##name: return {block::kValues, sizeof(block)};
            BLOCK_FORMATS(FORMAT)
#undef FORMAT
        default: return {0, 0};
    }
}

// The sixteen values of the IQ4 formats' levels.
alignas(16) constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

static inline uint16_t read_u16(const void* p) {
    uint16_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline uint32_t read_u32(const void* p) {
    uint32_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline uint64_t read_u64(const void* p) {
    uint64_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

// The six-bit scale and minimum of sub-block j (0 to 7) of Q4_K and Q5_K.
static inline void k_scale_and_minimum(const uint8_t* scales, int j, int& scale, int& minimum) {
    if (j < 4) {
        scale = scales[j] & 63;
        minimum = scales[j + 4] & 63;
    } else {
        scale = (scales[j + 4] & 15) | (scales[j - 4] >> 6) << 4;
        minimum = (scales[j + 4] >> 4) | (scales[j] >> 6) << 4;
    }
}

// The six-bit scale of sub-block j (0 to 15) of Q3_K, less 32.
static inline int q3_scale(const uint8_t* scales, int j) {
    const int low = j < 8 ? scales[j] & 15 : scales[j - 8] >> 4;
    return (low | (scales[8 + j % 4] >> (2 * (j / 4)) & 3) << 4) - 32;
}

// The six-bit scale of sub-block j (0 to 7) of IQ4_XS, less 32.
static inline int iq4_xs_scale(const block_iq4_xs& b, int j) {
    const int low = b.scales_l[j / 2] >> (4 * (j % 2)) & 15;
    return (low | (read_u16(b.scales_h) >> (2 * j) & 3) << 4) - 32;
}

}  // namespace native
