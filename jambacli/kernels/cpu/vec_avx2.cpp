// Element-wise kernels, float products and attention tiles for AVX2 with FMA, eight floats at a time. Knows
// nothing beyond the table it fills.
#include "attend_impl.h"
#include "float_impl.h"
#include "vec_impl.h"

namespace jamba {
void fill_vec_avx2(Ops& ops) {
    fill_vec(ops);
    fill_float(ops);
    fill_attend(ops);
}
}  // namespace jamba
