// Which codec of which level runs.
#include "quant.h"

namespace quant {
namespace {

// The families of one level.
struct Codecs {
    const Codec *families[3];
};

const Codec *find(const Codecs &codecs, int ggml_type) {
    for (const Codec *family : codecs.families)
        for (const Codec *c = family; c->ggml_type >= 0; ++c)
            if (c->ggml_type == ggml_type) return c;
    return nullptr;
}

const Codec *find(int ggml_type) {
#define LEVEL(level) static const Codecs level##_codecs{{level::legacy_codecs, level::iq4_codecs, level::kq_codecs}};
    QUANT_LEVELS(LEVEL)
#undef LEVEL
#define LEVEL(level) {Isa::level, &level##_codecs},
    static const Variant<Codecs> variants[] = {QUANT_LEVELS(LEVEL)};
#undef LEVEL
    return find(choose(variants), ggml_type);
}

}  // namespace

QuantizeRows find_quantizer(int ggml_type) {
    const Codec *codec = find(ggml_type);
    return codec ? codec->quantize : nullptr;
}

DequantizeRows find_dequantizer(int ggml_type) {
    const Codec *codec = find(ggml_type);
    return codec ? codec->dequantize : nullptr;
}

const Refiner *find_refiner(int ggml_type) {
    struct Refiners {
        const Refiner *first;
    };
#define LEVEL(level) static const Refiners level##_refiners{level::refiners};
    QUANT_LEVELS(LEVEL)
#undef LEVEL
#define LEVEL(level) {Isa::level, &level##_refiners},
    static const Variant<Refiners> variants[] = {QUANT_LEVELS(LEVEL)};
#undef LEVEL
    for (const Refiner *r = choose(variants).first; r->ggml_type >= 0; ++r)
        if (r->ggml_type == ggml_type) return r;
    return nullptr;
}

const PanelOps &panel_ops() {
#define LEVEL(level) {Isa::level, &level::panel_ops},
    static const Variant<PanelOps> variants[] = {QUANT_LEVELS(LEVEL)};
#undef LEVEL
    return choose(variants);
}

}  // namespace quant
