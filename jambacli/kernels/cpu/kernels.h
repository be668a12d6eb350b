// What every file of this library shares: the export macro, instruction-set levels and the run-time choice among them.
// Knows nothing of models or of torch: every entry point takes plain pointers.
//
// Files whose name ends in an instruction set are compiled with its flags and may only be entered after isa_level() has
// been checked. In those files keep every helper in an anonymous namespace and use no inline function of the standard
// library: the linker keeps one copy of such a function, and it could be the one with instructions this machine lacks.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

#if defined(__x86_64__) || defined(_M_X64)
#define JAMBA_X86 1
#elif defined(__aarch64__)
#define JAMBA_ARM 1
#endif

namespace jamba {

// Levels in order; each x86 level includes those before it. NEON (with dot product) is ARM's only level above scalar.
enum Isa : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2, kVnni = 3, kBf16 = 4, kAmx = 5, kNeon = 10 };

// The level to run: the best this processor has, unless kernels_set_isa() has lowered it.
Isa isa_level();

// One weight matrix as it lies in its file, or a stack of them (experts), rows one after another. `type` is a GGML type id;
// kI8 needs `scale`, one factor a row. library.py mirrors this struct and those of the decode steps.
struct Matrix {
    const uint8_t* data;
    const float* scale;
    int64_t rows;  // of one matrix of the stack
    int64_t cols;
    int64_t row_bytes;
    int32_t type;
    int32_t reserved;
};

enum Status : int { kOk = 0, kBadType = -1, kBadShape = -2, kNoMemory = -3, kBadStep = -4, kNoRoom = -5 };

}  // namespace jamba
