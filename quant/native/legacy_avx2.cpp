#define QUANT_ISA avx2
#define QUANT_LANES 8
#include "legacy_decode.h"
#include "legacy_impl.h"

namespace quant {
extern const Codec legacy_avx2[] = LEGACY_CODECS;
}  // namespace quant
