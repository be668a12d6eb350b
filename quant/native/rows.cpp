// The library's C interface: rows of blocks in and out, shared among threads.
#include "quant.h"

#include <cstring>
#include <new>

#include "quant/native/c_interface.h"
#include "share_out.h"

namespace {

using namespace quant;

void widen(int type, const void *src, int64_t count, float *dst) {
    const uint16_t *halves = static_cast<const uint16_t *>(src);
    type == kF16 ? panel_ops().widen_f16(halves, count, dst) : panel_ops().widen_bf16(halves, count, dst);
}

void narrow(int type, const float *src, int64_t count, void *dst) {
    uint16_t *halves = static_cast<uint16_t *>(dst);
    type == kF16 ? panel_ops().narrow_f16(src, count, halves) : panel_ops().narrow_bf16(src, count, halves);
}

bool is_plain(int type) { return type == kF32 || type == kF16 || type == kBF16; }
int64_t plain_size(int type) { return type == kF32 ? 4 : 2; }

// A thread's memory for one panel; it grows, and is freed with its thread.
float *scratch(int64_t count) {
    thread_local std::vector<float> room;
    if ((int64_t)room.size() < count) room.resize((size_t)count);
    return room.data();
}

void lower(std::atomic<int64_t> &lowest, int64_t value) {
    int64_t seen = lowest.load();
    while (value < seen && !lowest.compare_exchange_weak(seen, value)) {
    }
}

// work(source panel, the same as floats, first row, rows) for every panel of `src`; 0, 1 + a row that is not finite, or kNoMemory.
template <typename Work>
int64_t from_panels(const Plan &plan, int src_type, const void *src, const Work &work) {
    const uint8_t *in = static_cast<const uint8_t *>(src);
    std::atomic<int64_t> bad_row{INT64_MAX};
    std::atomic<bool> out_of_memory{false};
    share_out(plan, [&](int64_t first, int64_t count) {
        try {
            const int64_t total = count * plan.n;
            const uint8_t *from = in + first * plan.n * plain_size(src_type);
            const float *x = reinterpret_cast<const float *>(from);
            if (src_type != kF32) {
                float *room = scratch(total);
                widen(src_type, from, total, room);
                x = room;
            }
            if (!panel_ops().all_finite(x, total)) {
                int64_t row = 0;
                while (panel_ops().all_finite(x + row * plan.n, plan.n)) ++row;
                lower(bad_row, first + row);
                return false;
            }
            work(from, x, first, count);
        } catch (const std::bad_alloc &) {
            out_of_memory = true;
            return false;
        }
        return true;
    });
    if (out_of_memory) return kNoMemory;
    return bad_row == INT64_MAX ? kOk : 1 + bad_row;
}

}  // namespace

// Python loads the library only where this is its own number.
EXPORT int quant_abi_version() { return 5; }

// Bit 0: the library quantizes to the type. Bit 1: it dequantizes it.
EXPORT int quant_supports(int ggml_type) {
    if (is_plain(ggml_type)) return 3;
    return (find_quantizer(ggml_type) ? 1 : 0) | (find_dequantizer(ggml_type) ? 2 : 0);
}

// src: [rows, n] of src_type (0 f32, 1 f16, 30 bf16), contiguous. imatrix: f32 [n] or null. dst: [rows, row bytes].
// Returns 0; 1 + the first row that is not finite; or a negative Status. dst is undefined unless 0 is returned.
EXPORT int64_t quant_quantize_rows(int ggml_type, int src_type, const void *src, int64_t rows, int64_t n, const float *imatrix, void *dst,
                            int threads) {
    Plan plan;
    if (!is_plain(src_type) || !(quant_supports(ggml_type) & 1)) return kBadType;
    if (!make_plan(ggml_type, rows, n, threads, &plan)) return kPartialBlock;
    if (imatrix) {
        if (!panel_ops().all_finite(imatrix, n)) return kBadImatrix;
        for (int64_t j = 0; j < n; ++j)
            if (imatrix[j] < 0) return kBadImatrix;
    }
    const QuantizeRows quantize = is_plain(ggml_type) ? nullptr : find_quantizer(ggml_type);
    uint8_t *out = static_cast<uint8_t *>(dst);
    return from_panels(plan, src_type, src, [&](const void *from, const float *x, int64_t first, int64_t count) {
        uint8_t *to = out + first * plan.row_bytes;
        if (quantize) {
            quantize(x, count, n, imatrix, to);
        } else if (ggml_type == src_type || ggml_type == kF32) {
            std::memcpy(to, ggml_type == src_type ? from : x, (size_t)(count * plan.row_bytes));
        } else {
            narrow(ggml_type, x, count * n, to);
        }
    });
}

// src: [rows, n] of src_type, contiguous. levels: [rows, n]. scale: [rows]. Returns as quant_quantize_rows does.
EXPORT int64_t quant_quantize_int8_rows(int src_type, const void *src, int64_t rows, int64_t n, int8_t *levels, float *scale,
                                         int threads) {
    Plan plan;
    if (!is_plain(src_type)) return kBadType;
    if (!make_plan(kF32, rows, n, threads, &plan)) return kPartialBlock;
    const auto quantize = panel_ops().rowwise_int8;
    return from_panels(plan, src_type, src, [&](const void *, const float *x, int64_t first, int64_t count) {
        quantize(x, count, n, levels + first * n, scale + first);
    });
}

// src: [rows, row bytes]. dst: [rows, n] of dst_type (0 f32, 1 f16, 30 bf16). Returns 0 or a negative Status.
EXPORT int64_t quant_dequantize_rows(int ggml_type, int dst_type, const void *src, int64_t rows, int64_t n, void *dst, int threads) {
    Plan plan;
    if (!is_plain(dst_type) || !(quant_supports(ggml_type) & 2)) return kBadType;
    if (!make_plan(ggml_type, rows, n, threads, &plan)) return kPartialBlock;
    const DequantizeRows dequantize = is_plain(ggml_type) ? nullptr : find_dequantizer(ggml_type);
    const uint8_t *in = static_cast<const uint8_t *>(src);
    uint8_t *out = static_cast<uint8_t *>(dst);
    std::atomic<bool> out_of_memory{false};
    share_out(plan, [&](int64_t first, int64_t count) {
        try {
            const int64_t total = count * n;
            const uint8_t *from = in + first * plan.row_bytes;
            uint8_t *to = out + first * n * plain_size(dst_type);
            if (ggml_type == dst_type) {
                std::memcpy(to, from, (size_t)(count * plan.row_bytes));
                return true;
            }
            const float *x = reinterpret_cast<const float *>(from);
            if (ggml_type != kF32) {
                float *target = dst_type == kF32 ? reinterpret_cast<float *>(to) : scratch(total);
                dequantize ? dequantize(from, count, n, target) : widen(ggml_type, from, total, target);
                x = target;
            }
            if (dst_type != kF32) narrow(dst_type, x, total, to);
        } catch (const std::bad_alloc &) {
            out_of_memory = true;
            return false;
        }
        return true;
    });
    return out_of_memory ? kNoMemory : kOk;
}
