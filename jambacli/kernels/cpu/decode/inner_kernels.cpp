// Fills the table of inner kernels for the level in use.
#include "decode/inner_kernels.h"

#include <mutex>

namespace jamba {
namespace {

InnerKernels make() {
    InnerKernels table{};
    scalar::fill_elementwise(table);
    scalar::fill_dot(table);
#if defined(NATIVE_X86)
    if (isa_includes(Isa::avx2)) {
        avx2::fill_elementwise(table);
        avx2::fill_dot(table);
    }
    if (isa_includes(Isa::avxvnni)) avxvnni::fill_dot(table);
    if (isa_includes(Isa::avx512)) {
        avx512::fill_elementwise(table);
        avx512::fill_dot(table);
    }
    if (isa_includes(Isa::vnni)) {
        vnni::fill_attention(table);
        vnni::fill_dot(table);
    }
#elif defined(NATIVE_ARM)
    if (isa_includes(Isa::neon)) neon::fill_dot(table);
    if (isa_includes(Isa::i8mm)) i8mm::fill_dot(table);
#endif
    return table;
}

}  // namespace

const InnerKernels& inner_kernels() {
    constexpr int kMost = 32;  // levels
    static std::mutex mutex;
    static const InnerKernels* tables[kMost] = {};
    const int level = static_cast<int>(isa());
    std::lock_guard<std::mutex> lock(mutex);
    if (!tables[level]) tables[level] = new InnerKernels(make());  // one per level, for the life of the process
    return *tables[level];
}

}  // namespace jamba
