// Block products with NEON's dot-product instruction; blocks are unpacked by plain loops that the compiler vectorizes.
// Compiled, and its results checked under emulation, but its speed is not tuned. Knows nothing beyond the table it fills.
#define JAMBA_NEON_DOT 1
#include "dot_impl_base.h"

namespace jamba {
void fill_dot_neon(Ops& ops) { fill_dot(ops); }
}  // namespace jamba
