#define QUANT_ISA avx512
#define QUANT_LANES 16
#include "legacy_impl.h"

namespace quant {
extern const Codec legacy_avx512[] = {
    {GGML_Q8_0, avx512::legacy::encode_q8_0, avx512::legacy::decode_q8_0},
    {-1, nullptr, nullptr},
};
}  // namespace quant
