// int8 panels for arm64: inputs rounded to bytes with a factor for every 32, weights unpacked to bytes, sums of a group's products
// as integers, by SDOT or at level i8mm by SMMLA. The float arithmetic is the same at both, and so are the results.
#include "base/unpack_neon.h"
#include "prefill/gemm.h"
#include "prefill/tiles.h"

namespace jamba {
namespace {

#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr int kStep = 8;  // values of k that lie together
#else
constexpr int kStep = 4;
#endif

constexpr int kPart = 4;  // rows of inputs that a microkernel takes

// Four rows of inputs, 32 values each: for SDOT row after row, for SMMLA eight values of each row in turn. `sum`: factor times
// the values' sum, of both groups of 16, then of each.
struct alignas(64) InputPart {
    int8_t q[kPart * kChunk];
    float factor[kPart], sum[3][kPart];
};
static_assert(sizeof(InputPart) == 192, "three cache lines");
constexpr int64_t kInputChunk = kGroup / kPart * sizeof(InputPart);

// Of 16 rows of weights and one or two groups of a chunk.
struct alignas(64) PanelScales {
    struct {
        float scale[kGroup], offset[kGroup];
    } group[2];
};
// Levels [k / kStep][16 rows][kStep] of all chunks, then scales.
constexpr int64_t kPanelChunk = kChunkSize + sizeof(PanelScales);

// Rounds 32 values to bytes for row `i` of a part. A value that is no number makes the factor NaN, and so all products.
inline void quantize(const float* x, InputPart& to, int i) {
    uint32x4_t size = vdupq_n_u32(0);
    for (int k = 0; k < kChunk; k += 4) size = vmaxq_u32(size, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + k)), vdupq_n_u32(0x7fffffff)));
    const uint32_t most = vmaxvq_u32(size);
    float largest, factor = 0.0f, inverse = 0.0f;
    std::memcpy(&largest, &most, 4);
    if (most >= 0x7f800000) {
        factor = __builtin_nanf("");
    } else if (largest > 1e-30f) {
        factor = largest * (1.0f / 127.0f);
        inverse = 127.0f / largest;
    }
    const auto four = [&](int k) { return vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + k), inverse))); };
    int32_t sums[2];
    for (int h = 0; h < 2; ++h) {
        const int16x8_t low = vcombine_s16(four(16 * h), four(16 * h + 4)), high = vcombine_s16(four(16 * h + 8), four(16 * h + 12));
        const int8x16_t q = vcombine_s8(vmovn_s16(low), vmovn_s16(high));
        sums[h] = vaddlvq_s8(q);
        if constexpr (kStep == 4) {
            vst1q_s8(to.q + i * kChunk + 16 * h, q);
        } else {
            vst1_s8(to.q + ((2 * h) * kPart + i) * 8, vget_low_s8(q));
            vst1_s8(to.q + ((2 * h + 1) * kPart + i) * 8, vget_high_s8(q));
        }
    }
    to.factor[i] = factor;
    to.sum[0][i] = factor * static_cast<float>(sums[0] + sums[1]);
    to.sum[1][i] = factor * static_cast<float>(sums[0]);
    to.sum[2][i] = factor * static_cast<float>(sums[1]);
}

void pack_int8(const float* const* rows, int64_t k, void* out) {
    alignas(64) static constexpr float kZeros[kChunk] = {};
    alignas(64) float last[kChunk] = {};
    const int64_t rest = k % kChunk;
    for (int m = 0; m < kGroup; ++m) {
        InputPart* part = static_cast<InputPart*>(out) + m / kPart;
        if (rest && rows[m]) std::memcpy(last, rows[m] + k - rest, static_cast<size_t>(rest) * 4);
        for (int64_t i = 0; i < k; i += kChunk, part += kGroup / kPart)
            quantize(!rows[m] ? kZeros : k - i < kChunk ? last : rows[m] + i, *part, m % kPart);
    }
}

// The products of a group of weights with one row of inputs lie side by side: silu(g) * u, 32 values of k from two groups.
void gate_int8(const float* g, const float* u, int64_t n_groups, int64_t m_groups, void* out, int64_t stride) {
    alignas(64) float gated[kChunk];
    for (int64_t m = 0; m < m_groups * kGroup; ++m) {
        auto* part = reinterpret_cast<InputPart*>(static_cast<uint8_t*>(out) + m / kGroup * stride) + m % kGroup / kPart;
        for (int64_t n = 0; n < n_groups; n += 2, part += kGroup / kPart) {
            for (int i = 0; i < kChunk; i += kLanes) {
                const int64_t at = (n + i / kGroup) * m_groups * kTile + m * kGroup + i % kGroup;
                store(gated + i, siluv(load(g + at)) * load(u + at));
            }
            quantize(gated, *part, static_cast<int>(m % kPart));
        }
    }
}

void store_int8(const float* c, int64_t n_groups, int64_t m_groups, int64_t n_valid, int64_t m_valid, const Output& to) {
    for (int64_t m = 0; m < m_valid; ++m) {
        float* row = to.out + (to.rows ? to.rows[m] : m) * to.stride;
        for (int64_t n = 0; n < n_groups * kGroup && n < n_valid; n += kLanes) {
            vf y = load(c + n / kGroup * m_groups * kTile + m * kGroup + n % kGroup);
            if (to.weights) y = fma(y, set1(to.weights[m]), load_part(row + n, n_valid - n));
            store_part(row + n, y, n_valid - n);
        }
    }
}

// Values first..first+n (at most 256) of 16 rows, of which `rows` exist, as one group of a panel.
template <class Fmt>
void fill(const uint8_t* data, int64_t row_bytes, const float* row_scale, int64_t rows, int64_t first, int64_t n, void* out) {
    constexpr int kGroups = 32 / Fmt::kGroup;
    const int64_t chunks = round_up(n, kChunk) / kChunk;
    auto* levels = static_cast<int8_t*>(out);
    auto* scales = reinterpret_cast<PanelScales*>(levels + chunks * kChunkSize);
    const int64_t per = Fmt::Block::kValues, at = first / per * static_cast<int64_t>(sizeof(typename Fmt::Block));
    for (int r = 0; r < kGroup; ++r) {
        alignas(16) int8x16_t w[16] = {};
        Factors f = {};
        if (r < rows) {
            const uint8_t* p = data + r * row_bytes + at;
            uint8_t copy[Fmt::kBytes];
            if (n < 256) {  // nothing past the row is read
                std::memset(copy, 0, sizeof copy);
                std::memcpy(copy, p, static_cast<size_t>(n / per) * sizeof(typename Fmt::Block));
                p = copy;
            }
            Fmt::weights(reinterpret_cast<const typename Fmt::Block*>(p), w);
            Fmt::factors(reinterpret_cast<const typename Fmt::Block*>(p), f);
        }
        const auto* values = reinterpret_cast<const int8_t*>(w);
        for (int64_t k = 0; k < chunks * kChunk; k += kStep) std::memcpy(levels + (k * kGroup + r * kStep), values + k, kStep);
        for (int64_t i = 0; i < chunks * kGroups; ++i) {
            auto& group = scales[i / kGroups].group[i % kGroups];
            group.scale[r] = row_scale && r < rows ? row_scale[r] : f.scale[i];
            if constexpr (Fmt::kOffset) group.offset[r] = f.offset[i];
        }
    }
}

template <int N>
struct Lane {
    static constexpr int value = N;
};

// The integer sums of a group's products: acc[t][v] has rows 4 v to 4 v + 3 of weights with row t of inputs. `w` and `q`: where
// the group begins.
template <int kValues>
inline void integer_sums(const int8_t* w, const int8_t* q, int32x4_t (&acc)[kPart][4]) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
    int32x4_t pairs[kPart / 2][8];  // two rows of inputs with two of weights
    for (auto& row : pairs)
        for (auto& x : row) x = vdupq_n_s32(0);
    for (int k = 0; k < kValues / 8; ++k) {
        const int8x16_t x[2] = {vld1q_s8(q + 32 * k), vld1q_s8(q + 32 * k + 16)};
        for (int v = 0; v < 8; ++v) {
            const int8x16_t levels = vld1q_s8(w + 128 * k + 16 * v);
            for (int t = 0; t < 2; ++t) pairs[t][v] = vmmlaq_s32(pairs[t][v], x[t], levels);
        }
    }
    for (int t = 0; t < 2; ++t)
        for (int v = 0; v < 4; ++v) {
            const int64x2_t a = vreinterpretq_s64_s32(pairs[t][2 * v]), b = vreinterpretq_s64_s32(pairs[t][2 * v + 1]);
            acc[2 * t][v] = vreinterpretq_s32_s64(vzip1q_s64(a, b));
            acc[2 * t + 1][v] = vreinterpretq_s32_s64(vzip2q_s64(a, b));
        }
#else
    for (auto& row : acc)
        for (auto& x : row) x = vdupq_n_s32(0);
    for (int k = 0; k < kValues; k += 16) {
        int8x16_t x[kPart];
        for (int t = 0; t < kPart; ++t) x[t] = vld1q_s8(q + t * kChunk + k);
        const auto step = [&](auto number) {
            constexpr int kLane = decltype(number)::value;
            for (int v = 0; v < 4; ++v) {
                const int8x16_t levels = vld1q_s8(w + (k / 4 + kLane) * 64 + 16 * v);
                for (int t = 0; t < kPart; ++t) acc[t][v] = vdotq_laneq_s32(acc[t][v], levels, x[t], kLane);
            }
        };
        step(Lane<0>{});
        step(Lane<1>{});
        step(Lane<2>{});
        step(Lane<3>{});
    }
#endif
}

// 16 rows of weights times a part of inputs; c [4 rows of inputs][16].
template <class Fmt>
inline void micro(const int8_t* w, const InputPart* x, int64_t chunks, float* c, bool accumulate) {
    constexpr int kGroups = 32 / Fmt::kGroup, kValues = Fmt::kGroup;
    const auto* scales = reinterpret_cast<const PanelScales*>(w + chunks * kChunkSize);
    float32x4_t total[kPart][4];
    for (auto& row : total)
        for (auto& t : row) t = vdupq_n_f32(0.0f);
    for (int64_t i = 0; i < chunks; ++i, w += kChunkSize, ++scales, x += kGroup / kPart) {
        for (int half = 0; half < kGroups; ++half) {
            int32x4_t acc[kPart][4];
            integer_sums<kValues>(w + half * 16 * kGroup, x->q + half * 16 * (kStep == 4 ? 1 : kPart), acc);
            const auto& s = scales->group[half];
            const float* sums = x->sum[kGroups == 1 ? 0 : 1 + half];
            for (int v = 0; v < 4; ++v) {
                const float32x4_t scale = vld1q_f32(s.scale + 4 * v);
                for (int t = 0; t < kPart; ++t)
                    total[t][v] = vfmaq_n_f32(total[t][v], vmulq_f32(vcvtq_f32_s32(acc[t][v]), scale), x->factor[t]);
                if constexpr (Fmt::kOffset) {
                    const float32x4_t offset = vld1q_f32(s.offset + 4 * v);
                    for (int t = 0; t < kPart; ++t) total[t][v] = vfmsq_n_f32(total[t][v], offset, sums[t]);
                }
            }
        }
    }
    for (int t = 0; t < kPart; ++t)
        for (int v = 0; v < 4; ++v) {
            float* to = c + t * kGroup + 4 * v;
            vst1q_f32(to, accumulate ? vaddq_f32(vld1q_f32(to), total[t][v]) : total[t][v]);
        }
}

template <class Fmt>
void multiply(const int8_t* w, int64_t n_groups, int64_t w_stride, const uint8_t* x, int64_t m, int64_t x_stride, int64_t chunks,
              float* c, bool accumulate) {
    const int64_t m_groups = round_up(m, kGroup) / kGroup;
    for (int64_t n = 0; n < n_groups; ++n, w += w_stride, c += m_groups * kTile)
        for (int64_t first = 0; first < m; first += kPart) {
            const auto* part = reinterpret_cast<const InputPart*>(x + first / kGroup * x_stride) + first % kGroup / kPart;
            micro<Fmt>(w, part, chunks, c + first * kGroup, accumulate);
        }
}

bool takes(int type) {
    switch (type) {
#define FORMAT(name, block, id) case k##name:
        BLOCK_FORMATS(FORMAT)
#undef FORMAT
        case kI8: return true;
        default: return false;
    }
}

void fill_int8(int type, const uint8_t* data, int64_t row_bytes, const float* row_scale, int64_t rows, int64_t first, int64_t n,
               void* out) {
    switch (type) {
        case kI8: return fill<I8>(data, row_bytes, row_scale, rows, first, n, out);
#define FORMAT(name, block, id) \
    case k##name: return fill<name>(data, row_bytes, row_scale, rows, first, n, out);
            BLOCK_FORMATS(FORMAT)
#undef FORMAT
        default: return;
    }
}

void multiply_int8(int type, const void* w, int64_t n_groups, int64_t w_stride, const void* x, int64_t m, int64_t x_stride,
                   int64_t chunks, float* c, bool accumulate) {
    const auto* levels = static_cast<const int8_t*>(w);
    const auto* inputs = static_cast<const uint8_t*>(x);
    switch (type) {
        case kI8: return multiply<I8>(levels, n_groups, w_stride, inputs, m, x_stride, chunks, c, accumulate);
#define FORMAT(name, block, id) \
    case k##name: return multiply<name>(levels, n_groups, w_stride, inputs, m, x_stride, chunks, c, accumulate);
            BLOCK_FORMATS(FORMAT)
#undef FORMAT
        default: return;
    }
}

constexpr Int8Panels panels() {
    Int8Panels p{};
    p.w_chunk = kPanelChunk;
    p.x_chunk = kInputChunk;
    p.takes = takes;
    p.fill = fill_int8;
    p.multiply = multiply_int8;
    return p;
}

constexpr Int8Panels kPanels = panels();

constexpr PanelOps operations() {
    PanelOps ops{};
    ops.element_bytes = 1;
    ops.k_block = 256;
    ops.pack = pack_int8;
    ops.enter = ops.leave = nothing;
    ops.store = store_int8;
    ops.gate = gate_int8;
    ops.int8 = &kPanels;
    return ops;
}

}  // namespace

namespace JAMBA_VARIANT {

const PanelOps int8_panel_ops = operations();

}  // namespace JAMBA_VARIANT
}  // namespace jamba
