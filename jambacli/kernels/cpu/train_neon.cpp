// The training kernels at this file's instruction set.
#include "train_impl.h"

namespace jamba {

const TrainOps kTrainNeon[2] = JAMBA_TRAIN_OPS;

}  // namespace jamba
