#define QUANT_ISA avx512
#define QUANT_LANES 16
#include "panels_impl.h"
#include "rowwise_impl.h"

namespace quant {
extern const PanelOps panels_avx512 = {
    avx512::panels::widen_f16,   avx512::panels::widen_bf16, avx512::panels::narrow_f16,
    avx512::panels::narrow_bf16, avx512::panels::all_finite,  avx512::panels::rowwise_int8,
};
}  // namespace quant
