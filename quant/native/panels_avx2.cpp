#define QUANT_ISA avx2
#define QUANT_LANES 8
#include "panels_impl.h"
#include "rowwise_impl.h"

namespace quant {
extern const PanelOps panels_avx2 = {
    avx2::panels::widen_f16,   avx2::panels::widen_bf16, avx2::panels::narrow_f16,
    avx2::panels::narrow_bf16, avx2::panels::all_finite,  avx2::panels::rowwise_int8,
};
}  // namespace quant
