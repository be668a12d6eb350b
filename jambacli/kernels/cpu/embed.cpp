// Single rows of a weight as floats: the embeddings of tokens. Knows nothing of products.
#include <algorithm>
#include <cstring>

#include "step.h"
#include "unpack_base.h"

namespace jamba {
namespace {

template <void (*unpack)(const uint8_t*, Values&), int kBytes>
void expand(const uint8_t* row, int64_t n, int64_t row_bytes, float* out) {
    uint8_t block[kBytes];
    for (int64_t i = 0; i < n; i += 256) {
        const int64_t at = i / 256 * kBytes, left = std::min<int64_t>(kBytes, row_bytes - at);
        std::memset(block, 0, sizeof block);
        std::memcpy(block, row + at, static_cast<size_t>(left));
        Values v;
        unpack(block, v);
        for (int64_t j = 0; j < std::min<int64_t>(256, n - i); ++j)
            out[i + j] = v.scale[j / 16] * static_cast<float>(v.w[j]) - v.offset[j / 16];
    }
}

void expand_row(const Matrix& w, int64_t r, float* out) {
    const uint8_t* row = w.data + r * w.row_bytes;
    const int64_t n = w.cols, bytes = w.row_bytes;
    switch (w.type) {
        case kF32: std::memcpy(out, row, static_cast<size_t>(bytes)); break;
        case kF16: for (int64_t i = 0; i < n; ++i) out[i] = half_to_float(read_u16(row + 2 * i)); break;
        case kBF16: for (int64_t i = 0; i < n; ++i) out[i] = bf16_to_float(read_u16(row + 2 * i)); break;
        case kI8: for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(static_cast<int8_t>(row[i])) * w.scale[r]; break;
        case kQ4_0: expand<unpack_q4_0, 8 * 18>(row, n, bytes, out); break;
        case kQ4_1: expand<unpack_q4_1, 8 * 20>(row, n, bytes, out); break;
        case kQ5_0: expand<unpack_q5_0, 8 * 22>(row, n, bytes, out); break;
        case kQ5_1: expand<unpack_q5_1, 8 * 24>(row, n, bytes, out); break;
        case kQ8_0: expand<unpack_q8_0, 8 * 34>(row, n, bytes, out); break;
        case kQ2_K: expand<unpack_q2_k, 84>(row, n, bytes, out); break;
        case kQ3_K: expand<unpack_q3_k, 110>(row, n, bytes, out); break;
        case kQ4_K: expand<unpack_q4_k, 144>(row, n, bytes, out); break;
        case kQ5_K: expand<unpack_q5_k, 176>(row, n, bytes, out); break;
        case kQ6_K: expand<unpack_q6_k, 210>(row, n, bytes, out); break;
        case kIQ4_NL: expand<unpack_iq4_nl, 8 * 18>(row, n, bytes, out); break;
        case kIQ4_XS: expand<unpack_iq4_xs, 136>(row, n, bytes, out); break;
        default: break;
    }
}

}  // namespace
}  // namespace jamba

// Rows ids[0..m) of w as floats [m, cols]: equal to the formats' dequantization bit by bit. Ids outside w: kBadShape.
EXPORT int kernels_embed(const jamba::Matrix* w, const int64_t* ids, int64_t m, float* out) {
    using namespace jamba;
    if (const int status = check_matrix(*w)) return status;
    for (int64_t t = 0; t < m; ++t)
        if (ids[t] < 0 || ids[t] >= w->rows) return kBadShape;
    for (int64_t t = 0; t < m; ++t) expand_row(*w, ids[t], out + t * w->cols);
    return kOk;
}
