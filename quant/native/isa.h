// Which instruction set a library uses, and how its functions are chosen by it.
//
// A source that is compiled once per level (libraries.toml) gets the level's name as JAMBA_VARIANT and defines its table in
// the namespace of that name. It is entered only after isa_includes() has been asked. Such sources keep every helper in an
// anonymous or the level's namespace and use no inline function or template of the standard library: the linker keeps one
// copy of those, and it could be the one with instructions that this processor lacks. Their tables are initialized at compile
// time.
#pragma once

#include <cstddef>

#include "quant/native/isa_levels.h"

namespace native {

#define LEVEL(name, includes, processors, flags) name,
enum class Isa : int { ISA_LEVELS(LEVEL) };
#undef LEVEL

// The level in use: the best one that the processor has, unless JAMBA_CPU_ISA or native_set_isa() has lowered it.
Isa isa();

// Whether the level in use is `level` or includes it.
bool isa_includes(Isa level);

// The implementation of one level: a table of functions in the namespace of that level.
template <class Table>
struct Variant {
    Isa level;
    const Table* table;
};

// The last variant whose level is in use; the first one (scalar) always is.
template <class Table, size_t N>
const Table& choose(const Variant<Table> (&variants)[N]) {
    size_t i = N - 1;
    while (i > 0 && !isa_includes(variants[i].level)) --i;
    return *variants[i].table;
}

}  // namespace native
