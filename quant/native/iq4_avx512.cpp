#define QUANT_ISA avx512
#define QUANT_LANES 16
#include "iq4_impl.h"

namespace quant {
extern const Codec iq4_avx512[] = IQ4_CODECS;
}  // namespace quant
