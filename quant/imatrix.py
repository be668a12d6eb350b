"""Importance matrices: how much each column of a weight matters; knows nothing of GGUF files or of models.

llama.cpp's llama-imatrix runs text through a model and sums, for every matrix, the squares of what each column is
multiplied with. Its first file format (".dat", or "legacy") is read here; the later one is a GGUF file and is read by
``jambacli.quantize.imatrix``, which makes the same ``Imatrix`` of it. A stack of experts has one row of sums an expert.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MAX_NAME_BYTES = 256
_MAX_FILE = 1 << 31  # Large's, the largest Jamba's, is 100 MB
_I32 = struct.Struct("<i")


@dataclass(frozen=True)
class Imatrix:
    """Mean squared input per column: ``entries`` maps a tensor's GGUF name to finite float32 weights, none negative.

    An entry is flat, [n] for a matrix with rows of n values and [experts * n] for a stack.
    """

    path: str
    entries: Mapping[str, np.ndarray]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    """Pieces of text it was computed on; 0 where the file does not say."""

    def weights_for(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """Column weights of a tensor: float32 [n], or [experts, n] for a 3-D ``shape``; None where there is no entry.

        ValueError, naming the tensor, when the entry is of another size: it was then made for another model. Only
        the embedding is let off, as llama-quantize does: it goes without.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        experts = shape[0] if len(shape) == 3 else 1
        if entry.size == experts * shape[-1]:
            return entry.reshape(experts, shape[-1]) if len(shape) == 3 else entry
        if name == "token_embd.weight":
            return None
        wanted = f"{experts} experts of {shape[-1]}" if len(shape) == 3 else str(shape[-1])
        raise ValueError(
            f"{self.path}: made for another model: it weighs {entry.size} columns of {name}, which has {wanted} here"
        )

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Hold the entries against all of a model's tensors; ValueError, naming the mismatch, where they do not belong.

        That a tensor has no entry is no mismatch: it is quantized as if there were no imatrix.
        """
        for name in self.entries:
            if name not in shapes and name.startswith("blk."):
                raise ValueError(f"{self.path}: made for another model: it weighs {name}, which this one does not have")
        for name, shape in shapes.items():
            self.weights_for(name, shape)
        if not any(name in shapes for name in self.entries):
            first = next(iter(self.entries), "nothing")
            raise ValueError(f"{self.path}: made for another model: it weighs {first}, and no tensor of this one")


def read_legacy(path: str | Path) -> Imatrix:
    """Read llama.cpp's ".dat" imatrix.

    Layout, little-endian: i32 entries; each i32 name length, name, i32 calls, i32 values, f32 sums; then, optionally,
    i32 chunks, i32 length and the data set's name. ValueError names the file and the field for anything out of bounds,
    OSError where it cannot be read.
    """
    path = Path(path)
    if (size := path.stat().st_size) > _MAX_FILE:
        raise ValueError(f"{path}: {size} bytes are too many for an imatrix")
    reader = _Reader(path, path.read_bytes())
    count = reader.i32("the number of entries")
    if not 1 <= count <= reader.left // 12:
        raise ValueError(f"{path}: not an imatrix: it claims {count} entries in {size} bytes")
    entries: dict[str, np.ndarray] = {}
    for name, values in reader.entries(count):
        if name in entries:
            raise ValueError(f"{path}: damaged imatrix: {name!a} appears twice")
        entries[name] = values
    chunks, datasets = 0, tuple[str, ...]()
    if reader.left:
        chunks = max(reader.i32("the number of chunks"), 0)
        if reader.left:
            length = reader.i32("the length of the data set's name")
            datasets = (reader.text(length, "the data set's name"),) if length else ()
    return Imatrix(str(path), entries, datasets, chunks)


def checked(path: object, name: str, values: np.ndarray) -> np.ndarray:
    """``values`` as they are; ValueError naming the entry when one is infinite, not a number or negative."""
    import numpy as np

    bad = ~np.isfinite(values) | (values < 0)
    if bad.any():
        where = int(bad.argmax())
        raise ValueError(f"{path}: damaged imatrix: column {where} of {name!a} has the weight {values.flat[where]}")
    return values


class _Reader:
    """A position in the file's bytes; every read is checked against their end."""

    def __init__(self, path: Path, raw: bytes) -> None:
        self.path, self.raw, self.pos = path, raw, 0

    @property
    def left(self) -> int:
        return len(self.raw) - self.pos

    def _need(self, n: int, what: str) -> None:
        if not 0 <= n <= self.left:
            raise ValueError(f"{self.path}: not an imatrix, or a damaged one: {what} runs past the end of the file")

    def i32(self, what: str) -> int:
        self._need(4, what)
        (value,) = _I32.unpack_from(self.raw, self.pos)
        self.pos += 4
        return int(value)

    def text(self, n: int, what: str) -> str:
        self._need(n, what)
        self.pos += n
        # llama.cpp's reader stops at the first zero byte.
        return self.raw[self.pos - n : self.pos].split(b"\0")[0].decode("utf-8", "replace")

    def entries(self, count: int) -> Iterator[tuple[str, np.ndarray]]:
        import numpy as np

        for i in range(1, count + 1):
            length = self.i32(f"the name's length of entry {i}")
            if not 1 <= length <= MAX_NAME_BYTES:
                raise ValueError(
                    f"{self.path}: not an imatrix, or a damaged one: the name of entry {i} has {length} bytes"
                )
            name = self.text(length, f"the name of entry {i}")
            calls = self.i32(f"the calls of {name!a}")
            n = self.i32(f"the number of values of {name!a}")
            if n < 1:
                raise ValueError(f"{self.path}: damaged imatrix: {name!a} has {n} values")
            self._need(4 * n, f"the values of {name!a}")
            sums = np.frombuffer(self.raw, "<f4", n, self.pos).astype(np.float32)
            self.pos += 4 * n
            yield name, checked(self.path, name, sums / np.float32(calls) if calls > 0 else sums)
