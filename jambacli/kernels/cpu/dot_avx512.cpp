// Block products for AVX-512 without VNNI. Knows nothing beyond the table it fills.
namespace {
constexpr bool kFullBytes = false;
}
#include "dot_impl_avx512.h"

namespace jamba {
void fill_dot_avx512(Ops& ops) { fill_dot(ops); }
}  // namespace jamba
