// What every entry point of this library shares: the version that Python checks before it calls anything else, and the
// choice of an instruction set. Knows nothing of the kernels themselves.
#include "kernels.h"

#include <atomic>

#if defined(JAMBA_ARM) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace jamba {
namespace {

Isa detect() {
#if defined(JAMBA_X86)
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))) return kScalar;
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
          __builtin_cpu_supports("avx512vl")))
        return kAvx2;
    if (!__builtin_cpu_supports("avx512vnni")) return kAvx512;
    if (!__builtin_cpu_supports("avx512bf16")) return kVnni;
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
    if (__builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("amx-int8")) return kAmx;
#endif
    return kBf16;
#elif defined(JAMBA_ARM) && defined(__linux__)
    constexpr unsigned long kDotProduct = 1ul << 20, kHalf = 1ul << 10;  // HWCAP_ASIMDDP, HWCAP_ASIMDHP
    return (getauxval(AT_HWCAP) & kDotProduct) && (getauxval(AT_HWCAP) & kHalf) ? kNeon : kScalar;
#elif defined(JAMBA_ARM) && defined(__APPLE__)
    return kNeon;
#else
    return kScalar;
#endif
}

std::atomic<int> level{-1};

}  // namespace

Isa isa_level() {
    int now = level.load(std::memory_order_relaxed);
    if (now < 0) level.store(now = detect(), std::memory_order_relaxed);
    return static_cast<Isa>(now);
}

}  // namespace jamba

EXPORT int kernels_abi_version() { return 1; }

// The best level of this processor (Isa in kernels.h).
EXPORT int kernels_detect_isa() { return jamba::detect(); }

// The level in force.
EXPORT int kernels_isa() { return jamba::isa_level(); }

// Lowers (or restores) the level that kernels run at; a level this processor lacks is cut to what it has. Returns the
// level now in force. Not to be called beside a running kernel.
EXPORT int kernels_set_isa(int isa) {
    const int best = jamba::detect();
    const bool known = isa >= 0 && isa <= best && (isa == jamba::kScalar || (isa >= jamba::kNeon) == (best >= jamba::kNeon));
    jamba::level.store(known ? isa : best);
    return jamba::isa_level();
}
