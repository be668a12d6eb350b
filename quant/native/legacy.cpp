#define QUANT_ISA base
#define QUANT_LANES 4
#include "legacy_decode.h"
#include "legacy_impl.h"

namespace quant {
extern const Codec legacy_base[] = LEGACY_CODECS;
}  // namespace quant
