// The vector operations that every quantizer is written with: one block per SIMD lane.
//
// The file is compiled once per level, in the namespace JAMBA_VARIANT. `vf`, `vi` and `vm` are LANES floats, int32 and truth
// values. Each operation is the IEEE one, applied per lane, in the order written (the build forbids contraction), so a lane
// computes what ggml's scalar code computes for its block.
#pragma once

#include <cstdint>
#include <cstring>

#include "quant/native/block_formats.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

// Floats per vector.
#if defined(__AVX512F__)
#define QUANT_LANES 16
#elif defined(__AVX2__)
#define QUANT_LANES 8
#else
#define QUANT_LANES 4
#endif

#define LANE_FN static inline __attribute__((always_inline))

namespace quant {

using namespace native;

namespace JAMBA_VARIANT {

constexpr int LANES = QUANT_LANES;

typedef float vf __attribute__((vector_size(4 * QUANT_LANES)));
typedef int32_t vi __attribute__((vector_size(4 * QUANT_LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * QUANT_LANES)));

LANE_FN vf splat(float x) { return x - vf{}; }
LANE_FN vi splat(int32_t x) { return x - vi{}; }
LANE_FN vi bits(vf x) { return (vi)x; }
LANE_FN vf unbits(vi x) { return (vf)x; }
LANE_FN vf to_float(vi x) { return __builtin_convertvector(x, vf); }
// Toward zero; INT_MIN where the value does not fit, as x86's scalar conversion (and so ggml's casts) give.
LANE_FN vi truncate(vf x) {
#if QUANT_LANES == 16
    return (vi)_mm512_cvttps_epi32((__m512)x);
#elif QUANT_LANES == 8 && defined(__AVX2__)
    return (vi)_mm256_cvttps_epi32((__m256)x);
#elif defined(__SSE2__)
    return (vi)_mm_cvttps_epi32((__m128)x);
#else
    const vi fits = (x < 2147483648.0f) & (x >= -2147483648.0f);
    return fits ? __builtin_convertvector(fits ? x : vf{}, vi) : vi{} + INT32_MIN;
#endif
}

#if QUANT_LANES == 16
typedef __mmask16 vm;
LANE_FN vm lt(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
LANE_FN vm le(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ); }
LANE_FN vm eq(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ); }
LANE_FN vm lt(vi a, vi b) { return _mm512_cmplt_epi32_mask((__m512i)a, (__m512i)b); }
LANE_FN vm eq(vi a, vi b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
LANE_FN vf select(vm m, vf yes, vf no) { return (vf)_mm512_mask_blend_ps(m, (__m512)no, (__m512)yes); }
LANE_FN vi select(vm m, vi yes, vi no) { return (vi)_mm512_mask_blend_epi32(m, (__m512i)no, (__m512i)yes); }
LANE_FN vm both(vm a, vm b) { return a & b; }
LANE_FN vm either(vm a, vm b) { return a | b; }
LANE_FN vm inverse(vm a) { return (vm)~a; }
LANE_FN bool any(vm m) { return m != 0; }
LANE_FN vm none() { return 0; }
#else
typedef vi vm;
LANE_FN vm lt(vf a, vf b) { return a < b; }
LANE_FN vm le(vf a, vf b) { return a <= b; }
LANE_FN vm eq(vf a, vf b) { return a == b; }
LANE_FN vm lt(vi a, vi b) { return a < b; }
LANE_FN vm eq(vi a, vi b) { return a == b; }
LANE_FN vf select(vm m, vf yes, vf no) { return m ? yes : no; }
LANE_FN vi select(vm m, vi yes, vi no) { return m ? yes : no; }
LANE_FN vm both(vm a, vm b) { return a & b; }
LANE_FN vm either(vm a, vm b) { return a | b; }
LANE_FN vm inverse(vm a) { return ~a; }
LANE_FN bool any(vm m) {
#if QUANT_LANES == 8 && defined(__AVX2__)
    return _mm256_movemask_ps((__m256)m) != 0;
#elif QUANT_LANES == 4 && defined(__SSE2__)
    return _mm_movemask_ps((__m128)m) != 0;
#else
    int32_t seen = 0;
    for (int l = 0; l < LANES; ++l) seen |= m[l];
    return seen != 0;
#endif
}
LANE_FN vm none() { return vi{}; }
#endif
LANE_FN vm gt(vf a, vf b) { return lt(b, a); }
LANE_FN vm ge(vf a, vf b) { return le(b, a); }
LANE_FN vm gt(vi a, vi b) { return lt(b, a); }

LANE_FN vf absolute(vf x) { return unbits(bits(x) & 0x7fffffff); }
#if QUANT_LANES == 16
LANE_FN vi lesser(vi a, vi b) { return (vi)_mm512_min_epi32((__m512i)a, (__m512i)b); }
LANE_FN vi greater(vi a, vi b) { return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b); }
#elif QUANT_LANES == 8
LANE_FN vi lesser(vi a, vi b) { return (vi)_mm256_min_epi32((__m256i)a, (__m256i)b); }
LANE_FN vi greater(vi a, vi b) { return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b); }
#else
LANE_FN vi lesser(vi a, vi b) { return select(lt(a, b), a, b); }
LANE_FN vi greater(vi a, vi b) { return select(lt(a, b), b, a); }
#endif
LANE_FN vi clamp(vi x, int low, int high) { return lesser(greater(x, splat(low)), splat(high)); }

// Round half to even through the float adder, as ggml's nearest_int does; wraps like it does beyond 2^22.
LANE_FN vi nearest_int(vf x) { return (bits(x + 12582912.0f) & 0x007fffff) - 0x00400000; }

// C's roundf (halves away from zero) of a value below 2^22, as an int; what roundf cannot hold becomes INT_MIN.
// The addend is the float just below a half: 0.49999997 stays 0 and 0.5 becomes 1.
LANE_FN vi round_away(vf x) {
    const vi sign = bits(x) & INT32_MIN;
    return truncate(x + unbits(sign | 0x3effffff));
}

#if QUANT_LANES == 4
LANE_FN vf square_root(vf x) {
    for (int l = 0; l < LANES; ++l) x[l] = __builtin_sqrtf(x[l]);
    return x;
}
#elif QUANT_LANES == 8
LANE_FN vf square_root(vf x) { return (vf)_mm256_sqrt_ps((__m256)x); }
#else
LANE_FN vf square_root(vf x) { return (vf)_mm512_sqrt_ps((__m512)x); }
#endif

// f32 -> f16, round to nearest even, subnormals kept, overflow to infinity, NaN to the quiet NaN of its sign.
LANE_FN vi to_half(vf x) {
#if QUANT_LANES == 16
    return (vi)_mm512_cvtepu16_epi32(_mm512_cvtps_ph((__m512)x, 0));
#elif QUANT_LANES == 8
    return (vi)_mm256_cvtepu16_epi32(_mm256_cvtps_ph((__m256)x, 0));
#else
    vi sign = (bits(x) >> 16) & 0x8000;
    vi magnitude = bits(x) & 0x7fffffff;
    // Normal halves: rebias the exponent, round the 13 bits that go.
    vi normal = (magnitude - 0x38000000 + 0x0fff + ((magnitude >> 13) & 1)) >> 13;
    normal = lesser(normal, splat(0x7c00));
    // Subnormal halves: adding 0.5 makes the float adder round at the right place.
    vi small = bits(unbits(magnitude) + 0.5f) - 0x3f000000;
    vi half = select(lt(magnitude, splat(0x38800000)), small, normal);
#if defined(__SSE2__)
    const int quiet_nan = 0x7e00;
#else
    const int quiet_nan = 0xfe00;  // x86's own NaNs, which ggml's bytes show, are negative; other processors' are not
#endif
    return sign | select(gt(magnitude, splat(0x7f800000)), splat(quiet_nan), half);
#endif
}

// f16 bits (in the low half of each lane) -> f32, exact.
LANE_FN vf from_half(vi h) {
#if QUANT_LANES == 16
    return (vf)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)h));
#elif QUANT_LANES == 8
    __m256i packed = _mm256_packus_epi32((__m256i)(h & 0xffff), (__m256i)(h & 0xffff));
    return (vf)_mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
#else
    vi sign = (h & 0x8000) << 16;
    vi rest = h & 0x7fff;
    vf normal = unbits((rest << 13) + 0x38000000);
    vf special = unbits((rest << 13) | 0x7f800000);
    vf small = to_float(rest) * 5.9604644775390625e-8f;  // 2^-24
    vf value = select(lt(rest, splat(0x0400)), small, select(lt(rest, splat(0x7c00)), normal, special));
    return unbits(bits(value) | sign);
#endif
}

LANE_FN float to_float(const Half &half) {
    const uint16_t h = read_u16(&half);
#if defined(__F16C__)
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h)));
#else
    return from_half(splat((int32_t)h))[0];
#endif
}

LANE_FN vf load(const float *p) {
    vf v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
LANE_FN void store(float *p, vf v) { std::memcpy(p, &v, sizeof v); }

// Lane l is lane index[l] of a, then b; index is a constant.
LANE_FN vf shuffle(vf a, vf b, vi index) {
#if defined(__clang__)
    vf out = {};
#pragma unroll
    for (int l = 0; l < LANES; ++l) out[l] = index[l] < LANES ? a[index[l]] : b[index[l] - LANES];
    return out;
#else
    return __builtin_shuffle(a, b, index);
#endif
}

// Swaps the halves of neighbours STEP apart: lane l of v[i] and lane l ^ STEP of v[i ^ STEP] where their bits differ.
template <int STEP>
LANE_FN void exchange(vf *v) {
    vi low = {}, high = {};
#pragma GCC unroll 16
    for (int l = 0; l < LANES; ++l) {
        low[l] = l & STEP ? l - STEP + LANES : l;
        high[l] = l & STEP ? l + LANES : l + STEP;
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) {
        if (i & STEP) continue;
        const vf a = v[i], b = v[i + STEP];
        v[i] = shuffle(a, b, low);
        v[i + STEP] = shuffle(a, b, high);
    }
}

// out[i] lane l = in[l] lane i.
LANE_FN void transpose(vf *v) {
    if constexpr (LANES >= 16) exchange<8>(v);
    if constexpr (LANES >= 8) exchange<4>(v);
    exchange<2>(v);
    exchange<1>(v);
}

// The same `count` values (a multiple of LANES) of LANES blocks: out[j] lane l = block[l][j].
LANE_FN void load_blocks(const float *const block[], int count, vf *out) {
    for (int j = 0; j < count; j += LANES) {
        for (int l = 0; l < LANES; ++l) out[j + l] = load(block[l] + j);
        transpose(out + j);
    }
}

}  // namespace JAMBA_VARIANT
}  // namespace quant
