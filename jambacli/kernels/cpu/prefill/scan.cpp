// Shares the convolution and the scan out over threads, by channels: a channel's tokens run through one thread in order, so
// the number of threads does not change a bit.
#include "prefill/scan.h"

#include "base/scratch.h"
#include "base/threads.h"
#include "decode/inner_kernels.h"

namespace jamba {
namespace {

constexpr int64_t kMostTaps = 16;

thread_local Buffer scratch;

const ScanOps& scan_ops() {
#define LEVEL(level) {Isa::level, &level::scan_ops},
    static constexpr Variant<ScanOps> variants[] = {SIMD_LEVELS(LEVEL)};
#undef LEVEL
    return choose(variants);
}

}  // namespace
}  // namespace jamba

// silu(causal depthwise convolution + bias) of x f32 [tokens, d_inner] (ConvArgs in scan.h); at most 16 taps.
EXPORT int prefill_conv(const float* weight, const float* bias, const float* x, int64_t x_stride, float* state, float* y,
                        int64_t y_stride, int64_t tokens, int64_t d_inner, int64_t d_conv, int threads) {
    using namespace jamba;
    if (d_conv < 1 || d_conv > kMostTaps) return kBadSize;
    const ConvArgs a{x, x_stride, weight, bias, state, y, y_stride, tokens, d_conv};
    const ScanOps& ops = scan_ops();
    return guarded([&] {
        parallel_for(threads, d_inner, ops.lanes, [&](int64_t begin, int64_t end) {
            ops.conv(a, begin, end, static_cast<float*>(scratch.get(conv_scratch(a, end - begin) * 4)));
        });
        return kOk;
    });
}

// The selective scan (ScanArgs in scan.h) over x, dt, z f32 [tokens, d_inner] and B, C [tokens, d_state].
EXPORT int prefill_scan(const float* dt_bias, const float* A, const float* D, const float* x, int64_t x_stride, const float* dt,
                        int64_t dt_stride, const float* z, int64_t z_stride, const float* B, int64_t B_stride, const float* C,
                        int64_t C_stride, float* state, float* y, int64_t y_stride, int64_t tokens, int64_t d_inner,
                        int64_t d_state, int threads) {
    using namespace jamba;
    const ScanArgs a{x, dt, z, B, C, x_stride, dt_stride, z_stride, B_stride, C_stride, dt_bias, A, D, state, y, y_stride,
                     tokens, d_state};
    const ScanOps& ops = scan_ops();
    return guarded([&] {
        parallel_for(threads, d_inner, ops.lanes, [&](int64_t begin, int64_t end) {
            ops.scan(a, begin, end, static_cast<float*>(scratch.get(scan_scratch(a, end - begin) * 4)));
        });
        return kOk;
    });
}

// Each row of x f32 [rows, n] over its root mean square, times weight.
EXPORT int prefill_rms_norm(const float* weight, const float* x, int64_t x_stride, float* out, int64_t rows, int64_t n, float eps,
                            int threads) {
    using namespace jamba;
    const InnerKernels& kernels = inner_kernels();
    parallel_for(threads, rows, 1, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) kernels.rms_norm(x + r * x_stride, weight, eps, n, out + r * n);
    });
    return kOk;
}
