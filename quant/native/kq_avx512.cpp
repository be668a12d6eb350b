#define QUANT_ISA avx512
#define QUANT_LANES 16
#include "kq_impl.h"

namespace quant {
extern const Codec kq_avx512[] = KQ_CODECS;
}  // namespace quant
