// Which codecs exist and which of them this processor runs; knows nothing of how they work.
#include "quant.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#define QUANT_X86 1
#include <cpuid.h>
#endif

namespace quant {

// One line a family. Missing families are not fatal to a lookup: the caller falls back to torch.
extern const Codec legacy_base[], iq4_base[], kq_base[];
#ifdef QUANT_X86
extern const Codec legacy_avx2[], legacy_avx512[], iq4_avx2[], iq4_avx512[], kq_avx2[], kq_avx512[];
#endif

extern const PanelOps panels_base;
#ifdef QUANT_X86
extern const PanelOps panels_avx2, panels_avx512;
#endif

namespace {

const Codec *const BASE[] = {legacy_base, iq4_base, kq_base, nullptr};
#ifdef QUANT_X86
const Codec *const AVX2[] = {legacy_avx2, iq4_avx2, kq_avx2, nullptr};
const Codec *const AVX512[] = {legacy_avx512, iq4_avx512, kq_avx512, nullptr};
#else
const Codec *const AVX2[] = {nullptr};
const Codec *const AVX512[] = {nullptr};
#endif
const Codec *const *const BY_ISA[] = {BASE, AVX2, AVX512};

// The best instruction set that the processor has and the system saves the registers of. Asked of the processor itself:
// compilers' own tests for some of these are young.
int detect() {
#ifdef QUANT_X86
    unsigned eax, ebx, ecx, edx, saved, unused;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return ISA_BASE;
    const unsigned fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
    if ((ecx & (fma | osxsave | avx | f16c)) != (fma | osxsave | avx | f16c)) return ISA_BASE;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(unused) : "c"(0));
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return ISA_BASE;
    const unsigned avx2 = 1u << 5, avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
    const unsigned ymm = 0x06, zmm = 0xe6;
    if ((saved & zmm) == zmm && (ebx & avx2) && (ebx & avx512) == avx512) return ISA_AVX512;
    if ((saved & ymm) == ymm && (ebx & avx2)) return ISA_AVX2;
#endif
    return ISA_BASE;
}

// JAMBA_QUANT_ISA=base|avx2|avx512 lowers the choice, never raises it.
int initial() {
    const int best = detect();
    const char *asked = std::getenv("JAMBA_QUANT_ISA");
    if (!asked) return best;
    const char *const names[] = {"base", "avx2", "avx512"};
    for (int i = 0; i < best; ++i)
        if (!std::strcmp(asked, names[i])) return i;
    return best;
}

std::atomic<int> &level() {
    static std::atomic<int> value{initial()};
    return value;
}

const Codec *find(const Codec *const *tables, int ggml_type) {
    for (; *tables; ++tables)
        for (const Codec *c = *tables; c->ggml_type >= 0; ++c)
            if (c->ggml_type == ggml_type) return c;
    return nullptr;
}

}  // namespace

bool block_size(int ggml_type, int *values, int *bytes) {
    struct Size {
        int type, values, bytes;
    };
    static constexpr Size SIZES[] = {
        {GGML_F32, 1, 4},       {GGML_F16, 1, 2},       {GGML_BF16, 1, 2},      {GGML_Q4_0, 32, 18},    {GGML_Q4_1, 32, 20},
        {GGML_Q5_0, 32, 22},    {GGML_Q5_1, 32, 24},    {GGML_Q8_0, 32, 34},    {GGML_Q2_K, 256, 84},   {GGML_Q3_K, 256, 110},
        {GGML_Q4_K, 256, 144},  {GGML_Q5_K, 256, 176},  {GGML_Q6_K, 256, 210},  {GGML_IQ4_NL, 32, 18},  {GGML_IQ4_XS, 256, 136},
    };
    for (const Size &s : SIZES) {
        if (s.type != ggml_type) continue;
        *values = s.values;
        *bytes = s.bytes;
        return true;
    }
    return false;
}

EncodeRows find_encoder(int ggml_type) {
    for (int isa = level(); isa >= 0; --isa)
        if (const Codec *c = find(BY_ISA[isa], ggml_type); c && c->encode) return c->encode;
    return nullptr;
}

DecodeRows find_decoder(int ggml_type) {
    for (int isa = level(); isa >= 0; --isa)
        if (const Codec *c = find(BY_ISA[isa], ggml_type); c && c->decode) return c->decode;
    return nullptr;
}

const PanelOps &panel_ops() {
#ifdef QUANT_X86
    if (level() == ISA_AVX512) return panels_avx512;
    if (level() == ISA_AVX2) return panels_avx2;
#endif
    return panels_base;
}

int set_isa(int isa) {
    const int best = detect();
    level() = isa < 0 || isa > best ? best : isa;
    return level();
}

}  // namespace quant

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

// Caps the instruction set for this process (tests compare them all); -1 lifts the cap. Returns what is now in use.
EXPORT int quant_set_isa(int isa) { return quant::set_isa(isa); }
