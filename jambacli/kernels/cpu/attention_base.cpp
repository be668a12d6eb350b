// Attention in f32 panels in plain C++.
#include "attention_impl.h"

namespace jamba {

const AttendOps kAttendF32Base{&kPanelsF32Scalar, keys_f32, values_f32, softmax_block<EmitF32>, finish_block};

}  // namespace jamba
