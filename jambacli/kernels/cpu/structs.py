"""The C structs of kernels.h as ctypes, built from weights; knows nothing of what the kernels do with them.

Structs hold addresses only: whoever makes one keeps the tensors it points to alive.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from quant.formats import QTensor

_ERRORS = {
    -1: "this weight format has no CPU kernel",
    -2: "a weight's size does not fit its shape",
    -3: "not enough memory for the kernels' scratch",
    -4: "the shapes of a layer's weights do not fit each other",
    -5: "the cache has no room for these tokens",
}
# GGML type ids that the kernels multiply directly (kTypes in blocks.h).
NATIVE_TYPES = frozenset({0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 20, 23, 24, 30})


class Matrix(ctypes.Structure):
    """struct Matrix of kernels.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
        ("type", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


def matrix(w: QTensor) -> Matrix:
    """The struct of a weight [out, in], or of a stack [experts, out, in] (``rows`` is then ``out``)."""
    if w.data.device.type != "cpu":
        raise ValueError("CPU kernels need weights in the computer's own memory")
    return Matrix(
        w.data.data_ptr(),
        None if w.scale is None else w.scale.data_ptr(),
        w.shape[-2],
        w.shape[-1],
        w.format.row_bytes(w.shape[-1]),
        w.format.ggml_type,
        0,
    )


def address(x: torch.Tensor) -> int:
    """The address of a float32 tensor's values; ValueError when they are not float32, contiguous and on the CPU."""
    import torch

    if x.dtype != torch.float32 or x.device.type != "cpu" or not x.is_contiguous():
        raise ValueError(f"CPU kernels take contiguous float32 tensors, not {x.dtype} on {x.device}")
    return x.data_ptr()


def check(status: int) -> None:
    """Raise ValueError (MemoryError for a lack of memory) with the meaning of a kernel's non-zero status."""
    if status == -3:
        raise MemoryError(_ERRORS[status])
    if status:
        raise ValueError(_ERRORS.get(status, f"CPU kernel failed with status {status}"))
