// Drives matrix products of many rows: packs inputs, gives blocks of weight rows to threads, dequantizes panels, multiplies,
// stores. PanelOps has what depends on the instruction set.
//
// Each block goes to the next free thread. Every product is computed wholly inside one block, in an order of k that depends
// on nothing but the shape of the weight, so neither threads nor the number of rows changes a result.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <initializer_list>

#include "prefill/gemm.h"
#include "base/scratch.h"
#include "base/threads.h"
#include "decode/inner_kernels.h"

namespace jamba {
namespace {

thread_local Buffer packed_inputs, packed_gated, panel, products, low_inputs, low_gated, float_gated, low_rows;

struct Weight {
    int type;
    const uint8_t* data;
    const float* scale;  // one factor per row, or null
    int64_t n, k;
    const LowRank* low;  // n_low adapters of the whole matrix or stack
    int32_t n_low;

    int64_t low_rank() const {
        int64_t rank = 0;
        for (int32_t i = 0; i < n_low; ++i) rank += low[i].rank;
        return rank;
    }
    int64_t row_bytes() const { return k / type_info(type).values * type_info(type).bytes; }
    Weight rows(int64_t first) const { return {type, data + first * row_bytes(), scale ? scale + first : nullptr, n - first, k, low, n_low}; }
};

Weight weight_of(const Matrix& w) { return {w.type, w.data, w.scale, w.rows, w.cols, w.low, w.n_low}; }

constexpr int64_t kSplit = 2048;                // rows of inputs multiplied with one dequantized panel
constexpr int64_t kProducts = 128 * 1024;       // floats of products a thread holds: half of a second-level cache of 1 MB
constexpr int64_t kBlockRows = 128, kUnit = 32; // rows of weights in a block: the most, and what all are multiples of

int64_t block_rows(int64_t n, int64_t m, int threads) {
    int64_t rows = kProducts / round_up(m < kSplit ? m : kSplit, kGroup) / kUnit * kUnit;
    const int64_t fair = round_up(n, 4 * threads) / (4 * threads) / kUnit * kUnit;  // four blocks a thread or more
    if (rows > fair) rows = fair;
    return rows < kUnit ? kUnit : rows > kBlockRows ? kBlockRows : rows;
}

// A panel of values k..k+width of rows of weights, zeros for rows up to the end of the last group.
void fill_panel(const PanelOps& ops, const Weight& w, int64_t rows, int64_t groups, int64_t k, int64_t width, uint8_t* to) {
    const int64_t chunks = round_up(width, kChunk) / kChunk, bytes = w.row_bytes();
    if (ops.int8) {
        for (int64_t g = 0; g < groups; ++g) {
            const Weight group = w.rows(g * kGroup);
            ops.int8->fill(w.type, group.data, bytes, group.scale, rows - g * kGroup, k, width, to + g * chunks * ops.w_chunk());
        }
        return;
    }
    const DequantizeRow dequantize = ops.dequantizer(w.type);
    const int64_t stride = chunks * kChunkSize, eb = ops.element_bytes;
    for (int64_t r = 0; r < groups * kGroup; ++r) {
        uint8_t* row = to + (r / kGroup * stride + r % kGroup * kChunk) * eb;
        if (r < rows) {
            dequantize(w.data + r * bytes, k, width, w.scale ? w.scale[r] : 1.0f, row, kChunkSize);
        } else {
            for (int64_t i = 0; i < chunks; ++i)
                for (int64_t j = 0; j < kChunk * eb; ++j) row[i * kChunkSize * eb + j] = 0;
        }
    }
}

// c [round_up(rows, 32) / 16][m / 16] = the first `rows` rows of w times m packed inputs, whose groups are x_stride bytes apart.
void multiply_block(const PanelOps& ops, const Weight& w, int64_t rows, const uint8_t* x, int64_t x_stride, int64_t m, float* c) {
    const int64_t groups = round_up(rows, kUnit) / kGroup, w_chunk = ops.w_chunk(), x_chunk = ops.x_chunk();
    uint8_t* to = static_cast<uint8_t*>(panel.get(groups * ops.k_block / kChunk * w_chunk));
    for (int64_t k = 0; k < w.k; k += ops.k_block) {
        const int64_t width = w.k - k < ops.k_block ? w.k - k : ops.k_block, chunks = round_up(width, kChunk) / kChunk;
        fill_panel(ops, w, rows, groups, k, width, to);
        const uint8_t* from = x + k / kChunk * x_chunk;
        if (ops.int8)
            ops.int8->multiply(w.type, to, groups, chunks * w_chunk, from, m, x_stride, chunks, c, k > 0);
        else
            ops.multiply(to, groups, chunks * kChunkSize, from, round_up(m, kGroup) / kGroup, x_stride / ops.element_bytes, chunks,
                         c, k > 0);
    }
}

// Where adapters' products with the activations lie: scale * a x of each group of 16 rows, [rank, 16].
struct LowInputs {
    float* ax = nullptr;
    int64_t rank = 0;

    float* group(int64_t g) const { return ax + g * rank * kGroup; }
};

// Those of weight w, from `at` on.
LowInputs take_low(const Weight& w, float* at) { return {at, w.low_rank()}; }

// Fills group `g` for matrix `index` of a stack: rows 16 * g and on of x, of which `m` exist, by number or as `order` names them.
void fill_low(const Weight& w, int64_t index, const float* x, int64_t x_stride, const int64_t* order, int64_t m, int64_t g,
              float* out) {
    if (!w.n_low) return;
    const InnerKernels& kernels = inner_kernels();
    const int64_t rank = w.low_rank(), first = g * kGroup, count = std::min(m - first, kGroup);
    int32_t tokens[kGroup];
    for (int64_t i = 0; i < count; ++i) tokens[i] = static_cast<int32_t>(order ? order[first + i] : first + i);
    Act act{};
    act.f = x;
    act.f_stride = x_stride;
    float* rows = static_cast<float*>(low_rows.get(kGroup * rank * 4));
    int64_t at = 0;
    for (int32_t i = 0; i < w.n_low; at += w.low[i++].rank) {
        const LowRank& low = w.low[i];
        const float* a = low.a + index * low.rank * w.k;
        const auto* bytes = reinterpret_cast<const uint8_t*>(a);
        const int64_t row_bytes = w.k * static_cast<int64_t>(sizeof(float));
        kernels.gemv[kF32]({bytes, bytes + low.rank * row_bytes, row_bytes, w.k, nullptr}, act, tokens, static_cast<int>(count), 0, low.rank,
                           rows + at, rank);
        for (int64_t r = at; r < at + low.rank; ++r)
            for (int64_t t = 0; t < kGroup; ++t) out[r * kGroup + t] = t < count ? rows[t * rank + r] * low.scale : 0.0f;
    }
}

// c [groups][m_groups], the products of rows n.. of matrix `index` with groups `first`.. of inputs, plus the adapters' parts.
void add_low(const PanelOps& ops, const Weight& w, int64_t index, int64_t n, int64_t groups, const LowInputs& inputs, int64_t first,
             int64_t m_groups, float* c) {
    if (!w.n_low) return;
    const InnerKernels& kernels = inner_kernels();
    for (int64_t g = 0; g < groups; ++g)
        for (int64_t mg = 0; mg < m_groups; ++mg) {
            float* tile = c + (g * m_groups + mg) * kTile;
            const float* ax = inputs.group(first + mg);
            for (int32_t i = 0; i < w.n_low; ax += w.low[i++].rank * kGroup) {
                const LowRank& low = w.low[i];
                if (n + g * kGroup >= low.b_stride) continue;  // rows that the weight does not have
                const float* b = low.b + index * low.rank * low.b_stride + n + g * kGroup;
                if (ops.int8)
                    kernels.add_outer(tile, ax, kGroup, b, low.b_stride, low.rank);
                else
                    kernels.add_outer(tile, b, low.b_stride, ax, kGroup, low.rank);
            }
        }
}

// silu(g) * u of products [groups][m_groups] as floats: columns n.. of rows of `out`, `stride` floats apart.
void gate_floats(const PanelOps& ops, const float* g, const float* u, int64_t groups, int64_t m_groups, float* out, int64_t stride) {
    const InnerKernels& kernels = inner_kernels();
    float tile[kTile];
    for (int64_t i = 0; i < groups; ++i)
        for (int64_t mg = 0; mg < m_groups; ++mg) {
            const int64_t at = (i * m_groups + mg) * kTile;
            float* to = out + mg * kGroup * stride + i * kGroup;
            kernels.silu_mul(g + at, u + at, kTile, tile);
            for (int64_t m = 0; m < kGroup; ++m)
                for (int64_t n = 0; n < kGroup; ++n) to[m * stride + n] = ops.int8 ? tile[m * kGroup + n] : tile[n * kGroup + m];
        }
}

// Packs group g of 16 rows: rows of x by number, or those that `order` names.
void pack_group(const PanelOps& ops, const float* x, int64_t x_stride, const int64_t* order, int64_t m, int64_t g, int64_t k,
                uint8_t* out) {
    const float* rows[kGroup];
    for (int64_t i = 0; i < kGroup; ++i) {
        const int64_t r = g * kGroup + i;
        rows[i] = r < m ? x + (order ? order[r] : r) * x_stride : nullptr;
    }
    ops.pack(rows, k, out);
}

void linear(const Weight& w, const float* x, int64_t x_stride, int64_t m, float* out, int64_t out_stride, bool precise,
            int threads) {
    const PanelOps& ops = panel_ops(w.type, precise);
    const int64_t groups = round_up(m, kGroup) / kGroup, x_group = round_up(w.k, kChunk) / kChunk * ops.x_chunk();
    const int64_t rows = block_rows(w.n, m, threads);
    uint8_t* packed = static_cast<uint8_t*>(packed_inputs.get(groups * x_group));
    const LowInputs low = take_low(w, static_cast<float*>(low_inputs.get(groups * kGroup * w.low_rank() * 4)));
    std::atomic<int64_t> next{0};
    parallel(threads, [&](Team& team) {
        const Range share = team.share(groups);
        for (int64_t g = share.begin; g < share.end; ++g) {
            pack_group(ops, x, x_stride, nullptr, m, g, w.k, packed + g * x_group);
            fill_low(w, 0, x, x_stride, nullptr, m, g, low.group(g));
        }
        team.barrier();
        ops.enter();
        for (;;) {
            const int64_t n = next.fetch_add(rows, std::memory_order_relaxed);
            if (n >= w.n) break;
            const int64_t count = w.n - n < rows ? w.n - n : rows;
            for (int64_t first = 0; first < m; first += kSplit) {
                const int64_t part = m - first < kSplit ? m - first : kSplit, part_groups = round_up(part, kGroup) / kGroup;
                float* c = static_cast<float*>(products.get(round_up(count, kUnit) * part_groups * kGroup * 4));
                multiply_block(ops, w.rows(n), count, packed + first / kGroup * x_group, x_group, part, c);
                add_low(ops, w, 0, n, round_up(count, kUnit) / kGroup, low, first / kGroup, part_groups, c);
                const Output to{out + first * out_stride + n, out_stride, nullptr, nullptr};
                ops.store(c, round_up(count, kUnit) / kGroup, part_groups, count, part, to);
            }
        }
        ops.leave();
    });
}

struct Gated {
    Weight gate, up, down;  // of all experts, stacked: n counts one expert's rows
    int64_t experts;
    const int64_t* offsets;  // [experts + 1]: expert e has rows offsets[e]..offsets[e + 1] of the sorted inputs
    const int64_t* order;    // the token of each sorted row, or null: its number
    const float* weights;    // of each sorted row, or null: store instead of adding
    bool precise;            // no int8 panels
};

// Operations for all three matrices: the finest of theirs, and inputs that all of them take.
const PanelOps& common_ops(const Gated& g) {
    const PanelOps* ops[] = {&panel_ops(g.gate.type, g.precise), &panel_ops(g.up.type, g.precise), &panel_ops(g.down.type, g.precise)};
    const PanelOps* finest = ops[0];
    for (const PanelOps* each : ops) {
        const bool as_fine = each->element_bytes == finest->element_bytes;
        if (each->element_bytes > finest->element_bytes || (as_fine && !each->ranged)) finest = each;
    }
    return *finest;
}

// out (+)= weight * down(silu(gate(x)) * up(x)). Three phases, so that there are two barriers whatever the number of experts:
// pack all experts' inputs, all their gated products, then by columns of the output all experts' sums in their order.
void gated(const Gated& g, const float* x, int64_t x_stride, float* out, int64_t out_stride, int threads) {
    const PanelOps& ops = common_ops(g);
    const int64_t hidden = g.gate.k, ffn = g.gate.n, x_chunk = ops.x_chunk();
    const int64_t x_group = round_up(hidden, kChunk) / kChunk * x_chunk, h_group = round_up(ffn, kChunk) / kChunk * x_chunk;
    const auto rows_of = [&](int64_t e) { return g.offsets[e + 1] - g.offsets[e]; };
    int64_t groups = 0, most = 1;
    for (int64_t e = 0; e < g.experts; ++e) {
        groups += round_up(rows_of(e), kGroup) / kGroup;
        if (rows_of(e) > most) most = rows_of(e);
    }
    uint8_t* packed = static_cast<uint8_t*>(packed_inputs.get(groups * x_group));
    uint8_t* hidden_packed = static_cast<uint8_t*>(packed_gated.get(groups * h_group));
    const int64_t low_values = g.gate.low_rank() + g.up.low_rank();
    float* low_at = static_cast<float*>(low_inputs.get(groups * kGroup * low_values * 4));
    const LowInputs low_gate = take_low(g.gate, low_at);
    const LowInputs low_up = take_low(g.up, low_at + groups * kGroup * low_gate.rank);
    const LowInputs low_down = take_low(g.down, static_cast<float*>(low_gated.get(groups * kGroup * g.down.low_rank() * 4)));
    // The inputs of down as floats, which only its adapters read: rows of groups of 16 as in `packed`.
    const int64_t float_stride = round_up(ffn, kUnit);
    float* floats = g.down.n_low ? static_cast<float*>(float_gated.get(groups * kGroup * float_stride * 4)) : nullptr;
    const int64_t ffn_rows = block_rows(ffn, 2 * most, threads), ffn_blocks = (ffn + ffn_rows - 1) / ffn_rows;
    const int64_t out_rows = block_rows(g.down.n, most, threads);
    std::atomic<int64_t> next_ffn{0}, next_out{0};
    parallel(threads, [&](Team& team) {
        const Range share = team.share(groups);
        int64_t first_group = 0;
        for (int64_t e = 0; e < g.experts; ++e) {
            const int64_t count = round_up(rows_of(e), kGroup) / kGroup;
            for (int64_t i = 0; i < count; ++i) {
                const int64_t group = first_group + i;
                if (group < share.begin || group >= share.end) continue;
                const int64_t* order = g.order ? g.order + g.offsets[e] : nullptr;
                pack_group(ops, x, x_stride, order, rows_of(e), i, hidden, packed + group * x_group);
                fill_low(g.gate, e, x, x_stride, order, rows_of(e), i, low_gate.group(group));
                fill_low(g.up, e, x, x_stride, order, rows_of(e), i, low_up.group(group));
            }
            first_group += count;
        }
        team.barrier();
        ops.enter();
        int64_t item = next_ffn.fetch_add(1, std::memory_order_relaxed);
        first_group = 0;
        for (int64_t e = 0; e < g.experts; ++e) {
            const int64_t m = rows_of(e);
            for (; item < (e + 1) * ffn_blocks; item = next_ffn.fetch_add(1, std::memory_order_relaxed)) {
                if (m == 0) continue;
                const int64_t n = (item - e * ffn_blocks) * ffn_rows, count = ffn - n < ffn_rows ? ffn - n : ffn_rows;
                for (int64_t first = 0; first < m; first += kSplit) {
                    const int64_t part = m - first < kSplit ? m - first : kSplit, part_groups = round_up(part, kGroup) / kGroup;
                    const int64_t size = round_up(count, kUnit) * part_groups * kGroup;
                    float* c = static_cast<float*>(products.get(2 * size * 4));
                    const int64_t group = first_group + first / kGroup;
                    const uint8_t* from = packed + group * x_group;
                    multiply_block(ops, g.gate.rows(e * ffn + n), count, from, x_group, part, c);
                    multiply_block(ops, g.up.rows(e * ffn + n), count, from, x_group, part, c + size);
                    const int64_t count_groups = round_up(count, kUnit) / kGroup;
                    add_low(ops, g.gate, e, n, count_groups, low_gate, group, part_groups, c);
                    add_low(ops, g.up, e, n, count_groups, low_up, group, part_groups, c + size);
                    if (floats)
                        gate_floats(ops, c, c + size, count_groups, part_groups, floats + group * kGroup * float_stride + n, float_stride);
                    uint8_t* to = hidden_packed + group * h_group + n / kChunk * x_chunk;
                    ops.gate(c, c + size, round_up(count, kUnit) / kGroup, part_groups, to, h_group / ops.element_bytes);
                }
            }
            first_group += round_up(m, kGroup) / kGroup;
        }
        team.barrier();
        if (floats) {
            first_group = 0;
            for (int64_t e = 0; e < g.experts; ++e) {
                const int64_t count = round_up(rows_of(e), kGroup) / kGroup;
                for (int64_t i = std::max(share.begin - first_group, int64_t{0}); i < std::min(share.end - first_group, count); ++i)
                    fill_low(g.down, e, floats + first_group * kGroup * float_stride, float_stride, nullptr, rows_of(e), i,
                             low_down.group(first_group + i));
                first_group += count;
            }
            team.barrier();
        }
        for (;;) {
            const int64_t n = next_out.fetch_add(out_rows, std::memory_order_relaxed);
            if (n >= g.down.n) break;
            const int64_t count = g.down.n - n < out_rows ? g.down.n - n : out_rows;
            first_group = 0;
            for (int64_t e = 0; e < g.experts; ++e) {
                const int64_t m = rows_of(e);
                for (int64_t first = 0; first < m; first += kSplit) {
                    const int64_t part = m - first < kSplit ? m - first : kSplit, m_groups = round_up(part, kGroup) / kGroup;
                    float* c = static_cast<float*>(products.get(round_up(count, kUnit) * m_groups * kGroup * 4));
                    const uint8_t* from = hidden_packed + (first_group + first / kGroup) * h_group;
                    multiply_block(ops, g.down.rows(e * g.down.n + n), count, from, h_group, part, c);
                    add_low(ops, g.down, e, n, round_up(count, kUnit) / kGroup, low_down, first_group + first / kGroup, m_groups, c);
                    const int64_t start = g.offsets[e] + first;
                    const Output to{g.order ? out + n : out + start * out_stride + n, out_stride,
                                    g.order ? g.order + start : nullptr, g.weights ? g.weights + start : nullptr};
                    ops.store(c, round_up(count, kUnit) / kGroup, m_groups, count, part, to);
                }
                first_group += round_up(m, kGroup) / kGroup;
            }
        }
        ops.leave();
    });
}

}  // namespace

const PanelOps& float_panel_ops(int type) {
#if defined(NATIVE_X86)
    if (type != kF32 && type != kF16) {
        if (isa_includes(Isa::amx) && amx::usable()) return amx::panel_ops;
        if (isa_includes(Isa::bf16)) return bf16::panel_ops;
    }
#endif
#define LEVEL(level) {Isa::level, &level::f32_panel_ops},
    static constexpr Variant<PanelOps> variants[] = {SIMD_LEVELS(LEVEL)};
#undef LEVEL
    return choose(variants);
}

// int8 panels for any number of rows, so that a row's result does not depend on how many come with it.
const PanelOps& panel_ops(int type, bool precise) {
#if defined(NATIVE_X86)
#define LEVEL(level) {Isa::level, &level::int8_panel_ops},
    static constexpr Variant<PanelOps> variants[] = {INT8_LEVELS(LEVEL)};
#undef LEVEL
#define LEVEL(level) {Isa::level, &level::int8_ranged_ops},
    static constexpr Variant<PanelOps> ranged_variants[] = {INT8_LEVELS(LEVEL)};
#undef LEVEL
    if (!precise && isa_includes(Isa::avx2) && float_panel_ops(type).element_bytes == 4) {
        const PanelOps& ops = choose(variants);
        if (ops.int8->takes(type)) return ops.int8->ranged && ops.int8->ranged(type) ? choose(ranged_variants) : ops;
    }
#elif defined(NATIVE_ARM)
    if (!precise && isa_includes(Isa::neon) && !is_float_type(type)) return isa_includes(Isa::i8mm) ? i8mm::int8_panel_ops : neon::int8_panel_ops;
#endif
    return float_panel_ops(type);
}

}  // namespace jamba

// out[m][n] = x[m] . w[n] for x f32 [m, w.cols] and out f32 [m, w.rows].
EXPORT int prefill_linear(const jamba::Matrix* w, const float* x, int64_t x_stride, float* out, int64_t out_stride, int64_t m,
                          int precise, int threads) {
    using namespace jamba;
    if (const Status status = check_matrix(*w)) return status;
    return guarded([&] {
        if (m > 0) linear(weight_of(*w), x, x_stride, m, out, out_stride, precise != 0, threads);
        return kOk;
    });
}

// The gated network of one or many experts: out [tokens, hidden] (+)= weights * down(silu(gate(x)) * up(x)). The matrices are
// stacks of `experts`. `offsets`, `order` and `weights` as in Gated: with weights the caller clears `out`.
EXPORT int prefill_gated(const jamba::Matrix* gate, const jamba::Matrix* up, const jamba::Matrix* down, const int64_t* offsets,
                         const int64_t* order, const float* weights, const float* x, int64_t x_stride, float* out,
                         int64_t out_stride, int64_t experts, int precise, int threads) {
    using namespace jamba;
    for (const Matrix* w : {gate, up, down})
        if (const Status status = check_matrix(*w)) return status;
    if (up->rows != gate->rows || up->cols != gate->cols || down->cols != gate->rows || down->rows != gate->cols) return kBadStep;
    return guarded([&] {
        if (offsets[experts] > 0)
            gated({weight_of(*gate), weight_of(*up), weight_of(*down), experts, offsets, order, weights, precise != 0}, x, x_stride, out,
                  out_stride, threads);
        return kOk;
    });
}

// Bytes of an element of prefill_dequantize's output for weights of this type at the level in use: 2 (bf16) or 4 (f32).
EXPORT int prefill_element_bytes(int type) { return static_cast<int>(jamba::float_panel_ops(type).element_bytes); }

// The values of w as float products see them, bf16 or f32 by prefill_element_bytes (int8 panels hold the same values as f32);
// rows of `out` are `out_stride` elements apart, a multiple of 32.
EXPORT int prefill_dequantize(const jamba::Matrix* w, void* out, int64_t out_stride, int threads) {
    using namespace jamba;
    if (const Status status = check_matrix(*w)) return status;
    if (out_stride % kChunk) return kBadShape;
    const PanelOps& ops = float_panel_ops(w->type);
    const DequantizeRow dequantize = ops.dequantizer(w->type);
    parallel_for(threads, w->rows, 1, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
            dequantize(w->data + r * w->row_bytes, 0, w->cols, w->scale ? w->scale[r] : 1.0f,
                       static_cast<uint8_t*>(out) + r * out_stride * ops.element_bytes, kChunk);
    });
    return kOk;
}
