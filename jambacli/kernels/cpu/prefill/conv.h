// The causal convolution at the level's vector width.
//
// Products are added in the order of time, unfused, as a single decode step does: the same inputs give the same bits.
#pragma once

#include "prefill/scan.h"
#include "base/simd.h"

namespace jamba {
namespace {

// Channels c..c + width (at most kLanes, or exactly so when kFull) of one token; rows[k] holds the inputs k - past tokens
// before it.
template <bool kFull>
inline void conv_vector(const float* const* rows, const float* taps, int64_t channels, int64_t n_taps, const float* bias,
                        int64_t c, int64_t width, float* y) {
    const auto at = [&](const float* p) { return kFull ? load(p + c) : load_part(p + c, width); };
    vf sum = at(bias);
    for (int64_t k = 0; k < n_taps; ++k) sum = sum + at(rows[k]) * at(taps + k * channels);
    if (kFull)
        store(y + c, siluv(sum));
    else
        store_part(y + c, siluv(sum), width);
}

constexpr int64_t kMostTaps = 16;  // the caller refuses more

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
        const float* rows[kMostTaps];
        for (int64_t k = 0; k <= past; ++k) rows[k] = row(t - past + k);
        float* y = a.y + t * a.y_stride + c0;
        int64_t c = 0;
        if (past == 3)
            for (; c + kLanes <= channels; c += kLanes) conv_vector<true>(rows, taps, channels, 4, a.bias + c0, c, kLanes, y);
        else
            for (; c + kLanes <= channels; c += kLanes)
                conv_vector<true>(rows, taps, channels, past + 1, a.bias + c0, c, kLanes, y);
        if (c < channels) conv_vector<false>(rows, taps, channels, past + 1, a.bias + c0, c, channels - c, y);
    }
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t k = 0; k < past; ++k) a.state[(c0 + c) * past + k] = row(a.tokens - past + k)[c];
}

}  // namespace
}  // namespace jamba
