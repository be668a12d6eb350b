// Shares the convolution and the scan out over threads, by channels: a channel's tokens run through one thread in order, so
// threads do not change a bit. Knows nothing of instruction sets or layers.
#include "scan.h"

#include <new>

#include "ops.h"
#include "scratch.h"
#include "threads.h"

namespace jamba {
namespace {

thread_local Buffer scratch;

const ScanOps& scan_ops() {
    const Isa isa = isa_level();
#if defined(JAMBA_X86)
    if (isa >= kAvx512 && isa < kNeon) return kScanAvx512;
    if (isa == kAvx2) return kScanAvx2;
#elif defined(JAMBA_ARM)
    if (isa == kNeon) return kScanNeon;
#endif
    return kScanBase;
}

}  // namespace
}  // namespace jamba

// silu(causal depthwise convolution + bias) of x f32 [tokens, d_inner] (ConvArgs in scan.h). Returns 0, or -1 for more than
// 16 taps.
EXPORT int prefill_conv(const float* x, int64_t x_stride, const float* weight, const float* bias, float* state, float* y,
                         int64_t y_stride, int64_t tokens, int64_t d_inner, int64_t d_conv, int threads) {
    if (d_conv < 1 || d_conv > 16) return -1;
    const jamba::ConvArgs a{x, x_stride, weight, bias, state, y, y_stride, tokens, d_conv};
    const jamba::ScanOps& ops = jamba::scan_ops();
    jamba::parallel_for(threads, d_inner, ops.lanes, [&](int64_t begin, int64_t end) {
        ops.conv(a, begin, end, static_cast<float*>(jamba::scratch.get(jamba::conv_scratch(a, end - begin) * 4)));
    });
    return 0;
}

// The selective scan (ScanArgs in scan.h) over x, dt, z f32 [tokens, d_inner] and B, C [tokens, d_state].
EXPORT void prefill_scan(const float* x, int64_t x_stride, const float* dt, int64_t dt_stride, const float* dt_bias,
                         const float* A, const float* B, int64_t B_stride, const float* C, int64_t C_stride, const float* D,
                         const float* z, int64_t z_stride, float* state, float* y, int64_t y_stride, int64_t tokens,
                         int64_t d_inner, int64_t d_state, int threads) {
    const jamba::ScanArgs a{x, dt, z, B, C, x_stride, dt_stride, z_stride, B_stride, C_stride, dt_bias, A, D, state, y, y_stride,
                            tokens, d_state};
    const jamba::ScanOps& ops = jamba::scan_ops();
    jamba::parallel_for(threads, d_inner, ops.lanes, [&](int64_t begin, int64_t end) {
        ops.scan(a, begin, end, static_cast<float*>(jamba::scratch.get(jamba::scan_scratch(a, end - begin) * 4)));
    });
}

// Each row of x f32 [rows, n] over its root mean square, times weight.
EXPORT void prefill_rms_norm(const float* x, int64_t x_stride, const float* weight, float eps, float* out, int64_t rows,
                             int64_t n, int threads) {
    const jamba::Ops& ops = jamba::ops();
    jamba::parallel_for(threads, rows, 1, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) ops.rms_norm(x + r * x_stride, weight, eps, n, out + r * n);
    });
}
