// The calling convention of every exported function, and the status codes.
//
// - Names begin with the library or the phase: quant_, decode_, prefill_, train_; what all libraries have: native_.
// - Arrays are plain addresses. The distance between two rows, in elements, follows its array (x, x_stride). Sizes are int64_t.
// - The order is: weights, inputs, state, outputs, sizes, threads.
// - The result is a Status; a positive one is a finding of the function (quant_quantize_rows: 1 + a row that is not finite). Only
//   questions about the library return something else.
// - No exception leaves a library: what the calling thread cannot allocate is kNoMemory (`guarded`).
#pragma once

#include <cstdint>
#include <new>

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

// Python reads the texts through native_status_text().
#define STATUS_CODES(CODE)                                                      \
    CODE(kOk, 0, "")                                                            \
    CODE(kBadType, -1, "this format has no C++ kernel")                         \
    CODE(kBadShape, -2, "the size of a weight does not fit its shape")          \
    CODE(kNoMemory, -3, "not enough memory for the scratch space of a kernel")  \
    CODE(kBadStep, -4, "the shapes of a layer's weights do not fit each other") \
    CODE(kNoRoom, -5, "the cache has no room for these tokens")                 \
    CODE(kBadImatrix, -6, "the imatrix holds a negative or non-finite weight")  \
    CODE(kPartialBlock, -7, "a row does not divide into whole blocks")          \
    CODE(kBadSize, -8, "there is no C++ kernel for this size")                  \
    CODE(kBadRow, -9, "a token id lies outside the rows of the weight")

namespace native {

#define CODE(name, code, text) name = code,
enum Status : int { STATUS_CODES(CODE) };
#undef CODE

template <class Body>
static inline auto guarded(Body&& body) noexcept -> decltype(body()) {
    try {
        return body();
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}

}  // namespace native
