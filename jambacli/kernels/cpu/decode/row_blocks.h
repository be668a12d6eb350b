// The blocks of a row as the SIMD block products read them.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "decode/inner_kernels.h"

namespace jamba {
namespace {

constexpr int kPrefetch = 2048;  // bytes ahead in the row's stream; hardware prefetchers stop at each page

inline void prefetch(const uint8_t* p, int bytes) {
    for (int line = 0; line < bytes; line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(p + kPrefetch + line), _MM_HINT_T0);
}

// The last blocks of a row, fewer than 256 values: where they lie, or a copy where reading 256 values would leave the
// matrix. What lies behind the row is multiplied by zeros.
template <int kBytes>
inline const uint8_t* last_blocks(const Rows& w, const uint8_t* p, int64_t rest, uint8_t* copy) {
    if (p + kBytes <= w.end) return p;
    memset(copy, 0, kBytes);
    memcpy(copy, p, static_cast<size_t>(rest));
    return copy;
}

}  // namespace
}  // namespace jamba
