// int8 panels: inputs rounded to bytes with a factor for every 32, weights as the bytes that their blocks hold, sums of 32
// products as integers. Four products an instruction with VNNI; elsewhere pairs of products, added up as int16 while the
// format's levels are small enough.
//
// One sum of integers becomes a float by its bits: it starts at the bits of 1.5 * 2^23, whose last place counts ones, and
// scale * (1.5 * 2^23 + sum) - scale * 1.5 * 2^23 is one multiply-add, exact since a scale has at most 22 bits.
#include "prefill/levels_int8.h"
#include "prefill/tiles.h"

namespace jamba {
namespace {

#if defined(__AVX512VNNI__)
constexpr bool kVnni = true;
#else
constexpr bool kVnni = false;
#endif

// Without VNNI, bytes of eight bits take two products, of four bits each. On the three vector ports of AVX2 they are faster than
// f32 products, on the two of AVX-512 they are not.
#if defined(__AVX512F__)
constexpr bool kHalves = false;
#else
constexpr bool kHalves = true;
#endif

constexpr int kPart = 4;                      // rows of inputs that a microkernel takes
constexpr int kVectors = 2;                   // vectors of rows of weights that it takes
constexpr int kPartRows = kVectors * kLanes;  // 32 or 16
constexpr float kMagic = 12582912.0f;         // 1.5 * 2^23
constexpr int32_t kMagicBits = 0x4b400000;
constexpr int32_t kShift = 128;  // added to signed levels where bytes may use all eight bits

// Four rows of inputs, 32 values each. `start` is where the sum of a signed weight's products begins: the magic number less
// what kShift adds. `whole` of both groups of 16, `half` of each.
struct alignas(64) InputPart {
    int8_t q[kPart][kChunk];
    float factor[kPart], sum[kPart];
    int32_t start[kPart];
    float half_sum[2][kPart];
    int32_t half_start[2][kPart];
    int32_t unused[4];
};
static_assert(sizeof(InputPart) == 256, "four cache lines");
constexpr int64_t kInputChunk = kGroup / kPart * sizeof(InputPart);

// Of 16 rows of weights: what their products are multiplied by, minus that times the magic number, minus what the sum of inputs
// is multiplied by; for one or two groups of a chunk.
struct alignas(64) PanelScales {
    struct {
        float scale[kGroup], minus_magic[kGroup], minus_offset[kGroup];
    } group[2];
};
// Levels [k / 4][16 rows][4 k] of all chunks (halved: the low four bits, then the high ones of all chunks), then scales.
constexpr int64_t kPanelChunk = (kHalves ? 2 : 1) * kChunkSize + sizeof(PanelScales);

// The largest of 32 values' sizes, as bits: larger than those of infinity where one is no number.
inline int32_t largest_bits(const float* x) {
#if defined(__AVX512F__)
    const __m512i size = _mm512_set1_epi32(0x7fffffff);
    const __m512i a = _mm512_and_si512(_mm512_loadu_si512(x), size), b = _mm512_and_si512(_mm512_loadu_si512(x + 16), size);
    const __m512i both = _mm512_max_epi32(a, b);
    const __m256i eight = _mm256_max_epi32(_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64(both, 1));
#else
    const auto part = [x](int i) { return _mm256_and_si256(load32(x + 8 * i), _mm256_set1_epi32(0x7fffffff)); };
    const __m256i eight = _mm256_max_epi32(_mm256_max_epi32(part(0), part(1)), _mm256_max_epi32(part(2), part(3)));
#endif
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

// x * factor rounded to the nearest integers, which are at most 127.
inline __m256i rounded(const float* x, float factor) {
#if defined(__AVX512F__)
    const __m512 f = _mm512_set1_ps(factor);
    const auto part = [&](int i) { return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16 * i), f))); };
    return _mm256_set_m128i(part(1), part(0));
#else
    const __m256 f = _mm256_set1_ps(factor);
    const auto part = [&](int i) { return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), f)); };
    const __m256i mixed = _mm256_packs_epi16(_mm256_packs_epi32(part(0), part(1)), _mm256_packs_epi32(part(2), part(3)));
    return _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#endif
}

// Rounds 32 values to bytes for row `i` of a part. A value that is no number makes the factor NaN, and so all products.
inline void quantize(const float* x, InputPart& to, int i) {
    const int32_t most = largest_bits(x);
    float largest, factor = 0.0f, inverse = 0.0f;
    std::memcpy(&largest, &most, 4);
    if (most >= 0x7f800000) {
        factor = __builtin_nanf("");
    } else if (largest > 1e-30f) {
        factor = largest * (1.0f / 127.0f);
        inverse = 127.0f / largest;
    }
    const __m256i q = rounded(x, inverse);
    _mm256_store_si256(reinterpret_cast<__m256i*>(to.q[i]), q);
    const __m256i fours = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), q), _mm256_set1_epi16(1));
    __m128i sums = _mm_hadd_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
    sums = _mm_hadd_epi32(sums, sums);
    const int32_t half[2] = {_mm_cvtsi128_si32(sums), _mm_extract_epi32(sums, 1)};
    to.factor[i] = factor;
    to.sum[i] = factor * static_cast<float>(half[0] + half[1]);
    to.start[i] = kMagicBits - kShift * (half[0] + half[1]);
    for (int h = 0; h < 2; ++h) {
        to.half_sum[h][i] = factor * static_cast<float>(half[h]);
        to.half_start[h][i] = kMagicBits - kShift * half[h];
    }
}

void pack_int8(const float* const* rows, int64_t k, void* out) {
    alignas(64) float last[kChunk] = {};
    const int64_t rest = k % kChunk;
    for (int m = 0; m < kGroup; ++m) {
        InputPart* part = static_cast<InputPart*>(out) + m / kPart;
        if (rest && rows[m]) std::memcpy(last, rows[m] + k - rest, static_cast<size_t>(rest) * 4);
        alignas(64) static constexpr float kZeros[kChunk] = {};
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

// Planes of levels: two of four bits where bytes have eight and are multiplied as pairs.
template <class Fmt>
constexpr int planes() {
    return !kVnni && Fmt::kMost > 63 ? 2 : 1;
}

// Whether the sums are corrected by where they start; else what levels are too large by is part of the offset.
template <class Fmt>
constexpr bool starts_shifted() {
    return !Fmt::kMinimum && (kVnni || planes<Fmt>() == 2);
}

// Whether this level multiplies the format as bytes.
template <class Fmt>
constexpr bool has_products() {
    return kHalves || planes<Fmt>() == 1;
}

// A scale whose product with the magic number is exact.
inline float short_scale(float x) {
    uint32_t b;
    std::memcpy(&b, &x, 4);
    b = (b + 2) & ~3u;
    std::memcpy(&x, &b, 4);
    return x;
}

// ExpertsInt8: a block is one value, and the row has the scale.
struct I8 {
    using Block = block_i8;
    static constexpr int kGroup = 32, kBias = 0, kMost = 255;
    static constexpr bool kMinimum = false;
};

// 16 rows of 256 levels, two chunks to a line.
using Levels = uint8_t[4][kGroup][64];

// Levels and scales of up to 256 values of row r, from `p` on.
template <class Fmt>
inline void unpack_row(const uint8_t* p, int64_t n, const float* row_scale, int r, Levels* levels, float* scales, float* offsets) {
    const auto put = [levels, r](int64_t c, __m256i x) {
        if constexpr (starts_shifted<Fmt>()) x = _mm256_add_epi8(x, _mm256_set1_epi8(static_cast<char>(kShift - Fmt::kBias)));
        if constexpr (planes<Fmt>() == 2) {
            store32(levels[1][c / 2][r] + c % 2 * kChunk, bits(x, 4, 15));
            x = bits(x, 0, 15);
        }
        store32(levels[0][c / 2][r] + c % 2 * kChunk, x);
    };
    if constexpr (Fmt::Block::kValues == 1) {
        for (int64_t c = 0; c * kChunk < n; ++c) {
            alignas(32) uint8_t last[kChunk] = {};
            const int64_t left = n - c * kChunk;
            if (left < kChunk) std::memcpy(last, p + c * kChunk, static_cast<size_t>(left));
            put(c, load32(left < kChunk ? last : p + c * kChunk));
            scales[c] = short_scale(*row_scale);
        }
    } else {
        constexpr int kChunks = Fmt::Block::kValues / kChunk;
        const auto* block = reinterpret_cast<const typename Fmt::Block*>(p);
        for (int64_t c = 0; c * kChunk < n; c += kChunks, ++block) {
            for (int i = 0; i < kChunks; ++i) put(c + i, Fmt::levels(*block, i));
            Fmt::scales(*block, scales + c * 32 / Fmt::kGroup, offsets + c * 32 / Fmt::kGroup);
        }
    }
}

// Values first..first+n (at most 256) of 16 rows, of which `rows` exist, as one group of a panel.
template <class Fmt>
void fill(const uint8_t* data, int64_t row_bytes, const float* row_scale, int64_t rows, int64_t first, int64_t n, void* out) {
    const int64_t chunks = round_up(n, kChunk) / kChunk;
    constexpr int kGroups = 32 / Fmt::kGroup, kPlanes = planes<Fmt>();
    constexpr bool kOffset = Fmt::kMinimum || (!starts_shifted<Fmt>() && Fmt::kBias > 0);
    alignas(64) Levels levels[kPlanes];
    alignas(64) float scales[kGroup][16], offsets[kGroup][16], turned[16][kGroup];
    const int64_t at = first / Fmt::Block::kValues * static_cast<int64_t>(sizeof(typename Fmt::Block));
    for (int r = 0; r < kGroup; ++r) {
        if (r < rows) {
            unpack_row<Fmt>(data + r * row_bytes + at, n, row_scale ? row_scale + r : nullptr, r, levels, scales[r], offsets[r]);
        } else {
            std::memset(scales[r], 0, sizeof scales[r]);
            std::memset(offsets[r], 0, sizeof offsets[r]);
        }
    }
    for (int plane = 0; plane < kPlanes; ++plane) {
        for (int64_t c = 0; c < chunks; c += 2) {
            const auto* from = reinterpret_cast<const float*>(levels[plane][c / 2]);
            float* to = static_cast<float*>(out) + (plane * chunks + c) * kChunkSize / 4;
            if (c + 1 < chunks) {
                transpose_tile(from, to, kGroup);
            } else {  // half a tile: what follows belongs to others
                transpose_tile(from, turned[0], kGroup);
                std::memcpy(to, turned, kChunkSize);
            }
        }
    }
    auto* to = reinterpret_cast<PanelScales*>(static_cast<uint8_t*>(out) + kPlanes * chunks * kChunkSize);
    transpose_tile(scales[0], turned[0], kGroup);
    for (int64_t i = 0; i < chunks * kGroups; ++i) {
        auto& group = to[i / kGroups].group[i % kGroups];
        for (int r = 0; r < kGroup; r += kLanes) {
            const vf scale = load(turned[i] + r);
            store(group.scale + r, scale);
            store(group.minus_magic + r, scale * -kMagic);
            if constexpr (kOffset && !Fmt::kMinimum) store(group.minus_offset + r, scale * static_cast<float>(-Fmt::kBias));
        }
    }
    if constexpr (Fmt::kMinimum) {
        transpose_tile(offsets[0], turned[0], kGroup);
        for (int64_t i = 0; i < chunks * kGroups; ++i)
            for (int r = 0; r < kGroup; r += kLanes)
                store(to[i / kGroups].group[i % kGroups].minus_offset + r, -load(turned[i] + r));
    }
}

#if defined(__AVX512F__)
typedef __m512i vbytes;
inline vbytes load_bytes(const void* p) { return _mm512_loadu_si512(p); }
inline vbytes set_ints(int32_t x) { return _mm512_set1_epi32(x); }
inline vbytes pairs(vbytes u, vbytes s) { return _mm512_maddubs_epi16(u, s); }
inline vbytes add_pairs(vbytes a, vbytes b) { return _mm512_add_epi16(a, b); }
inline vbytes widen_pairs(vbytes a, int factor) { return _mm512_madd_epi16(a, _mm512_set1_epi16(static_cast<int16_t>(factor))); }
inline vbytes add_ints(vbytes a, vbytes b) { return _mm512_add_epi32(a, b); }
#else
typedef __m256i vbytes;
inline vbytes load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline vbytes set_ints(int32_t x) { return _mm256_set1_epi32(x); }
inline vbytes pairs(vbytes u, vbytes s) { return _mm256_maddubs_epi16(u, s); }
inline vbytes add_pairs(vbytes a, vbytes b) { return _mm256_add_epi16(a, b); }
inline vbytes widen_pairs(vbytes a, int factor) { return _mm256_madd_epi16(a, _mm256_set1_epi16(static_cast<int16_t>(factor))); }
inline vbytes add_ints(vbytes a, vbytes b) { return _mm256_add_epi32(a, b); }
#endif

inline int32_t four_bytes(const int8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return x;
}

// Adds the sums of kSteps * 4 products to acc: kVectors vectors of rows of weights times T rows of inputs. Vector v begins at w +
// w_at[v]. kTerms: pairs of products whose sum int16 holds. `factor`: of all levels, without VNNI.
template <int kSteps, int kTerms, int T>
inline void integer_sums(const uint8_t* w, const int64_t* w_at, const int8_t (*q)[kChunk], int factor,
                         vbytes (&acc)[kVectors][T]) {
#if defined(__AVX512VNNI__)
    for (int k = 0; k < kSteps; ++k) {
        vbytes b[T];
        for (int t = 0; t < T; ++t) b[t] = set_ints(four_bytes(q[t] + 4 * k));
        for (int v = 0; v < kVectors; ++v) {
            const vbytes a = load_bytes(w + w_at[v] + k * kGroup * 4);
            for (int t = 0; t < T; ++t) acc[v][t] = _mm512_dpbusd_epi32(acc[v][t], a, b[t]);
        }
    }
#else
    constexpr int kRun = kSteps < kTerms ? kSteps : kTerms;
    for (int run = 0; run < kSteps; run += kRun) {
        vbytes words[kVectors][T];
        for (int k = 0; k < kRun; ++k) {
            vbytes a[kVectors];
            for (int v = 0; v < kVectors; ++v) a[v] = load_bytes(w + w_at[v] + (run + k) * kGroup * 4);
            for (int t = 0; t < T; ++t) {
                const vbytes b = set_ints(four_bytes(q[t] + 4 * (run + k)));
                for (int v = 0; v < kVectors; ++v)
                    words[v][t] = k ? add_pairs(words[v][t], pairs(a[v], b)) : pairs(a[v], b);
            }
        }
        for (int v = 0; v < kVectors; ++v)
            for (int t = 0; t < T; ++t) acc[v][t] = add_ints(acc[v][t], widen_pairs(words[v][t], factor));
    }
#endif
}

// One microkernel: kVectors vectors of rows of weights times the first T rows of a part of inputs.
template <class Fmt, int T>
inline void micro(const uint8_t* w, const int64_t* w_at, const uint8_t* scales, const int64_t* scales_at, const InputPart* x,
                  int64_t chunks, float* const* c, bool accumulate) {
    constexpr bool kShifted = starts_shifted<Fmt>(), kOffset = Fmt::kMinimum || (!kShifted && Fmt::kBias > 0);
    constexpr int kGroups = 32 / Fmt::kGroup, kSteps = Fmt::kGroup / 4;
    constexpr int kTerms = Fmt::kMost <= 15 || planes<Fmt>() == 2 ? 8 : Fmt::kMost <= 31 ? 4 : 2;
    vf total[kVectors][T];
    for (int v = 0; v < kVectors; ++v)
        for (int t = 0; t < T; ++t) total[v][t] = vf{};
    for (int64_t i = 0; i < chunks; ++i, w += kChunkSize, scales += sizeof(PanelScales), x += kGroup / kPart) {
        for (int half = 0; half < kGroups; ++half) {
            vbytes acc[kVectors][T];
            for (int t = 0; t < T; ++t) {
                const int32_t start = !kShifted ? kMagicBits : kGroups == 1 ? x->start[t] : x->half_start[half][t];
                for (int v = 0; v < kVectors; ++v) acc[v][t] = set_ints(start);
            }
            const auto* q = reinterpret_cast<const int8_t(*)[kChunk]>(x->q[0] + half * 16);
            integer_sums<kSteps, kTerms, T>(w + half * kSteps * kGroup * 4, w_at, q, 1, acc);
            if constexpr (planes<Fmt>() == 2) integer_sums<kSteps, kTerms, T>(w + chunks * kChunkSize, w_at, q, 16, acc);
            for (int v = 0; v < kVectors; ++v) {
                const auto* s = reinterpret_cast<const float*>(scales + scales_at[v]) + half * 3 * kGroup;
                const vf scale = load(s), minus_magic = load(s + kGroup);
                for (int t = 0; t < T; ++t)
                    total[v][t] = fma(fma((vf)acc[v][t], scale, minus_magic), set1(x->factor[t]), total[v][t]);
                if constexpr (kOffset) {
                    const vf minus_offset = load(s + 2 * kGroup);
                    for (int t = 0; t < T; ++t) {
                        const float sum = kGroups == 1 ? x->sum[t] : x->half_sum[half][t];
                        total[v][t] = fma(minus_offset, set1(sum), total[v][t]);
                    }
                }
            }
        }
    }
    for (int v = 0; v < kVectors; ++v)
        for (int t = 0; t < T; ++t) store(c[v] + t * kGroup, accumulate ? load(c[v] + t * kGroup) + total[v][t] : total[v][t]);
}

template <class Fmt>
void multiply(const uint8_t* w, int64_t n_groups, int64_t w_stride, const uint8_t* x, int64_t m, int64_t x_stride, int64_t chunks,
              float* c, bool accumulate) {
    const int64_t m_groups = round_up(m, kGroup) / kGroup;
    for (int64_t n = 0; n < n_groups * kGroup; n += kPartRows) {
        int64_t w_at[kVectors], scales_at[kVectors], c_at[kVectors];
        for (int v = 0; v < kVectors; ++v) {
            const int64_t group = (n + v * kLanes) / kGroup, row = (n + v * kLanes) % kGroup;
            w_at[v] = group * w_stride + row * 4;
            scales_at[v] = group * w_stride + planes<Fmt>() * chunks * kChunkSize + row * 4;
            c_at[v] = group * m_groups * kTile + row;
        }
        for (int64_t first = 0; first < m; first += kPart) {
            const auto* part = reinterpret_cast<const InputPart*>(x + first / kGroup * x_stride) + first % kGroup / kPart;
            float* to[kVectors];
            for (int v = 0; v < kVectors; ++v) to[v] = c + c_at[v] + first * kGroup;
            switch (m - first) {
                case 1: micro<Fmt, 1>(w, w_at, w, scales_at, part, chunks, to, accumulate); break;
                case 2: micro<Fmt, 2>(w, w_at, w, scales_at, part, chunks, to, accumulate); break;
                case 3: micro<Fmt, 3>(w, w_at, w, scales_at, part, chunks, to, accumulate); break;
                default: micro<Fmt, kPart>(w, w_at, w, scales_at, part, chunks, to, accumulate);
            }
        }
    }
}

}  // namespace
}  // namespace jamba

namespace jamba {
namespace JAMBA_VARIANT {
namespace {

bool takes(int type) {
    switch (type) {
        case kI8: return has_products<I8>();
#define FORMAT(name, block, id) \
    case k##name: return has_products<name>();
            BLOCK_FORMATS(FORMAT)
#undef FORMAT
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

template <class Fmt>
inline void multiply_format(const void* w, int64_t n_groups, int64_t w_stride, const void* x, int64_t m, int64_t x_stride,
                            int64_t chunks, float* c, bool accumulate) {
    if constexpr (has_products<Fmt>())
        multiply<Fmt>(static_cast<const uint8_t*>(w), n_groups, w_stride, static_cast<const uint8_t*>(x), m, x_stride, chunks, c,
                      accumulate);
}

void multiply_int8(int type, const void* w, int64_t n_groups, int64_t w_stride, const void* x, int64_t m, int64_t x_stride,
                   int64_t chunks, float* c, bool accumulate) {
    switch (type) {
        case kI8: return multiply_format<I8>(w, n_groups, w_stride, x, m, x_stride, chunks, c, accumulate);
#define FORMAT(name, block, id) \
    case k##name: return multiply_format<name>(w, n_groups, w_stride, x, m, x_stride, chunks, c, accumulate);
            BLOCK_FORMATS(FORMAT)
#undef FORMAT
        default: return;
    }
}

constexpr Int8Panels kPanels{kPanelChunk, kInputChunk, takes, fill_int8, multiply_int8};

}  // namespace

const PanelOps int8_panel_ops{1, 256, nullptr, pack_int8, nothing, nothing, nullptr, store_int8, gate_int8, &kPanels};

}  // namespace JAMBA_VARIANT
}  // namespace jamba
