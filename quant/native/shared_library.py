"""Loads a C++ library and calls the functions that all of them have: instruction sets, the meaning of status codes.

Environment: ``JAMBA_NATIVE_DIR`` is a folder with other builds of the libraries, such as those with a sanitizer.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from pathlib import Path

_NO_MEMORY = -3  # kNoMemory of c_interface.h
REBUILD = "rebuild with `make native`, or reinstall on a machine with a C++ compiler"


class SharedLibrary:
    """A loaded library. ``functions`` is its ctypes handle; names of instruction sets are those of ``isa_levels.h``."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self.functions = functions
        functions.native_isa_name.restype = functions.native_status_text.restype = ctypes.c_char_p
        functions.native_status_text.argtypes = [ctypes.c_int64]
        names: list[str] = []
        while (name := functions.native_isa_name(len(names))) is not None:
            names.append(name.decode())
        self.isa_names: tuple[str, ...] = tuple(names)
        self._limit = len(names) - 1
        self._first: str | None = None  # the level before any was set: the best one, or what JAMBA_CPU_ISA says

    @property
    def isa(self) -> str:
        """The level in use."""
        return self.isa_names[self.functions.native_isa()]

    @property
    def best_isa(self) -> str:
        """The best level of this processor that is not above ``limit_isa``'s."""
        return self.isa_names[min(self.functions.native_best_isa(), self._limit)]

    def set_isa(self, name: str | None) -> str:
        """Run at most at level ``name`` (None: the one it began with); returns the level now in use."""
        self._first = self._first or self.isa
        wanted = self._first if name is None else name
        level = self.functions.native_set_isa(min(self.isa_names.index(wanted), self._limit))
        return self.isa_names[level]

    def limit_isa(self, name: str) -> None:
        """Never run above level ``name``, one that this processor has."""
        self._limit = self.isa_names.index(name)
        self.set_isa(self.isa)

    def check(self, status: int, subject: str = "") -> None:
        """Raise what a negative status means: MemoryError for a lack of memory, else ValueError. ``subject``: what failed."""
        if status >= 0:
            return
        text = self.functions.native_status_text(status)
        message = text.decode() if text else f"a C++ function failed with status {status}"
        error = MemoryError if status == _NO_MEMORY else ValueError
        raise error(f"{subject}: {message}" if subject else message)


def load(folder: Path, stem: str, abi_function: str, abi_version: int) -> SharedLibrary | None:
    """The library ``stem`` next to its sources in ``folder`` or in JAMBA_NATIVE_DIR, or None where it was not built.

    A library whose ``abi_function`` returns another number than ``abi_version`` is not loaded, with a warning.
    """
    if named := os.environ.get("JAMBA_NATIVE_DIR"):
        folder = Path(named)
    for path in sorted(p for p in folder.glob(f"{stem}.*") if p.suffix in (".so", ".pyd", ".dylib", ".dll")):
        try:
            functions = ctypes.CDLL(str(path))
            version = getattr(functions, abi_function)()
        except (OSError, AttributeError):
            continue
        if version == abi_version:
            return SharedLibrary(functions)
        warnings.warn(f"{path.name} was built from other sources; {REBUILD}", stacklevel=3)
    return None
