// The causal convolution at the vector width of the file that includes this. Knows nothing of threads.
//
// Products are added in the order of time, unfused, as a single decode step does: the same inputs give the same bits.
#pragma once

#include "scan.h"
#include "simd.h"

namespace jamba {
namespace {

void conv(const ConvArgs& a, int64_t c0, int64_t c1, float* scratch) {
    const int64_t channels = c1 - c0, past = a.d_conv - 1;
    float *taps = scratch, *before = scratch + a.d_conv * channels;  // [d_conv][channels], [past][channels]
    for (int64_t c = 0; c < channels; ++c) {
        for (int64_t k = 0; k <= past; ++k) taps[k * channels + c] = a.weight[(c0 + c) * a.d_conv + k];
        for (int64_t k = 0; k < past; ++k) before[k * channels + c] = a.state[(c0 + c) * past + k];
    }
    // Row t of the inputs, t from -past on.
    const auto row = [&](int64_t t) { return t < 0 ? before + (past + t) * channels : a.x + t * a.x_stride + c0; };
    for (int64_t t = 0; t < a.tokens; ++t) {
        float* y = a.y + t * a.y_stride + c0;
        for (int64_t c = 0; c < channels; c += kLanes) {
            const int64_t width = channels - c;
            vf sum = load_part(a.bias + c0 + c, width);
            for (int64_t k = 0; k <= past; ++k)
                sum = sum + load_part(row(t - past + k) + c, width) * load_part(taps + k * channels + c, width);
            store_part(y + c, siluv(sum), width);
        }
    }
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t k = 0; k < past; ++k) a.state[(c0 + c) * past + k] = row(a.tokens - past + k)[c];
}

}  // namespace
}  // namespace jamba
