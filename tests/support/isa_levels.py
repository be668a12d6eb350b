"""The instruction sets that a library has code for and this machine runs."""

from __future__ import annotations

from quant.native.shared_library import SharedLibrary


def runnable_levels(library: SharedLibrary | None) -> list[str]:
    """Names of ``isa_levels.h``, the plain one first; empty where the library was not built."""
    if library is None:
        return []
    found = [name for name in library.isa_names if library.set_isa(name) == name]
    library.set_isa(None)
    return found
