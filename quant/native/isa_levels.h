// The instruction sets, in order of preference: the last one that the processor has is used.
//
// A line: name, the level it includes, the processors that can have it, the compiler flags it adds to those of that level.
// build.py reads the flags from this file, isa.cpp says how each level is detected, Python asks a library for the names.
#pragma once

#define ISA_LEVELS(LEVEL)                                                    \
    LEVEL(scalar, scalar, any, "")                                           \
    LEVEL(avx2, scalar, x86, "-mavx2 -mfma -mf16c")                          \
    LEVEL(avxvnni, avx2, x86, "-mavxvnni")                                   \
    LEVEL(avx512, avx2, x86, "-mavx512f -mavx512bw -mavx512dq -mavx512vl")   \
    LEVEL(vnni, avx512, x86, "-mavx512vnni")                                 \
    LEVEL(bf16, vnni, x86, "-mavx512bf16")                                   \
    LEVEL(amx, bf16, x86, "-mamx-tile -mamx-int8 -mamx-bf16")                \
    LEVEL(neon, scalar, arm, "-march=armv8.2-a+dotprod+fp16")                \
    LEVEL(i8mm, neon, arm, "-march=armv8.2-a+dotprod+fp16+i8mm")

#if defined(__x86_64__) || defined(_M_X64)
#define NATIVE_X86 1
#elif defined(__aarch64__)
#define NATIVE_ARM 1
#endif
