"""The C struct of a weight (base/abi.h) as ctypes, and the checks of tensors that kernels need.

A struct holds only addresses: its creator must keep the tensors alive that it points to.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from jambacli.kernels.kv_blocks import type_of_rows
from jambacli.kernels.low_rank import AdaptedTensor, LowRankStruct
from quant.formats import FORMATS

if TYPE_CHECKING:
    import torch

    from quant.formats import QTensor

# GGML type ids that have kernels (block_formats.h); quant's table says the same.
NATIVE_TYPES = frozenset(f.ggml_type for f in FORMATS.values() if f.native)

#: GGML type ids of the KV types.
KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q5_1": 7, "q8_0": 8, "bf16": 30}
_KV_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


class Matrix(ctypes.Structure):
    """``struct Matrix`` of base/abi.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
        ("type", ctypes.c_int32),
        ("n_low", ctypes.c_int32),
        ("low", ctypes.POINTER(LowRankStruct)),
    ]


def matrix(w: QTensor) -> Matrix:
    """The struct of a weight [out, in], or of a stack [experts, out, in] (``rows`` is then ``out``)."""
    if w.data.device.type != "cpu":
        raise ValueError("CPU kernels need weights in host memory")
    return Matrix(
        w.data.data_ptr(),
        None if w.scale is None else w.scale.data_ptr(),
        w.shape[-2],
        w.shape[-1],
        w.format.row_bytes(w.shape[-1]),
        w.format.ggml_type,
        *((len(w.low), w.structs) if isinstance(w, AdaptedTensor) else (0, None)),
    )


def address(x: torch.Tensor) -> int:
    """The address of a float32 tensor's values; ValueError when they are not float32, contiguous and on the CPU."""
    import torch

    if x.dtype != torch.float32 or x.device.type != "cpu" or not x.is_contiguous():
        raise ValueError(f"CPU kernels take contiguous float32 tensors, not {x.dtype} on {x.device}")
    return x.data_ptr()


def kv_type(cache: torch.Tensor, head_dim: int) -> str:
    """The KV type of a cache [..., row]. ValueError where there are no kernels for it."""
    dtype = str(cache.dtype).removeprefix("torch.")
    name = type_of_rows(cache.shape[-1], head_dim) if dtype == "uint8" else _KV_DTYPES.get(dtype)
    if name is None:
        raise ValueError(f"there are no kernels for a cache of {cache.dtype}")
    return name
