"""The layout of a GGUF file or split set: headers, offsets and sizes, computed before anything is written.

Version 3 as llama.cpp and gguf-py write it: header, key-value pairs, tensor table, then the tensors in order, each padded to
the alignment. A split model follows llama.cpp's gguf-split.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from jambacli.errors import JambaError
from jambacli.gguf.reader import DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS
from jambacli.gguf.values import Metadata, encode_string, encode_value
from quant.formats import Format

VERSION = 3
ALIGNMENT_KEY = "general.alignment"
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
# ggml keeps tensor names in 64 bytes, the closing zero included, and refuses longer ones.
MAX_NAME_BYTES = 63
MAX_PARTS = 65535


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written: ``shape`` in torch order. ValueError for a name, shape or row length that GGUF cannot hold.

    ``part`` is the lowest part of a split set that it may lie in.
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    part: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(self.shape) <= MAX_DIMS or min(self.shape) < 1:
            raise ValueError(f"tensor {self.name!r} has the invalid shape {self.shape}")
        if not 1 <= len(self.name.encode()) <= MAX_NAME_BYTES:
            raise ValueError(f"tensor name {self.name!r} is empty or too long")
        self.format.row_bytes(self.shape[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of its data, padding excluded."""
        return self.format.row_bytes(self.shape[-1]) * math.prod(self.shape[:-1])


@dataclass(frozen=True)
class Part:
    """One file: its header, the absolute offset of each of its tensors by name, and its size in bytes."""

    header: bytes
    offsets: dict[str, int]
    size: int


def plan_parts(
    metadata: Mapping[str, bytes],
    tensors: Iterable[TensorSpec],
    *,
    alignment: int = DEFAULT_ALIGNMENT,
    split_max_size: int | None = None,
) -> list[Part]:
    """The files that hold ``metadata`` (encoded values by key) and ``tensors``, in file order.

    As in gguf-split, a part is full when the next tensor would take its tensor data over ``split_max_size`` bytes.
    JambaError where that makes too many files.
    """
    parts: list[list[TensorSpec]] = [[]]
    used = total = 0
    for tensor in tensors:
        padded = _pad(tensor.nbytes, alignment)
        full = split_max_size is not None and bool(parts[-1]) and used + padded > split_max_size
        while full or len(parts) <= tensor.part:
            parts.append([])
            used, full = 0, False
        parts[-1].append(tensor)
        used += padded
        total += 1
    if len(parts) > MAX_PARTS:
        raise JambaError(f"splitting would make {len(parts)} files", remedy="use a larger {split_max_size}")
    counts = len(parts), total
    return [_lay_out(_part_metadata(metadata, i, *counts), part, alignment) for i, part in enumerate(parts)]


def file_size(
    metadata: Mapping[str, bytes],
    tensors: Iterable[TensorSpec],
    *,
    alignment: int = DEFAULT_ALIGNMENT,
    split_max_size: int | None = None,
) -> int:
    """The size in bytes of the file, all parts and headers, that ``plan_parts`` describes."""
    parts = plan_parts(metadata, tensors, alignment=alignment, split_max_size=split_max_size)
    return sum(part.size for part in parts)


def copied_metadata(source: Metadata, skip: Collection[str] = ()) -> dict[str, bytes]:
    """The encoded values of a file, in its order, that a new file can take over: not those that say how it is laid out."""
    own = {*skip, *SPLIT_KEYS, ALIGNMENT_KEY}
    return {key: source.encoded(key) for key in source if key not in own}


def _part_metadata(metadata: Mapping[str, bytes], index: int, parts: int, tensors: int) -> dict[str, bytes]:
    """Part 0 holds the model's metadata; each part of several says which it is."""
    values = {key: value for key, value in metadata.items() if index == 0 or key == ALIGNMENT_KEY}
    if parts > 1:
        for key, value, kind in zip(SPLIT_KEYS, (index, parts, tensors), ("u16", "u16", "i32"), strict=True):
            values[key] = encode_value(key, value, kind)
    return values


def _lay_out(metadata: Mapping[str, bytes], tensors: list[TensorSpec], alignment: int) -> Part:
    out = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, encoded in metadata.items():
        out += [encode_string(key), encoded]
    offsets: dict[str, int] = {}
    end = 0  # of the tensor data so far
    for tensor in tensors:
        dims = tuple(reversed(tensor.shape))
        out += [
            encode_string(tensor.name),
            struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.format.ggml_type, end),
        ]
        offsets[tensor.name] = end
        end += _pad(tensor.nbytes, alignment)
    header = b"".join(out)
    start = _pad(len(header), alignment)
    return Part(header, {name: start + offset for name, offset in offsets.items()}, start + end)


def _pad(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment
