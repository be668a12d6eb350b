// f32 panels in plain C++, for processors with no instruction set that has a file of its own.
#include "prefill_f32.h"

namespace jamba {

const PanelOps kPanelsF32Scalar = F32_PANELS;

}  // namespace jamba
