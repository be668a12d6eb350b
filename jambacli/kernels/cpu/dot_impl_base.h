// Products of block-quantized rows with activations in two int8 each through unpack_base.h: slow and plain. Included by dot_base.cpp
// and, with the dot-product instruction, by dot_neon.cpp. Knows nothing of threads.
#pragma once

#include "ops.h"
#include "unpack_base.h"

#if defined(JAMBA_NEON_DOT)
#include <arm_neon.h>
#endif

namespace jamba {
namespace {

inline int32_t dot16(const int8_t* a, const int8_t* b) {
#if defined(JAMBA_NEON_DOT)
    return vaddvq_s32(vdotq_s32(vdupq_n_s32(0), vld1q_s8(a), vld1q_s8(b)));
#else
    int32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += static_cast<int32_t>(a[i]) * b[i];
    return sum;
#endif
}

using Unpack = void (*)(const uint8_t*, Values&);

template <Unpack unpack, int kBytes>
void base_gemv(const Rows& w, const Act& act, const int32_t* tokens, int m, int64_t r0, int64_t r1, float* y,
               int64_t ldy) {
    constexpr int kMost = 16;
    const int64_t full = w.n / 256, rest = w.row_bytes - full * kBytes;
    uint8_t tail[kBytes];
    for (int first = 0; first < m; first += kMost) {
        const int count = m - first < kMost ? m - first : kMost;
        for (int64_t r = r0; r < r1; ++r) {
            float acc[kMost] = {};
            const uint8_t* p = w.data + r * w.row_bytes;
            for (int64_t b = 0; b < full + (rest ? 1 : 0); ++b, p += kBytes) {
                if (b == full) {  // the last blocks, copied so that nothing past the row is read
                    memset(tail, 0, sizeof tail);
                    memcpy(tail, p, static_cast<size_t>(rest));
                }
                Values v;
                unpack(b == full ? tail : p, v);
                for (int t = 0; t < count; ++t) {
                    const int64_t token = tokens ? tokens[first + t] : first + t;
                    const int64_t at = token * act.padded + 256 * b;
                    const int8_t *q = act.q + at, *fine = act.fine + at;
                    const float* d = act.d + token * (act.padded / 32) + 8 * b;
                    const float* sums = act.sum16 + token * (act.padded / 16) + 16 * b;
                    for (int g = 0; g < 16; ++g)
                        acc[t] += v.scale[g] * d[g / 2] *
                                      static_cast<float>(128 * dot16(v.w + 16 * g, q + 16 * g) +
                                                         dot16(v.w + 16 * g, fine + 16 * g)) -
                                  v.offset[g] * sums[g];
                }
            }
            for (int t = 0; t < count; ++t) y[(first + t) * ldy + r] = w.scale ? acc[t] * w.scale[r] : acc[t];
        }
    }
}

void fill_dot(Ops& ops) {
    ops.gemv[kQ4_0] = base_gemv<unpack_q4_0, 8 * 18>;
    ops.gemv[kQ4_1] = base_gemv<unpack_q4_1, 8 * 20>;
    ops.gemv[kQ5_0] = base_gemv<unpack_q5_0, 8 * 22>;
    ops.gemv[kQ5_1] = base_gemv<unpack_q5_1, 8 * 24>;
    ops.gemv[kQ8_0] = base_gemv<unpack_q8_0, 8 * 34>;
    ops.gemv[kQ2_K] = base_gemv<unpack_q2_k, 84>;
    ops.gemv[kQ3_K] = base_gemv<unpack_q3_k, 110>;
    ops.gemv[kQ4_K] = base_gemv<unpack_q4_k, 144>;
    ops.gemv[kQ5_K] = base_gemv<unpack_q5_k, 176>;
    ops.gemv[kQ6_K] = base_gemv<unpack_q6_k, 210>;
    ops.gemv[kIQ4_NL] = base_gemv<unpack_iq4_nl, 8 * 18>;
    ops.gemv[kIQ4_XS] = base_gemv<unpack_iq4_xs, 136>;
    ops.gemv[kI8] = base_gemv<unpack_i8, 256>;
}

}  // namespace
}  // namespace jamba
