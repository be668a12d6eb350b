// Block products in plain C++, for any processor. Knows nothing beyond the table it fills.
#include "dot_impl_base.h"

namespace jamba {
void fill_dot_base(Ops& ops) { fill_dot(ops); }
}  // namespace jamba
