// The rotation of heads whose keys and values are stored in few bits.
#pragma once

#include <cmath>
#include <cstdint>

namespace jamba {

// A head of n values times an orthogonal matrix that is its own inverse: Hadamard's, on pieces as long as the largest power of
// two that divides n. A few large values are spread over all, so that blocks of few levels fit them better; products of a key and a
// query that are both rotated stay what they are. Additions in one order everywhere: the same bits as reference.rotate().
static inline void rotate_head(float* x, int64_t n) {
    const int64_t piece = n & -n;
    for (int64_t half = 1; half < piece; half *= 2)
        for (int64_t first = 0; first < n; first += 2 * half)
            for (int64_t i = first; i < first + half; ++i) {
                const float a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
    const float factor = static_cast<float>(1.0 / std::sqrt(static_cast<double>(piece)));
    for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

}  // namespace jamba
