// Which codecs exist and which of them this processor runs; knows nothing of how they work.
#include "quant.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#define QUANT_X86 1
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

int detect() {
#ifdef QUANT_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx2 && avx512) return ISA_AVX512;
    if (avx2) return ISA_AVX2;
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
