// Detection of instruction sets, the choice among them, and the meaning of status codes. Part of every library.
#include "quant/native/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "quant/native/c_interface.h"

#if defined(NATIVE_X86)
#include <cpuid.h>
#elif defined(NATIVE_ARM) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(NATIVE_ARM) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace native {
namespace {

struct Level {
    const char* name;
    Isa includes;
};

#define LEVEL(name, includes, processors, flags) {#name, Isa::includes},
constexpr Level kLevels[] = {ISA_LEVELS(LEVEL)};
#undef LEVEL
constexpr int kCount = sizeof kLevels / sizeof kLevels[0];

bool includes(Isa level, Isa wanted) {
    while (level != wanted && level != Isa::scalar) level = kLevels[static_cast<int>(level)].includes;
    return level == wanted;
}

#if defined(NATIVE_X86)

constexpr bool all(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }

// Asked of the processor itself, and of the system whether it saves the registers: compilers' own tests for some of these
// levels are recent. Each level's own instructions only; what it includes is asked separately.
bool has(Isa level) {
    unsigned eax, ebx, ecx, edx, saved, unused;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return false;
    constexpr unsigned kFma = 1u << 12, kOsxsave = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29;
    if (!all(ecx, kFma | kOsxsave | kAvx | kF16c)) return false;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(unused) : "c"(0));
    constexpr unsigned kYmm = 0x06, kZmm = 0xe6, kTiles = 0x60000;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    const unsigned subleaves = eax;
    switch (level) {
        case Isa::avx2: return all(saved, kYmm) && all(ebx, 1u << 5);
        case Isa::avx512: return all(saved, kZmm) && all(ebx, 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31);  // F, DQ, BW, VL
        case Isa::vnni: return all(ecx, 1u << 11);
        case Isa::amx: return all(saved, kTiles) && all(edx, 1u << 22 | 1u << 24 | 1u << 25);  // BF16, TILE, INT8
        case Isa::avxvnni: return subleaves >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && all(eax, 1u << 4);
        case Isa::bf16: return subleaves >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && all(eax, 1u << 5);
        default: return false;
    }
}

#elif defined(NATIVE_ARM) && defined(__linux__)

bool has(Isa level) {
    constexpr unsigned long kHalf = 1ul << 10, kDotProduct = 1ul << 20;  // HWCAP_ASIMDHP, HWCAP_ASIMDDP
    constexpr unsigned long kProducts = 1ul << 13;                       // HWCAP2_I8MM
    switch (level) {
        case Isa::neon: return (getauxval(AT_HWCAP) & kHalf) && (getauxval(AT_HWCAP) & kDotProduct);
        case Isa::i8mm: return getauxval(AT_HWCAP2) & kProducts;
        default: return false;
    }
}

#elif defined(NATIVE_ARM) && defined(__APPLE__)

// Every Apple chip that macOS runs on has dot products, those since the M2 have products of matrices.
bool has(Isa level) {
    int found = 0;
    size_t size = sizeof found;
    return level == Isa::neon ||
           (level == Isa::i8mm && !sysctlbyname("hw.optional.arm.FEAT_I8MM", &found, &size, nullptr, 0) && found);
}

#else

bool has(Isa) { return false; }

#endif

bool runs(Isa level) {
    for (; level != Isa::scalar; level = kLevels[static_cast<int>(level)].includes)
        if (!has(level)) return false;
    return true;
}

Isa best() {
    static const Isa found = [] {
        int i = kCount - 1;
        while (!runs(static_cast<Isa>(i))) --i;
        return static_cast<Isa>(i);
    }();
    return found;
}

// `wanted`, or the best level where this processor does not run it.
Isa lowered(int wanted) {
    const bool known = wanted >= 0 && wanted < kCount;
    return known && includes(best(), static_cast<Isa>(wanted)) ? static_cast<Isa>(wanted) : best();
}

// The level that JAMBA_CPU_ISA names; any other value is ignored.
Isa initial() {
    const char* wanted = std::getenv("JAMBA_CPU_ISA");
    char name[16] = {};
    for (size_t i = 0; wanted && wanted[i] && i + 1 < sizeof name; ++i)
        name[i] = wanted[i] >= 'A' && wanted[i] <= 'Z' ? static_cast<char>(wanted[i] + 32) : wanted[i];
    for (int i = 0; i < kCount; ++i)
        if (!std::strcmp(name, kLevels[i].name)) return lowered(i);
    return best();
}

std::atomic<int>& in_use() {
    static std::atomic<int> level{static_cast<int>(initial())};
    return level;
}

}  // namespace

Isa isa() { return static_cast<Isa>(in_use().load(std::memory_order_relaxed)); }

bool isa_includes(Isa level) { return includes(isa(), level); }

}  // namespace native

// The name of level `index` of isa_levels.h, or null past the last one.
EXPORT const char* native_isa_name(int index) {
    return index >= 0 && index < native::kCount ? native::kLevels[index].name : nullptr;
}

// The best level of this processor, as an index.
EXPORT int native_best_isa() { return static_cast<int>(native::best()); }

// The level in use.
EXPORT int native_isa() { return static_cast<int>(native::isa()); }

// Lowers the level, or restores the best one (-1, or a level that this processor lacks). Returns the level now in use. Must
// not be called while a kernel runs.
EXPORT int native_set_isa(int index) {
    native::in_use().store(static_cast<int>(native::lowered(index)));
    return native_isa();
}

// The meaning of a negative status, or null.
EXPORT const char* native_status_text(int64_t status) {
    switch (status) {
#define CODE(name, code, text) \
    case code: return text;
        STATUS_CODES(CODE)
#undef CODE
        default: return nullptr;
    }
}
