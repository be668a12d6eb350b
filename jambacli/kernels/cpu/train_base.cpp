// The training kernels in plain C++.
#include "train_impl.h"

namespace jamba {

const TrainOps kTrainBase[2] = JAMBA_TRAIN_OPS;

}  // namespace jamba
