// Fills the table of inner kernels for the instruction-set level in force. Knows nothing of what the kernels compute.
#include <mutex>

#include "ops.h"

namespace jamba {
namespace {

Ops make(Isa level) {
    Ops table{};
    fill_vec_base(table);
    fill_dot_base(table);
#if defined(JAMBA_X86)
    if (level >= kAvx2) {
        fill_vec_avx2(table);
        fill_dot_avx2(table);
    }
    if (level >= kAvx512) {
        fill_vec_avx512(table);
        fill_dot_avx512(table);
    }
    if (level >= kVnni) fill_dot_vnni(table);
#elif defined(JAMBA_ARM)
    if (level >= kNeon) fill_dot_neon(table);
#endif
    return table;
}

}  // namespace

const Ops& ops() {
    static std::mutex mutex;
    static const Ops* tables[kNeon + 1] = {};
    const Isa level = isa_level();
    std::lock_guard<std::mutex> lock(mutex);
    if (!tables[level]) tables[level] = new Ops(make(level));  // one a level, for the life of the process
    return *tables[level];
}

}  // namespace jamba
