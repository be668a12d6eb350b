#define QUANT_ISA base
#define QUANT_LANES 4
#include "kq_impl.h"

namespace quant {
extern const Codec kq_base[] = KQ_CODECS;
}  // namespace quant
