// Block products for AVX-512 with VNNI. Knows nothing beyond the table it fills.
namespace {
constexpr bool kFullBytes = true;
}
#include "dot_impl_avx512.h"

namespace jamba {
void fill_dot_vnni(Ops& ops) { fill_dot(ops); }
}  // namespace jamba
