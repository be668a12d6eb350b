"""What Triton's interpreter needs to run these kernels on the CPU; knows nothing of the kernels.

The interpreter is for tests: it runs kernels as numpy, block by block. Two of its gaps are closed here. Import this first.
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


if interpreted():
    with contextlib.suppress(ImportError, AttributeError):  # a Triton built otherwise: its tests will tell
        _mend_loop_bounds()
