#define QUANT_ISA avx2
#define QUANT_LANES 8
#include "iq4_impl.h"

namespace quant {
extern const Codec iq4_avx2[] = IQ4_CODECS;
}  // namespace quant
