// Products of block-quantized rows with activations of one int8 or two, in plain C++.
#include "decode/inner_kernels.h"
#include "decode/unpack_plain.h"

namespace jamba {
namespace {

inline int32_t dot16(const int8_t* a, const int8_t* b) {
    int32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += static_cast<int32_t>(a[i]) * b[i];
    return sum;
}

template <class Format>
void gemv(const Rows& w, const Act& act, const int32_t* tokens, int m, int64_t r0, int64_t r1, float* y, int64_t ldy) {
    constexpr int kMost = 16, kBytes = Format::kBytes;
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
                Format::unpack(reinterpret_cast<const typename Format::Block*>(b == full ? tail : p), v);
                for (int t = 0; t < count; ++t) {
                    const int64_t token = tokens ? tokens[first + t] : first + t;
                    const int64_t at = token * act.padded + 256 * b;
                    const int8_t *q = act.q + at, *fine = act.fine ? act.fine + at : nullptr;
                    const float* d = act.d + token * (act.padded / 32) + 8 * b;
                    const float* sums = act.sum16 + token * (act.padded / 16) + 16 * b;
                    const float* lost = act.lost32 + token * (act.padded / 32) + 8 * b;
                    for (int g = 0; g < 16; ++g) {
                        int32_t sum = dot16(v.w + 16 * g, q + 16 * g);
                        if (fine) sum = 128 * sum + dot16(v.w + 16 * g, fine + 16 * g);
                        acc[t] += v.scale[g] * d[g / 2] * static_cast<float>(sum) - v.offset[g] * sums[g];
                        if constexpr (Format::kMiddle != 0.0f)
                            if (g % 2 == 0) acc[t] += (v.scale[g] * Format::kMiddle - v.offset[g]) * lost[g / 2];
                    }
                }
            }
            for (int t = 0; t < count; ++t) y[(first + t) * ldy + r] = w.scale ? acc[t] * w.scale[r] : acc[t];
        }
    }
}

}  // namespace

namespace JAMBA_VARIANT {

void fill_dot(InnerKernels& ops) {
#define FORMAT(name, block, id) ops.gemv[k##name] = gemv<name>;
    BLOCK_FORMATS(FORMAT)
#undef FORMAT
    ops.gemv[kI8] = gemv<I8>;
}

}  // namespace JAMBA_VARIANT
}  // namespace jamba
