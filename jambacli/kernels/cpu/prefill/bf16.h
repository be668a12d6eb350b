// Rounding vectors of floats to bf16 panels. Include only from files compiled for AVX512_BF16.
#pragma once

#include "base/simd.h"

namespace jamba {
namespace {

// 32 values, rounded to nearest even: `low` first.
inline __m512i to_bf16(vf high, vf low) { return (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low); }

// Two rows of 16 values to 16 pairs.
inline __m512i pair_rows(vf first, vf second) {
    const __m512i order = _mm512_set_epi32(0x1f000f, 0x1e000e, 0x1d000d, 0x1c000c, 0x1b000b, 0x1a000a, 0x190009, 0x180008,
                                           0x170007, 0x160006, 0x150005, 0x140004, 0x130003, 0x120002, 0x110001, 0x100000);
    return _mm512_permutexvar_epi16(order, to_bf16(second, first));
}

}  // namespace
}  // namespace jamba
