"""Fused query, key and value projections, as llama.cpp's converter writes them on request: ``blk.N.attn_qkv.weight``.

Its rows are those of q, then k, then v, and a row's blocks lie together, so the three are parts of the same bytes in every
format. The reader lists these parts under their own names; nothing above it sees the fused tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from jambacli.errors import BadFileError
from jambacli.gguf import jamba_metadata as keys
from jambacli.gguf.tensor_info import TensorInfo
from jambacli.gguf.values import shown

_FUSED = re.compile(r"blk\.(\d{1,6})\.attn_qkv\.(weight|scale|input_scale)")


def split_qkv(tensors: dict[str, TensorInfo], metadata: Mapping[str, Any], path: object) -> dict[str, TensorInfo]:
    """``tensors`` with each fused tensor as q, k and v, in its place. Those of another architecture stay as they are.

    The three have the same factors (``scale``), if there are any. Raises BadFileError, naming tensor or key, where the
    metadata require other rows than the fused tensor has, or where a part is also there by itself.
    """
    if metadata.get(keys.ARCHITECTURE) != keys.ARCH or not any(map(_FUSED.fullmatch, tensors)):
        return tensors
    found: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        match = _FUSED.fullmatch(name)
        for part in (info,) if match is None else _parts(info, int(match[1]), match[2], metadata, path):
            if part.name in found or (part is not info and part.name in tensors):
                raise BadFileError(path, f"tensor {shown(part.name)} is also part of a fused attn_qkv tensor")
            found[part.name] = part
    return found


def _parts(info: TensorInfo, layer: int, kind: str, metadata: Mapping[str, Any], path: object) -> Iterator[TensorInfo]:
    names = [f"blk.{layer}.attn_{part}.{kind}" for part in "qkv"]
    if kind != "weight":
        yield from (replace(info, name=name) for name in names)
        return
    hidden, q, kv = keys.attention_rows(metadata, layer, path)
    if kv == 0 or info.shape != (q + 2 * kv, hidden):
        required = [q + 2 * kv, hidden] if kv else "no attention in this layer"
        raise BadFileError(
            path, f"tensor {info.name} has shape {list(info.shape)}, but the metadata requires {required}"
        )
    row, offset = info.nbytes // (q + 2 * kv), info.offset
    for name, rows in zip(names, (q, kv, kv), strict=True):
        yield replace(info, name=name, shape=(rows, hidden), offset=offset, nbytes=rows * row)
        offset += rows * row
