// The product of bf16 panels by AMX tiles, as PanelOps takes it.
#pragma once

#include "prefill/gemm.h"

namespace jamba {
namespace amx {

void enter();
void leave();
void multiply(const void* w, int64_t n_groups, int64_t w_stride, const void* x, int64_t m_groups, int64_t x_stride,
              int64_t chunks, float* c, bool accumulate);

}  // namespace amx
}  // namespace jamba
