"""A setting of Triton's, and fixes for its interpreter, which runs the kernels on the CPU in tests, as numpy, block by block.

Modules with kernels import this module first, so that the fixes apply.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import triton.language as tl

# Multiplications and additions become one instruction, as in every Triton so far; 3.9 warns that 3.10 will not do that.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0", "false", "off")


#: For kernels: the interpreter's ``tl.dot`` treats bf16 operands as the integers that store them, so kernels widen them first.
WIDEN = tl.constexpr(interpreted())


def _fix_loop_bounds() -> None:
    """Triton 3.6 and older convert a loop's bound to int in a way that numpy 2.4 rejects."""
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
    """Patch the language's functions once per kernel; the interpreter does it again for each call of a device function,
    which takes half of its time."""
    from triton.runtime import interpreter

    original = interpreter._patch_lang
    replaced: set[int] = set()

    def patch(fn: Any) -> Any:
        modules = {id(x) for x in fn.__globals__.values() if x is tl or x is tl.core} - replaced
        if not modules:
            return interpreter._LangPatchScope()  # nothing to restore
        scope = original(fn)
        restore_all = scope.restore
        replaced.update(modules)

        def restore() -> None:
            restore_all()
            replaced.difference_update(modules)

        scope.restore = restore
        return scope

    interpreter._patch_lang = patch


if interpreted():
    with contextlib.suppress(ImportError, AttributeError):  # another Triton version may not need the fixes
        _fix_loop_bounds()
        _patch_the_language_once()
