#define QUANT_ISA avx2
#define QUANT_LANES 8
#include "legacy_impl.h"

namespace quant {
extern const Codec legacy_avx2[] = {
    {GGML_Q8_0, avx2::legacy::encode_q8_0, avx2::legacy::decode_q8_0},
    {-1, nullptr, nullptr},
};
}  // namespace quant
