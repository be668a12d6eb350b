#define QUANT_ISA avx512
#define QUANT_LANES 16
#include "legacy_decode.h"
#include "legacy_impl.h"

namespace quant {
extern const Codec legacy_avx512[] = LEGACY_CODECS;
}  // namespace quant
