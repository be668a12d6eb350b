// The contract between the library's entry points and the codecs; knows nothing of any one format.
//
// A codec turns whole rows of finite floats into a format's blocks and back. It is handed panels (a few rows at a time,
// contiguous, already float32 and already checked to be finite), on one thread, and may use up to 64 KiB of stack.
// Every codec exists once per instruction set, under a table of its own; registry.cpp lists the tables and picks, at run
// time, the best one that this processor can run. All of them must give the same bytes: those of ggml built for plain x86-64.
//
// To add a family: write its code once in family_impl.h over the vocabulary of lanes.h, include it from family.cpp,
// family_avx2.cpp and family_avx512.cpp (each defines QUANT_ISA and QUANT_LANES first), end each with a table
//     namespace quant { extern const Codec family_avx2[] = {{GGML_Q4_K, encode, decode}, {-1, nullptr, nullptr}}; }
// and add the tables' names to registry.cpp. Tables must be constant-initialized and the files must not use std:: templates:
// whatever the linker merges or runs at start-up has to be safe on a processor without the instruction set.
#pragma once

#include <cstdint>

namespace quant {

enum GgmlType : int {
    GGML_F32 = 0,
    GGML_F16 = 1,
    GGML_Q4_0 = 2,
    GGML_Q4_1 = 3,
    GGML_Q5_0 = 6,
    GGML_Q5_1 = 7,
    GGML_Q8_0 = 8,
    GGML_Q2_K = 10,
    GGML_Q3_K = 11,
    GGML_Q4_K = 12,
    GGML_Q5_K = 13,
    GGML_Q6_K = 14,
    GGML_IQ4_NL = 20,
    GGML_IQ4_XS = 23,
    GGML_BF16 = 30,
};

// x: [rows, n] contiguous, finite. imatrix: [n] finite and not negative, or null. dst: [rows, row bytes] contiguous, any alignment.
using EncodeRows = void (*)(const float *x, int64_t rows, int64_t n, const float *imatrix, uint8_t *dst);
// src: [rows, row bytes] contiguous, any alignment. dst: [rows, n] contiguous.
using DecodeRows = void (*)(const uint8_t *src, int64_t rows, int64_t n, float *dst);

// One format in one instruction set; either function may be null (the next best table's is used). A table ends at ggml_type -1.
struct Codec {
    int ggml_type;
    EncodeRows encode;
    DecodeRows decode;
};

// What the driver itself does with panels, per instruction set.
struct PanelOps {
    void (*widen_f16)(const uint16_t *src, int64_t count, float *dst);
    void (*widen_bf16)(const uint16_t *src, int64_t count, float *dst);
    void (*narrow_f16)(const float *src, int64_t count, uint16_t *dst);
    void (*narrow_bf16)(const float *src, int64_t count, uint16_t *dst);
    bool (*all_finite)(const float *src, int64_t count);
    // ExpertsInt8: x [rows, n] finite -> levels [rows, n] and scale [rows].
    void (*rowwise_int8)(const float *x, int64_t rows, int64_t n, int8_t *levels, float *scale);
};

enum Isa : int { ISA_BASE = 0, ISA_AVX2 = 1, ISA_AVX512 = 2 };

// Values and bytes per block of a format this library codes; false for any other.
bool block_size(int ggml_type, int *values, int *bytes);

// The best implementations that this processor (or quant_set_isa's cap) allows; null where there is none.
EncodeRows find_encoder(int ggml_type);
DecodeRows find_decoder(int ggml_type);
const PanelOps &panel_ops();

}  // namespace quant
