"""What Triton's interpreter needs to run these kernels on the CPU; knows nothing of the kernels.

The interpreter is for tests: it runs kernels as numpy, block by block. Three of its gaps are closed here. Import this first.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import triton.language as tl


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0", "false", "off")


#: In kernels: the interpreter's ``tl.dot`` takes bf16 operands for the integers that hold them; kernels widen them first.
WIDEN = tl.constexpr(interpreted())


def _mend_loop_bounds() -> None:
    """Triton 3.6 and older turn a loop's bound into an int in a way that numpy 2.4 refuses."""
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patch(tensor: Any, *scope: Any) -> None:
        original(tensor, *scope)

        def index(self: Any) -> int:
            return int(self.handle.data.item())

        if scope:
            scope[0].set_attr(tensor, "__index__", index)
        else:
            tensor.__index__ = index

    interpreter._patch_lang_tensor = patch


def _patch_the_language_once() -> None:
    """The interpreter replaces the language's functions anew for each call of a device function, within a kernel for which
    they are replaced already: half of all its time."""
    from triton.runtime import interpreter

    original = interpreter._patch_lang
    replaced: set[int] = set()

    def patch(fn: Any) -> Any:
        modules = {id(x) for x in fn.__globals__.values() if x is tl or x is tl.core} - replaced
        if not modules:
            return interpreter._LangPatchScope()  # nothing to put back
        scope = original(fn)
        put_back = scope.restore
        replaced.update(modules)

        def restore() -> None:
            put_back()
            replaced.difference_update(modules)

        scope.restore = restore
        return scope

    interpreter._patch_lang = patch


if interpreted():
    with contextlib.suppress(ImportError, AttributeError):  # a Triton built otherwise: its tests will tell
        _mend_loop_bounds()
        _patch_the_language_once()
