// bf16 panels on AVX-512: decoding blocks to bf16, packing pairs, and the product by vdpbf16ps. AMX uses all but the
// product. Knows nothing of threads or blocking.
#include "prefill_bf16.h"
#include "prefill_tiles.h"
#include "unpack_avx512.h"

namespace jamba {
namespace {

// One chunk of 32 values: bytes to scale * byte - offset.
template <class Format, int c>
inline void decode_chunk(const Unpacked& u, void* out) {
    const __m256i values = c % 2 ? _mm512_extracti64x4_epi64(u.w[c / 2], 1) : _mm512_castsi512_si256(u.w[c / 2]);
    const __m128i parts[2] = {_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1)};
    __m512 x[2];
    for (int half = 0; half < 2; ++half) {
        const __m512i group = _mm512_set1_epi32(Format::kGroup == 32 ? c : 2 * c + half);
        const __m512 scale = _mm512_permutexvar_ps(group, u.scale);
        x[half] = _mm512_cvtepi32_ps(Format::kSigned ? _mm512_cvtepi8_epi32(parts[half]) : _mm512_cvtepu8_epi32(parts[half]));
        x[half] = Format::kOffset ? _mm512_fmsub_ps(x[half], scale, _mm512_permutexvar_ps(group, u.offset))
                                  : _mm512_mul_ps(x[half], scale);
    }
    _mm512_storeu_si512(out, to_bf16((vf)x[1], (vf)x[0]));
}

template <class Format>
void decode_blocks(const uint8_t* row, int64_t first, int64_t n, float factor, void* out, int64_t step) {
    const uint8_t* p = row + first / 256 * Format::kBytes;
    uint16_t* y = static_cast<uint16_t*>(out);
    Unpacked u;
    for (; n >= 256; n -= 256, p += Format::kBytes, y += 8 * step) {
        Format::unpack(p, u);
        if (factor != 1.0f) u.scale = _mm512_mul_ps(u.scale, _mm512_set1_ps(factor));
        decode_chunk<Format, 0>(u, y);
        decode_chunk<Format, 1>(u, y + step);
        decode_chunk<Format, 2>(u, y + 2 * step);
        decode_chunk<Format, 3>(u, y + 3 * step);
        decode_chunk<Format, 4>(u, y + 4 * step);
        decode_chunk<Format, 5>(u, y + 5 * step);
        decode_chunk<Format, 6>(u, y + 6 * step);
        decode_chunk<Format, 7>(u, y + 7 * step);
    }
    if (n > 0) {  // the row ends inside 256 values: unpack a copy, for the file may end with the row
        alignas(64) uint8_t bytes[Format::kBytes] = {};
        alignas(64) uint16_t values[256];
        std::memcpy(bytes, p, static_cast<size_t>(n * Format::kBytes / 256));
        decode_blocks<Format>(bytes, 0, 256, factor, values, kChunk);
        for (int64_t c = 0; c * kChunk < n; ++c) std::memcpy(y + c * step, values + c * kChunk, kChunk * 2);
    }
}

void decode_bf16(const uint8_t* row, int64_t first, int64_t n, float, void* out, int64_t step) {
    const uint8_t* p = row + first * 2;
    uint16_t* y = static_cast<uint16_t*>(out);
    for (; n >= kChunk; n -= kChunk, p += 2 * kChunk, y += step) _mm512_storeu_si512(y, _mm512_loadu_si512(p));
    if (n > 0) _mm512_storeu_si512(y, _mm512_maskz_loadu_epi16((1u << n) - 1, p));
}

DecodeRow bf16_decoder(int type) {
    switch (type) {
        case kBF16: return decode_bf16;
        case kI8: return decode_blocks<I8>;
        case kQ4_0: return decode_blocks<Q4_0>;
        case kQ4_1: return decode_blocks<Q4_1>;
        case kQ5_0: return decode_blocks<Q5_0>;
        case kQ5_1: return decode_blocks<Q5_1>;
        case kQ8_0: return decode_blocks<Q8_0>;
        case kQ2_K: return decode_blocks<Q2_K>;
        case kQ3_K: return decode_blocks<Q3_K>;
        case kQ4_K: return decode_blocks<Q4_K>;
        case kQ5_K: return decode_blocks<Q5_K>;
        case kQ6_K: return decode_blocks<Q6_K>;
        case kIQ4_NL: return decode_blocks<IQ4_NL>;
        case kIQ4_XS: return decode_blocks<IQ4_XS>;
        default: return nullptr;
    }
}

void pack_bf16(const float* const* rows, int64_t k, void* out) {
    __m512i* panel = static_cast<__m512i*>(out);
    for (int64_t i = 0; i < k; i += kChunk, panel += 16) {
        __m512i r[16];
        for (int m = 0; m < 16; ++m)
            r[m] = rows[m] ? to_bf16(load_part(rows[m] + i + 16, k - i - 16), load_part(rows[m] + i, k - i))
                           : _mm512_setzero_si512();
        transpose16(r);
        for (int pair = 0; pair < 16; ++pair) _mm512_store_si512(panel + pair, r[pair]);
    }
}

void gate_bf16(const float* g, const float* u, int64_t n_groups, int64_t m_groups, void* out, int64_t stride) {
    for (int64_t mg = 0; mg < m_groups; ++mg) {
        uint16_t* to = static_cast<uint16_t*>(out) + mg * stride;
        for (int64_t ng = 0; ng < n_groups; ++ng) {
            const int64_t tile = (ng * m_groups + mg) * kTile;
            for (int i = 0; i < 16; i += 2, to += 32) {
                const vf low = siluv(load(g + tile + 16 * i)) * load(u + tile + 16 * i);
                const vf high = siluv(load(g + tile + 16 * i + 16)) * load(u + tile + 16 * i + 16);
                _mm512_storeu_si512(to, pair_rows(low, high));
            }
        }
    }
}

// kRows rows of weights times kGroups groups of inputs, two values of k at a time.
template <int kRows, int kGroups>
inline void micro(const uint16_t* w, const uint16_t* x, int64_t x_stride, int64_t chunks, float* c, bool accumulate) {
    __m512 acc[kRows][kGroups];
    for (int r = 0; r < kRows; ++r)
        for (int g = 0; g < kGroups; ++g)
            acc[r][g] = accumulate ? _mm512_loadu_ps(c + g * kTile + 16 * r) : _mm512_setzero_ps();
    for (int64_t i = 0; i < chunks; ++i, w += kChunkSize, x += kChunkSize) {
        for (int pair = 0; pair < 16; ++pair) {
            __m512i b[kGroups];
            for (int g = 0; g < kGroups; ++g) b[g] = _mm512_loadu_si512(x + g * x_stride + 32 * pair);
            for (int r = 0; r < kRows; ++r) {
                int32_t two;
                std::memcpy(&two, w + r * kChunk + 2 * pair, 4);
                const __m512i a = _mm512_set1_epi32(two);
                for (int g = 0; g < kGroups; ++g) acc[r][g] = _mm512_dpbf16_ps(acc[r][g], (__m512bh)a, (__m512bh)b[g]);
            }
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int g = 0; g < kGroups; ++g) _mm512_storeu_ps(c + g * kTile + 16 * r, acc[r][g]);
}

template <int kGroups>
void columns(const uint16_t* w, int64_t n_groups, int64_t w_stride, const uint16_t* x, int64_t x_stride, int64_t chunks,
             float* c, int64_t c_stride, bool accumulate) {
    for (int64_t ng = 0; ng < n_groups; ++ng, w += w_stride, c += c_stride) {
        micro<8, kGroups>(w, x, x_stride, chunks, c, accumulate);
        micro<8, kGroups>(w + 8 * kChunk, x, x_stride, chunks, c + 8 * 16, accumulate);
    }
}

void multiply_bf16(const void* w, int64_t n_groups, int64_t w_stride, const void* x, int64_t m_groups, int64_t x_stride,
                   int64_t chunks, float* c, bool accumulate) {
    const uint16_t* weights = static_cast<const uint16_t*>(w);
    const uint16_t* inputs = static_cast<const uint16_t*>(x);
    const int64_t c_stride = m_groups * kTile;
    for (int64_t mg = 0; mg < m_groups;) {
        const int64_t left = m_groups - mg, take = left == 4 ? 2 : left < 3 ? left : 3;  // 4 is 2 + 2, not 3 + 1
        const uint16_t* from = inputs + mg * x_stride;
        float* to = c + mg * kTile;
        if (take == 3)
            columns<3>(weights, n_groups, w_stride, from, x_stride, chunks, to, c_stride, accumulate);
        else if (take == 2)
            columns<2>(weights, n_groups, w_stride, from, x_stride, chunks, to, c_stride, accumulate);
        else
            columns<1>(weights, n_groups, w_stride, from, x_stride, chunks, to, c_stride, accumulate);
        mg += take;
    }
}

}  // namespace

const PanelOps kPanelsBf16{2, 256, bf16_decoder, pack_bf16, nothing, nothing, multiply_bf16, store_tiles, gate_bf16};
const PanelOps kPanelsAmx{2, 512, bf16_decoder, pack_bf16, enter_amx, leave_amx, multiply_amx, store_tiles, gate_bf16};

}  // namespace jamba
