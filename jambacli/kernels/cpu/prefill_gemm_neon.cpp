// f32 panels at this file's instruction set.
#include "prefill_f32.h"

namespace jamba {

const PanelOps kPanelsF32Neon = F32_PANELS;

}  // namespace jamba
