#define QUANT_ISA base
#define QUANT_LANES 4
#include "panels_impl.h"
#include "rowwise_impl.h"

namespace quant {
extern const PanelOps panels_base = {
    base::panels::widen_f16,   base::panels::widen_bf16, base::panels::narrow_f16,
    base::panels::narrow_bf16, base::panels::all_finite,  base::panels::rowwise_int8,
};
}  // namespace quant
