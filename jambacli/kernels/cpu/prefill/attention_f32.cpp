// Attention in f32 panels at the level's vector width.
#include "prefill/attention_panels.h"

namespace jamba {
namespace JAMBA_VARIANT {

const AttendOps f32_attend_ops{&f32_panel_ops, keys_f32, values_f32, softmax_block<EmitF32>, finish_block};

}  // namespace JAMBA_VARIANT
}  // namespace jamba
