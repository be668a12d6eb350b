// Attention in bf16 panels: keys, queries, values and softmax weights are rounded to bf16, scores and sums are f32.
#include "prefill/attention_panels.h"
#include "prefill/bf16.h"

namespace jamba {
namespace {

struct EmitBf16 {
    static constexpr int kRows = 2;
    static void put(const vf* rows, void* out, int64_t key, int) {
        _mm512_storeu_si512(static_cast<uint16_t*>(out) + key * 16, pair_rows(rows[0], rows[1]));
    }
};

void keys(const float* rows, int64_t count, int64_t n, void* out, int64_t stride) {
    for (int64_t j = 0; j < 32; ++j) {
        uint16_t* to = static_cast<uint16_t*>(out) + j / 16 * stride + j % 16 * kChunk;
        for (int64_t i = 0; i < n; i += kChunk, to += kChunkSize) {
            const float* from = rows + j * n + i;
            _mm512_storeu_si512(to, j < count ? to_bf16(load_part(from + 16, n - i - 16), load_part(from, n - i))
                                              : _mm512_setzero_si512());
        }
    }
}

void values(const float* rows, int64_t count, int64_t n, void* out, int64_t stride) {
    alignas(64) float turned[16 * kChunk];
    uint16_t* to = static_cast<uint16_t*>(out);
    for (int64_t first = 0; first < n; first += 16, to += stride) {
        turn_columns(rows, count, n, first, turned, kChunk);
        turn_columns(rows + 16 * n, count - 16, n, first, turned + 16, kChunk);
        for (int i = 0; i < 16; ++i)
            _mm512_storeu_si512(to + i * kChunk, to_bf16(load(turned + i * kChunk + 16), load(turned + i * kChunk)));
    }
}

}  // namespace

namespace bf16 {
const AttendOps attend_ops{&panel_ops, keys, values, softmax_block<EmitBf16>, finish_block};
}

namespace amx {
const AttendOps attend_ops{&panel_ops, keys, values, softmax_block<EmitBf16>, finish_block};
}

}  // namespace jamba
