#define QUANT_ISA base
#define QUANT_LANES 4
#include "iq4_impl.h"

namespace quant {
extern const Codec iq4_base[] = IQ4_CODECS;
}  // namespace quant
