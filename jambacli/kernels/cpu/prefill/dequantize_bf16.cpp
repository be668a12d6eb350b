// Dequantization of block formats to bf16 panels on AVX-512.
//
// A format of b bits has 2^b values per sub-block, so up to five bits the values are computed once, into a table of 32
// bf16 words (one or more sub-blocks), and each weight is one lookup: a third of the work of converting, scaling and
// rounding every weight. The wider formats do the latter. Every value is scale * q - offset in f32 (one rounding), then
// rounded to nearest even.
#include "prefill/gemm.h"
#include "prefill/bf16.h"
#include "prefill/unpack_avx512.h"

namespace jamba {
namespace {

// Scales and offsets of a super-block, where single ones can be broadcast from.
struct Scales {
    alignas(64) float scale[16], offset[16];

    template <class Format>
    inline void read(const typename Format::Block* b) {
        Unpacked u;
        Format::unpack(b, u);  // the compiler removes what is unused
        _mm512_store_ps(scale, u.scale);
        if (Format::kOffset) _mm512_store_ps(offset, u.offset);
        // Broadcasts from memory cost a load each; the compiler would take them from the register with two shuffles.
        __asm__ __volatile__("" : "+m"(scale), "+m"(offset));
    }
    // scale[g] * codes - offset[g]
    inline vf values(int g, vf codes) const {
        return (vf)_mm512_fmsub_ps((__m512)codes, _mm512_set1_ps(scale[g]), _mm512_set1_ps(offset[g]));
    }
    inline vf scaled(int g, vf codes) const { return codes * set1(scale[g]); }
};

inline vf count_up(int from) {
    return (vf)_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_set1_epi32(from), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10,
                                                                                           11, 12, 13, 14, 15)));
}
inline vf iq4_floats() {
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(kIq4Values))));
}

inline __m512i words(int x) { return _mm512_set1_epi16(static_cast<int16_t>(x)); }
// A word of `low` in lanes 0-15, of `high` in lanes 16-31.
inline __m512i word_halves(int low, int high) {
    return _mm512_inserti64x4(words(low), _mm256_set1_epi16(static_cast<int16_t>(high)), 1);
}
inline __m512i load_words(const uint8_t* p) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void look_up(__m512i index, __m512i table, uint16_t* out) {
    _mm512_storeu_si512(out, _mm512_permutexvar_epi16(index, table));
}
// The 32 codes of 16 bytes of nibbles, low nibbles first; bits above the nibble are not clear.
inline __m512i nibble_words(const uint8_t* p) {
    const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm512_srlv_epi16(_mm512_cvtepu8_epi16(twice), word_halves(0, 4));
}

// The 16 bytes of levels of group c of 32 values.
template <class Block>
inline const uint8_t* nibbles_of(const Block* b, int c) { return b[c].qs; }
inline const uint8_t* nibbles_of(const block_iq4_xs* b, int c) { return b->qs + 16 * c; }

// Q4_0, Q4_1, IQ4_NL, IQ4_XS: two groups share a table.
template <class Format, bool kCodebook>
struct Nibbles : Format {
    using typename Format::Block;
    static inline void dequantize(const Block* b, uint16_t* y, int64_t step) {
        Scales s;
        s.read<Format>(b);
        const vf codes = kCodebook ? iq4_floats() : count_up(0);
        for (int c = 0; c < 8; c += 2) {
            const __m512i table = Format::kOffset ? to_bf16(s.values(c + 1, codes), s.values(c, codes))
                                                  : to_bf16(s.scaled(c + 1, codes), s.scaled(c, codes));
            look_up(_mm512_and_si512(nibble_words(nibbles_of(b, c)), words(15)), table, y + c * step);
            look_up(and_or(nibble_words(nibbles_of(b, c + 1)), words(15), words(16)), table, y + (c + 1) * step);
        }
    }
};

// Q5_0, Q5_1: as above with the fifth bits of the group.
template <class Format>
struct Fives : Format {
    using typename Format::Block;
    static inline void dequantize(const Block* b, uint16_t* y, int64_t step) {
        Scales s;
        s.read<Format>(b);
        for (int c = 0; c < 8; ++c) {
            const __m512i table = to_bf16(s.values(c, count_up(16)), s.values(c, count_up(0)));
            const __m512i index = _mm512_and_si512(nibble_words(b[c].qs), words(15));
            look_up(_mm512_or_si512(index, _mm512_maskz_mov_epi16(read_u32(b[c].qh), words(16))), table, y + c * step);
        }
    }
};

struct FourK : Q4_K {
    static inline void dequantize(const Block* b, uint16_t* y, int64_t step) {
        Scales s;
        s.read<Q4_K>(b);
        for (int k = 0; k < 4; ++k) {
            const __m512i table = to_bf16(s.values(2 * k + 1, count_up(0)), s.values(2 * k, count_up(0)));
            const __m512i both = load_words(b->qs + 32 * k);
            look_up(_mm512_and_si512(both, words(15)), table, y + 2 * k * step);
            look_up(_mm512_or_si512(_mm512_srli_epi16(both, 4), words(16)), table, y + (2 * k + 1) * step);
        }
    }
};

struct FiveK : Q5_K {
    static inline void dequantize(const Block* b, uint16_t* y, int64_t step) {
        Scales s;
        s.read<Q5_K>(b);
        const __m512i high = _mm512_slli_epi16(load_words(b->qh), 4);  // bit c + 4: the fifth bit of group c
        for (int c = 0; c < 8; ++c) {
            const __m512i table = to_bf16(s.values(c, count_up(16)), s.values(c, count_up(0)));
            const __m512i both = load_words(b->qs + c / 2 * 32);
            const __m512i low = c % 2 ? _mm512_srli_epi16(both, 4) : _mm512_and_si512(both, words(15));
            look_up(and_or(_mm512_srli_epi16(high, static_cast<unsigned>(c)), words(16), low), table, y + c * step);
        }
    }
};

// Lane numbers shifted right, from `first` on: 2^shift lanes each of scales first, first + 1, ...
inline __m512i spread(int first, int shift) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_add_epi32(_mm512_set1_epi32(first), _mm512_srli_epi32(lane, static_cast<unsigned>(shift)));
}

struct ThreeK : Q3_K {
    static inline void dequantize(const Block* b, uint16_t* y, int64_t step) {
        Unpacked u;
        unpack(b, u);
        const __m512 codes = _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_and_si512(spread(0, 0), _mm512_set1_epi32(7))),
                                           _mm512_set1_ps(4.0f));
        const __m512i high = _mm512_slli_epi16(load_words(b->hmask), 2);  // bit c + 2: the third bit of chunk c
        for (int c = 0; c < 8; c += 2) {  // a table of the four sub-blocks of two chunks, eight values each
            const __m512i table =
                to_bf16((vf)_mm512_mul_ps(codes, _mm512_permutexvar_ps(spread(2 * c + 2, 3), u.scale)),
                        (vf)_mm512_mul_ps(codes, _mm512_permutexvar_ps(spread(2 * c, 3), u.scale)));
            const __m512i low = load_words(b->qs + c / 4 * 32);
            for (int i = 0; i < 2; ++i) {
                const unsigned shift = static_cast<unsigned>(2 * ((c + i) % 4));
                const __m512i two = and_or(_mm512_srli_epi16(low, shift), words(3), word_halves(16 * i, 16 * i + 8));
                look_up(and_or(_mm512_srli_epi16(high, static_cast<unsigned>(c + i)), words(4), two), table, y + (c + i) * step);
            }
        }
    }
};

struct TwoK : Q2_K {
    static inline void dequantize(const Block* b, uint16_t* y, int64_t step) {
        Unpacked u;
        unpack(b, u);
        const __m512 codes = _mm512_cvtepi32_ps(_mm512_and_si512(spread(0, 0), _mm512_set1_epi32(3)));
        const auto values = [&](int first) {
            const __m512i group = spread(first, 2);
            return (vf)_mm512_fmsub_ps(codes, _mm512_permutexvar_ps(group, u.scale), _mm512_permutexvar_ps(group, u.offset));
        };
        for (int h = 0; h < 2; ++h) {  // a table of the eight sub-blocks of four chunks, four values each
            const __m512i table = to_bf16(values(8 * h + 4), values(8 * h));
            const __m512i low = load_words(b->qs + 32 * h);
            for (int j = 0; j < 4; ++j)
                look_up(and_or(_mm512_srli_epi16(low, static_cast<unsigned>(2 * j)), words(3), word_halves(8 * j, 8 * j + 4)),
                        table, y + (4 * h + j) * step);
        }
    }
};

// Q6_K: every value converted, less an offset that is a whole number of codes.
template <class Format, int kZero>
struct Bytes : Format {
    using typename Format::Block;
    static inline void dequantize(const Block* b, uint16_t* y, int64_t step) {
        Unpacked u;
        Format::unpack(b, u);
        alignas(64) float scale[16];
        alignas(64) int8_t codes[256];
        _mm512_store_ps(scale, u.scale);
        __asm__ __volatile__("" : "+m"(scale));  // as in Scales
        for (int k = 0; k < 4; ++k) _mm512_store_si512(codes + 64 * k, kZero ? _mm512_sub_epi8(u.w[k], bytes(kZero)) : u.w[k]);
        for (int c = 0; c < 8; ++c) {
            vf x[2];
            for (int half = 0; half < 2; ++half) {
                const __m128i* from = reinterpret_cast<const __m128i*>(codes + 32 * c + 16 * half);
                const int g = Format::kGroup == 32 ? c : 2 * c + half;
                x[half] = (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(from))) * set1(scale[g]);
            }
            _mm512_storeu_si512(y + c * step, to_bf16(x[1], x[0]));
        }
    }
};

struct EightBits : Q8_0 {
    static inline void dequantize(const Block* b, uint16_t* y, int64_t step) {
        for (int c = 0; c < 8; ++c) {
            const vf scale = set1(to_float(b[c].d));
            vf x[2];
            for (int i = 0; i < 2; ++i)
                x[i] = (vf)_mm512_cvtepi32_ps(
                           _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b[c].qs + 16 * i)))) *
                       scale;
            _mm512_storeu_si512(y + c * step, to_bf16(x[1], x[0]));
        }
    }
};

template <class Format>
void dequantize_row(const uint8_t* row, int64_t first, int64_t n, float, void* out, int64_t step) {
    using Block = typename Format::Block;
    const uint8_t* p = row + first / 256 * Format::kBytes;
    uint16_t* y = static_cast<uint16_t*>(out);
    for (; n >= 256; n -= 256, p += Format::kBytes, y += 8 * step)
        Format::dequantize(reinterpret_cast<const Block*>(p), y, step);
    if (n > 0) {  // the row ends inside 256 values: dequantize a copy, for the file may end with the row
        alignas(64) uint8_t bytes[Format::kBytes] = {};
        alignas(64) uint16_t values[256];
        std::memcpy(bytes, p, static_cast<size_t>(n * Format::kBytes / 256));
        Format::dequantize(reinterpret_cast<const Block*>(bytes), values, kChunk);
        for (int64_t c = 0; c * kChunk < n; ++c) std::memcpy(y + c * step, values + c * kChunk, kChunk * 2);
    }
}

void dequantize_i8(const uint8_t* row, int64_t first, int64_t n, float factor, void* out, int64_t step) {
    const uint8_t* p = row + first;
    uint16_t* y = static_cast<uint16_t*>(out);
    for (; n > 0; n -= kChunk, p += kChunk, y += step) {
        const __mmask32 mask = n >= kChunk ? ~0u : (1u << n) - 1;
        const __m256i codes = _mm256_maskz_loadu_epi8(mask, p);
        const __m512i low = _mm512_cvtepi8_epi32(_mm256_castsi256_si128(codes));
        const __m512i high = _mm512_cvtepi8_epi32(_mm256_extracti128_si256(codes, 1));
        _mm512_storeu_si512(y, to_bf16((vf)_mm512_cvtepi32_ps(high) * factor, (vf)_mm512_cvtepi32_ps(low) * factor));
    }
}

void dequantize_bf16(const uint8_t* row, int64_t first, int64_t n, float, void* out, int64_t step) {
    const uint8_t* p = row + first * 2;
    uint16_t* y = static_cast<uint16_t*>(out);
    for (; n >= kChunk; n -= kChunk, p += 2 * kChunk, y += step) _mm512_storeu_si512(y, _mm512_loadu_si512(p));
    if (n > 0) _mm512_storeu_si512(y, _mm512_maskz_loadu_epi16((1u << n) - 1, p));
}

}  // namespace

namespace JAMBA_VARIANT {

DequantizeRow bf16_dequantizer(int type) {
    switch (type) {
        case kBF16: return dequantize_bf16;
        case kI8: return dequantize_i8;
        case kQ4_0: return dequantize_row<Nibbles<Q4_0, false>>;
        case kQ4_1: return dequantize_row<Nibbles<Q4_1, false>>;
        case kQ5_0: return dequantize_row<Fives<Q5_0>>;
        case kQ5_1: return dequantize_row<Fives<Q5_1>>;
        case kQ8_0: return dequantize_row<EightBits>;
        case kQ2_K: return dequantize_row<TwoK>;
        case kQ3_K: return dequantize_row<ThreeK>;
        case kQ4_K: return dequantize_row<FourK>;
        case kQ5_K: return dequantize_row<FiveK>;
        case kQ6_K: return dequantize_row<Bytes<Q6_K, 32>>;
        case kIQ4_NL: return dequantize_row<Nibbles<IQ4_NL, true>>;
        case kIQ4_XS: return dequantize_row<Nibbles<IQ4_XS, true>>;
        default: return nullptr;
    }
}

}  // namespace JAMBA_VARIANT
}  // namespace jamba
