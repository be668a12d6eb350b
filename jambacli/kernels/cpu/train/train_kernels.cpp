// The training kernels at the level's vector width.
#include "base/simd_convert.h"
#include "train/train.h"

namespace jamba {
namespace {

// Activations as they lie in memory: f32, or the upper half of it.
struct Wide {
    using type = float;
    static vf get(const void* p, int64_t i) { return load(static_cast<const float*>(p) + i); }
    static void put(void* p, int64_t i, vf v) { store(static_cast<float*>(p) + i, v); }
};

struct Narrow {
    using type = uint16_t;
    static vf get(const void* p, int64_t i) { return load_bf16(static_cast<const uint16_t*>(p) + i); }
    static void put(void* p, int64_t i, vf v) {
        uint16_t* out = static_cast<uint16_t*>(p) + i;
        vi bits = (vi)v;
        bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
#if defined(__AVX512F__)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi32_epi16((__m512i)bits));
#else
        for (int lane = 0; lane < kLanes; ++lane) out[lane] = static_cast<uint16_t>(bits[lane]);
#endif
    }
};

SIMD_FN vf sigmoidv(vf x) { return quotient(set1(1.0f), 1.0f + exp2v(vmin(set1(125.0f), vmax(set1(-125.0f), x * -kLog2e)))); }

// d silu(x) / dx, given sigmoid(x).
SIMD_FN vf silu_slope(vf x, vf sigmoid) { return sigmoid * fma(x, 1.0f - sigmoid, set1(1.0f)); }

constexpr int kN = static_cast<int>(kTrainStates);
constexpr int64_t kVectors = kN * kLanes;  // floats of one group of channels' states

template <class T>
void train_scan(const TrainScan& a, int64_t b) {
    const int64_t groups = a.d_inner / kLanes, chunks = (a.tokens + kTrainChunk - 1) / kTrainChunk;
    float* states = a.states + b * chunks * groups * kVectors;
    std::memset(states, 0, static_cast<size_t>(groups * kVectors) * 4);
    for (int64_t k = 0; k < chunks; ++k) {
        const int64_t t0 = k * kTrainChunk, t1 = t0 + kTrainChunk < a.tokens ? t0 + kTrainChunk : a.tokens;
        for (int64_t g = 0; g < groups; ++g) {
            const int64_t c = g * kLanes;
            float* state = states + (k * groups + g) * kVectors;
            const float* A = a.A + g * kVectors;
            const vf bias = load(a.dt_bias + c), D = load(a.D + c);
            vf held[kN];
#pragma GCC unroll 16
            for (int n = 0; n < kN; ++n) held[n] = load(state + n * kLanes);
            for (int64_t t = t0; t < t1; ++t) {
                const int64_t row = b * a.tokens + t;
                const float *B = a.B + row * kN, *C = a.C + row * kN;
                const vf step = softplusv(T::get(a.dt, row * a.dt_stride + c) + bias), x = T::get(a.x, row * a.x_stride + c);
                const vf scaled = step * kLog2e, add = step * x;
                vf sum = D * x;
#pragma GCC unroll 16
                for (int n = 0; n < kN; ++n) {
                    held[n] = fma(exp2v(scaled * load(A + n * kLanes)), held[n], add * set1(B[n]));
                    sum = fma(held[n], set1(C[n]), sum);
                }
                T::put(a.y, row * a.d_inner + c, sum * siluv(T::get(a.z, row * a.z_stride + c)));
            }
            if (k + 1 < chunks) {
#pragma GCC unroll 16
                for (int n = 0; n < kN; ++n) store(state + groups * kVectors + n * kLanes, held[n]);
            }
        }
    }
}

// Chunks from the last to the first; each is run forward again from its kept state, then backward. Sums over channels (dB, dC)
// are kept as vectors until a chunk is done.
template <class T>
void train_scan_backward(const TrainScan& a, int64_t b, float* scratch) {
    const int64_t groups = a.d_inner / kLanes, chunks = (a.tokens + kTrainChunk - 1) / kTrainChunk;
    const float* states = a.states + b * chunks * groups * kVectors;
    float* decays = scratch;                             // [chunk][n][lanes]
    float* held = decays + kTrainChunk * kVectors;       // [chunk + 1][n][lanes], before each token and after the last
    float* dB = held + (kTrainChunk + 1) * kVectors;     // [chunk][n][lanes]
    float* dC = dB + kTrainChunk * kVectors;             // [chunk][n][lanes]
    float* carry = dC + kTrainChunk * kVectors;          // [groups][n][lanes]
    float* per_token = carry + groups * kVectors;        // [chunk][4][lanes]: dt before softplus, dt after it, x, C . h + D x
    float *dA = a.dA + b * groups * kVectors, *dD = a.dD + b * a.d_inner, *dbias = a.dbias + b * a.d_inner;
    std::memset(carry, 0, static_cast<size_t>(groups * kVectors) * 4);
    std::memset(dA, 0, static_cast<size_t>(groups * kVectors) * 4);
    std::memset(dD, 0, static_cast<size_t>(a.d_inner) * 4);
    std::memset(dbias, 0, static_cast<size_t>(a.d_inner) * 4);
    for (int64_t k = chunks - 1; k >= 0; --k) {
        const int64_t t0 = k * kTrainChunk, count = (t0 + kTrainChunk < a.tokens ? t0 + kTrainChunk : a.tokens) - t0;
        std::memset(dB, 0, static_cast<size_t>(2 * kTrainChunk * kVectors) * 4);
        for (int64_t g = 0; g < groups; ++g) {
            const int64_t c = g * kLanes;
            const float* A = a.A + g * kVectors;
            const vf bias = load(a.dt_bias + c), D = load(a.D + c);
            std::memcpy(held, states + (k * groups + g) * kVectors, static_cast<size_t>(kVectors) * 4);
            for (int64_t t = 0; t < count; ++t) {
                const int64_t row = b * a.tokens + t0 + t;
                const float *B = a.B + row * kN, *C = a.C + row * kN;
                const vf raw = T::get(a.dt, row * a.dt_stride + c) + bias, x = T::get(a.x, row * a.x_stride + c);
                const vf step = softplusv(raw), scaled = step * kLog2e, add = step * x;
                vf sum = D * x;
                const float* before = held + t * kVectors;
                float *after = held + (t + 1) * kVectors, *decay = decays + t * kVectors;
#pragma GCC unroll 16
                for (int n = 0; n < kN; ++n) {
                    const vf factor = exp2v(scaled * load(A + n * kLanes));
                    const vf h = fma(factor, load(before + n * kLanes), add * set1(B[n]));
                    store(decay + n * kLanes, factor);
                    store(after + n * kLanes, h);
                    sum = fma(h, set1(C[n]), sum);
                }
                float* kept = per_token + t * 4 * kLanes;
                store(kept, raw);
                store(kept + kLanes, step);
                store(kept + 2 * kLanes, x);
                store(kept + 3 * kLanes, sum);
            }
            float *back = carry + g * kVectors, *dA_group = dA + g * kVectors;
            vf dD_sum = load(dD + c), dbias_sum = load(dbias + c);
            for (int64_t t = count - 1; t >= 0; --t) {
                const int64_t row = b * a.tokens + t0 + t;
                const float *B = a.B + row * kN, *C = a.C + row * kN, *kept = per_token + t * 4 * kLanes;
                const vf raw = load(kept), step = load(kept + kLanes), x = load(kept + 2 * kLanes), sum = load(kept + 3 * kLanes);
                const vf dy = T::get(a.dy, row * a.d_inner + c), z = T::get(a.z, row * a.z_stride + c), sigmoid = sigmoidv(z);
                T::put(a.dz, row * a.d_inner + c, dy * sum * silu_slope(z, sigmoid));
                const vf ds = dy * z * sigmoid, add = step * x;
                dD_sum = fma(ds, x, dD_sum);
                vf through_a{}, through_b{};
                const float *before = held + t * kVectors, *after = before + kVectors, *decay = decays + t * kVectors;
                float *dB_t = dB + t * kVectors, *dC_t = dC + t * kVectors;
#pragma GCC unroll 4
                for (int n = 0; n < kN; ++n) {
                    const int at = n * kLanes;
                    const vf gradient = fma(ds, set1(C[n]), load(back + at)), factor = load(decay + at);
                    const vf faded = gradient * factor * load(before + at);
                    store(dC_t + at, fma(ds, load(after + at), load(dC_t + at)));
                    store(dB_t + at, fma(gradient, add, load(dB_t + at)));
                    store(dA_group + at, fma(faded, step, load(dA_group + at)));
                    through_a = fma(faded, load(A + at), through_a);
                    through_b = fma(gradient, set1(B[n]), through_b);
                    store(back + at, gradient * factor);
                }
                T::put(a.dx, row * a.d_inner + c, fma(through_b, step, ds * D));
                const vf draw = fma(through_b, x, through_a) * sigmoidv(raw);
                dbias_sum = dbias_sum + draw;
                T::put(a.ddt, row * a.d_inner + c, draw);
            }
            store(dD + c, dD_sum);
            store(dbias + c, dbias_sum);
        }
        for (int64_t t = 0; t < count; ++t)
            for (int n = 0; n < kN; ++n) {
                const int64_t at = (b * a.tokens + t0 + t) * kN + n;
                a.dB[at] = hsum(load(dB + t * kVectors + n * kLanes));
                a.dC[at] = hsum(load(dC + t * kVectors + n * kLanes));
            }
    }
}

template <class T>
void train_conv(const TrainConv& a, int64_t b) {
    for (int64_t c = 0; c < a.d_inner; c += kLanes) {
        const vf bias = load(a.bias + c);
        vf w[4], past[3] = {vf{}, vf{}, vf{}};
        for (int k = 0; k < 4; ++k) w[k] = load(a.weight + k * a.d_inner + c);
        for (int64_t t = 0; t < a.tokens; ++t) {
            const int64_t row = b * a.tokens + t;
            const vf x = T::get(a.x, row * a.x_stride + c);
            const vf sum = fma(w[3], x, fma(w[2], past[2], fma(w[1], past[1], fma(w[0], past[0], bias))));
            T::put(a.y, row * a.d_inner + c, siluv(sum));
            past[0] = past[1];
            past[1] = past[2];
            past[2] = x;
        }
    }
}

template <class T>
void train_conv_backward(const TrainConv& a, int64_t b) {
    for (int64_t c = 0; c < a.d_inner; c += kLanes) {
        const vf bias = load(a.bias + c);
        vf w[4], dw[4], later[3] = {vf{}, vf{}, vf{}}, dbias{};
        const auto input = [&](int64_t t) { return t < 0 ? vf{} : T::get(a.x, (b * a.tokens + t) * a.x_stride + c); };
        for (int k = 0; k < 4; ++k) {
            w[k] = load(a.weight + k * a.d_inner + c);
            dw[k] = vf{};
        }
        vf x[4] = {input(a.tokens - 4), input(a.tokens - 3), input(a.tokens - 2), input(a.tokens - 1)};
        for (int64_t t = a.tokens - 1; t >= 0; --t) {
            const int64_t at = (b * a.tokens + t) * a.d_inner + c;
            const vf sum = fma(w[3], x[3], fma(w[2], x[2], fma(w[1], x[1], fma(w[0], x[0], bias))));
            const vf d = T::get(a.dy, at) * silu_slope(sum, sigmoidv(sum));
            dbias = dbias + d;
            for (int k = 0; k < 4; ++k) dw[k] = fma(d, x[k], dw[k]);
            // x_t reached the sums of tokens t to t + 3, through the last tap to the first.
            T::put(a.dx, at, fma(w[3], d, fma(w[2], later[0], fma(w[1], later[1], w[0] * later[2]))));
            later[2] = later[1];
            later[1] = later[0];
            later[0] = d;
            x[3] = x[2];
            x[2] = x[1];
            x[1] = x[0];
            x[0] = input(t - 4);
        }
        for (int k = 0; k < 4; ++k) store(a.dweight + (b * 4 + k) * a.d_inner + c, dw[k]);
        store(a.dbias + b * a.d_inner + c, dbias);
    }
}

template <class X, class Y>
void train_norm(const TrainNorm& a, int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r) {
        vf squares{};
        for (int64_t c = 0; c < a.n; c += kLanes) {
            const vf x = X::get(a.x, r * a.x_stride + c);
            squares = fma(x, x, squares);
        }
        const float scale = 1.0f / __builtin_sqrtf(hsum(squares) / static_cast<float>(a.n) + a.eps);
        for (int64_t c = 0; c < a.n; c += kLanes)
            Y::put(a.y, r * a.n + c, X::get(a.x, r * a.x_stride + c) * scale * load(a.weight + c));
    }
}

template <class X, class Y>
void train_norm_backward(const TrainNorm& a, int64_t r0, int64_t r1) {
    std::memset(a.dweight, 0, static_cast<size_t>(a.n) * 4);
    for (int64_t r = r0; r < r1; ++r) {
        vf squares{}, dots{};
        for (int64_t c = 0; c < a.n; c += kLanes) {
            const vf x = X::get(a.x, r * a.x_stride + c);
            squares = fma(x, x, squares);
            dots = fma(x * load(a.weight + c), Y::get(a.dy, r * a.n + c), dots);
        }
        const float n = static_cast<float>(a.n), scale = 1.0f / __builtin_sqrtf(hsum(squares) / n + a.eps);
        const float along = hsum(dots) * scale * scale * scale / n;
        for (int64_t c = 0; c < a.n; c += kLanes) {
            const vf x = X::get(a.x, r * a.x_stride + c), dy = Y::get(a.dy, r * a.n + c);
            X::put(a.dx, r * a.n + c, dy * load(a.weight + c) * scale - x * along);
            store(a.dweight + c, fma(dy * x, set1(scale), load(a.dweight + c)));
        }
    }
}

template <class T>
void train_gate(const TrainGate& a, int64_t r0, int64_t r1) {
    const int64_t width = a.n / a.experts;
    for (int64_t r = r0; r < r1; ++r)
        for (int64_t e = 0; e < a.experts; ++e) {
            const float route = a.route ? a.route[r * a.experts + e] : 1.0f;
            for (int64_t c = e * width; c < (e + 1) * width; c += kLanes) {
                const vf gate = T::get(a.gate_up, r * 2 * a.n + c), up = T::get(a.gate_up, r * 2 * a.n + a.n + c);
                T::put(a.y, r * a.n + c, siluv(gate) * up * route);
            }
        }
}

template <class T>
void train_gate_backward(const TrainGate& a, int64_t r0, int64_t r1) {
    const int64_t width = a.n / a.experts;
    for (int64_t r = r0; r < r1; ++r)
        for (int64_t e = 0; e < a.experts; ++e) {
            const float route = a.route ? a.route[r * a.experts + e] : 1.0f;
            vf droute{};
            for (int64_t c = e * width; c < (e + 1) * width; c += kLanes) {
                const vf gate = T::get(a.gate_up, r * 2 * a.n + c), up = T::get(a.gate_up, r * 2 * a.n + a.n + c);
                const vf dy = T::get(a.dy, r * a.n + c), sigmoid = sigmoidv(gate), active = gate * sigmoid;
                droute = fma(dy, active * up, droute);
                T::put(a.dgate_up, r * 2 * a.n + c, dy * up * silu_slope(gate, sigmoid) * route);
                T::put(a.dgate_up, r * 2 * a.n + a.n + c, dy * active * route);
            }
            if (a.droute) a.droute[r * a.experts + e] = hsum(droute);
        }
}

}  // namespace

namespace JAMBA_VARIANT {

// The residual stream stays f32 where activations are bf16, so norms read f32 in both cases.
const TrainTables train_tables{{
    {kLanes, train_scan<Wide>, train_scan_backward<Wide>, train_conv<Wide>, train_conv_backward<Wide>, train_norm<Wide, Wide>,
     train_norm_backward<Wide, Wide>, train_gate<Wide>, train_gate_backward<Wide>},
    {kLanes, train_scan<Narrow>, train_scan_backward<Narrow>, train_conv<Narrow>, train_conv_backward<Narrow>,
     train_norm<Wide, Narrow>, train_norm_backward<Wide, Narrow>, train_gate<Narrow>, train_gate_backward<Narrow>},
}};

}  // namespace JAMBA_VARIANT
}  // namespace jamba
