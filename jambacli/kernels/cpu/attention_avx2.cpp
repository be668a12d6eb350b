// Attention in f32 panels at this file's instruction set.
#include "attention_impl.h"

namespace jamba {

const AttendOps kAttendF32Avx2{&kPanelsF32Avx2, keys_f32, values_f32, softmax_block<EmitF32>, finish_block};

}  // namespace jamba
