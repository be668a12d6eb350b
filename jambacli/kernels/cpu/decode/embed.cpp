// Single rows of a weight as floats: the embeddings of tokens.
#include <algorithm>
#include <cstring>

#include "decode/team.h"
#include "decode/unpack_plain.h"

namespace jamba {
namespace {

template <class Format>
void expand(const uint8_t* row, int64_t n, int64_t row_bytes, float* out) {
    uint8_t block[Format::kBytes];
    for (int64_t i = 0; i < n; i += 256) {
        const int64_t at = i / 256 * Format::kBytes, left = std::min<int64_t>(Format::kBytes, row_bytes - at);
        std::memset(block, 0, sizeof block);
        std::memcpy(block, row + at, static_cast<size_t>(left));
        Values v;
        Format::unpack(reinterpret_cast<const typename Format::Block*>(block), v);
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
#define FORMAT(name, block, id) \
    case k##name: expand<name>(row, n, bytes, out); break;
        BLOCK_FORMATS(FORMAT)
#undef FORMAT
        default: break;
    }
}

}  // namespace
}  // namespace jamba

// Rows ids[0..m) of w as floats [m, cols]: equal to the formats' dequantization bit by bit. Ids outside w: kBadRow.
EXPORT int decode_embed(const jamba::Matrix* w, const int64_t* ids, float* out, int64_t m) {
    using namespace jamba;
    if (const Status status = check_matrix(*w)) return status;
    for (int64_t t = 0; t < m; ++t)
        if (ids[t] < 0 || ids[t] >= w->rows) return kBadRow;
    for (int64_t t = 0; t < m; ++t) expand_row(*w, ids[t], out + t * w->cols);
    return kOk;
}
