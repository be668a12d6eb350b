#define QUANT_ISA base
#define QUANT_LANES 4
#include "legacy_impl.h"

namespace quant {
extern const Codec legacy_base[] = {
    {GGML_Q8_0, base::legacy::encode_q8_0, base::legacy::decode_q8_0},
    {-1, nullptr, nullptr},
};
}  // namespace quant
