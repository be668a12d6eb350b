"""llama.cpp's own quantizer, called through llama-cpp-python: the reference of ``jamba quantize``."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FILE_TYPES = {
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_0": 8,
    "q5_1": 9,
    "q2_k": 10,
    "q3_k_s": 11,
    "q3_k_m": 12,
    "q3_k_l": 13,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_k_s": 16,
    "q5_k_m": 17,
    "q6_k": 18,
    "iq4_nl": 25,
    "iq4_xs": 30,
    "bf16": 32,
}


class _ImatrixData(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t))


class _TensorOverride(ctypes.Structure):
    _fields_ = (("pattern", ctypes.c_char_p), ("type", ctypes.c_int))


class _Override(ctypes.Structure):
    class _Value(ctypes.Union):
        _fields_ = (
            ("val_i64", ctypes.c_int64),
            ("val_f64", ctypes.c_double),
            ("val_bool", ctypes.c_bool),
            ("val_str", ctypes.c_char * 128),
        )

    _fields_ = (("tag", ctypes.c_int), ("key", ctypes.c_char * 128), ("value", _Value))


def quantize(
    source: Path,
    target: Path,
    file_type: str,
    *,
    imatrix: Mapping[str, np.ndarray] | None = None,
    tensor_types: Sequence[tuple[str, int]] = (),
    metadata: Sequence[tuple[str, int | str]] = (),
    threads: int = 2,
    **options: Any,
) -> bool:
    """Run llama_model_quantize; False where it refuses. ``options`` set fields of llama_model_quantize_params.

    ``metadata`` are key-value overrides, which is how the llama-quantize tool passes on where its imatrix came from.
    """
    import llama_cpp

    silence()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = FILE_TYPES[file_type], threads
    for name, value in options.items():
        setattr(params, name, value)
    keep: list[Any] = []
    if imatrix:
        rows = (_ImatrixData * (len(imatrix) + 1))()
        for row, (name, values) in zip(rows, imatrix.items(), strict=False):
            flat = np.ascontiguousarray(values, np.float32).reshape(-1)
            keep.append(flat)
            row.name, row.size = name.encode(), flat.size
            row.data = flat.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = ctypes.cast(rows, type(params.imatrix))
        keep.append(rows)
    if tensor_types:
        overrides = (_TensorOverride * (len(tensor_types) + 1))()
        for override, (pattern, kind) in zip(overrides, tensor_types, strict=False):
            override.pattern, override.type = pattern.encode(), kind
        params.tt_overrides = ctypes.cast(overrides, type(params.tt_overrides))
        keep.append(overrides)
    if metadata:
        pairs = (_Override * (len(metadata) + 1))()
        for pair, (key, item) in zip(pairs, metadata, strict=False):
            pair.key = key.encode()
            if isinstance(item, int):
                pair.tag, pair.value.val_i64 = 0, item
            else:
                pair.tag, pair.value.val_str = 3, item.encode()
        params.kv_overrides = ctypes.cast(pairs, type(params.kv_overrides))
        keep.append(pairs)
    done = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0
    del keep
    return bool(done)


_silencer: Any = None


def silence() -> None:
    """Its log goes to stderr by default, a line a tensor."""
    global _silencer
    import llama_cpp

    if _silencer is None:
        _silencer = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(_silencer, None)
