#define QUANT_ISA avx2
#define QUANT_LANES 8
#include "kq_impl.h"

namespace quant {
extern const Codec kq_avx2[] = KQ_CODECS;
}  // namespace quant
