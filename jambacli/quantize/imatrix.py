"""Importance matrices (the importance of each column of a weight), read from either of llama.cpp's two file formats.

llama-imatrix runs text through a model and sums, for every matrix, the squares of the inputs of each column; a stack of
experts has one row of sums per expert. The older format (".dat", "legacy") has another layout (see ``read_legacy``).
The newer one is a GGUF file that holds, for a tensor NAME, ``NAME.in_sum2`` f32 [experts, n] and ``NAME.counts`` f32
[experts, 1] (the number of inputs); a plain matrix counts as one expert.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jambacli.errors import BadFileError, JambaError
from jambacli.gguf.jamba_metadata import TOKEN_EMBD

if TYPE_CHECKING:
    import numpy as np

    from jambacli.gguf.reader import GGUFFile

MAX_NAME_BYTES = 256
_MAX_FILE = 1 << 31  # the imatrix of Jamba Large, the largest Jamba, takes 100 MB
_I32 = struct.Struct("<i")
SUMS, COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Imatrix:
    """Mean squared input per column: ``entries`` maps a tensor's GGUF name to finite, non-negative float32 weights.

    An entry is flat: [n] for a matrix with rows of n values, [experts * n] for a stack.
    """

    path: str
    entries: Mapping[str, np.ndarray]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    """Chunks of text it was computed on; 0 where the file does not say."""
    calls: Mapping[str, int] = field(default_factory=dict)
    """Of the legacy format: how many chunks an entry stands for."""

    def weights_for(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """Column weights of a tensor: float32 [n], or [experts, n] for a 3-D ``shape``; None where there is no entry.

        JambaError, naming the tensor, where the entry has another size and so belongs to another model. The embedding
        alone is then quantized without weights, as llama-quantize does.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        experts = shape[0] if len(shape) == 3 else 1
        if entry.size == experts * shape[-1]:
            return entry.reshape(experts, shape[-1]) if len(shape) == 3 else entry
        if name == TOKEN_EMBD:
            return None
        columns = f"{experts} experts of {shape[-1]}" if len(shape) == 3 else str(shape[-1])
        raise self._foreign(f"it has {entry.size} column weights for {name}, which has {columns} in this model")

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Compare the entries with all tensors of a model; JambaError, naming the mismatch, for another model's imatrix.

        A tensor without an entry is not a mismatch: it is quantized without weights.
        """
        for name in self.entries:
            if name not in shapes and name.startswith("blk."):
                raise self._foreign(f"it has an entry for {name}, which this model does not have")
        for name, shape in shapes.items():
            self.weights_for(name, shape)
        if not any(name in shapes for name in self.entries):
            first = next(iter(self.entries), "nothing")
            raise self._foreign(f"it has an entry for {first}, but for no tensor of this model")

    def _foreign(self, problem: str) -> JambaError:
        return JambaError(f"{self.path}: made for another model: {problem}")


def imatrix_of(
    path: str,
    sums: Mapping[str, np.ndarray],
    counts: Mapping[str, np.ndarray],
    datasets: tuple[str, ...] = (),
    chunks: int = 0,
) -> Imatrix:
    """The imatrix of sums of squares [experts, n] and counts [experts] by name; ``path`` names it in errors."""
    import numpy as np

    entries = {
        name: _means(Path(path), name, values.astype(np.float32), counts[name].astype(np.float32))
        for name, values in sums.items()
    }
    return Imatrix(path, entries, datasets, chunks)


def read_imatrix(path: str | Path) -> Imatrix:
    """The imatrix in ``path``, a GGUF file or the legacy format, told apart by the first four bytes.

    JambaError where the file cannot be read, BadFileError, naming the field, where it is damaged or not an imatrix.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        if not is_gguf:
            return read_legacy(path)
    except OSError as error:
        raise JambaError(f"cannot read {path}: {error.strerror or error}") from error
    from jambacli.gguf.reader import GGUFFile

    with GGUFFile.open(path) as gguf:
        return _from_gguf(path, gguf)


def _from_gguf(path: Path, file: GGUFFile) -> Imatrix:
    if not any(name.endswith(SUMS) for name in file.tensors):
        raise BadFileError(path, f"not an imatrix: no tensor's name ends in {SUMS}")
    entries: dict[str, np.ndarray] = {}
    for full in file.tensors:
        name = full.removesuffix(SUMS).removesuffix(COUNTS)
        if name == full or name in entries:
            continue
        entries[name] = _means(path, name, _floats(path, file, name + SUMS), _floats(path, file, name + COUNTS))
    datasets = file.metadata.get("imatrix.datasets", [])
    chunks = file.metadata.get("imatrix.chunk_count", 0)
    return Imatrix(
        str(path),
        entries,
        tuple(datasets) if isinstance(datasets, list) else (),
        chunks if isinstance(chunks, int) and 0 <= chunks < 1 << 31 else 0,
    )


def _floats(path: Path, file: GGUFFile, name: str) -> np.ndarray:
    import numpy as np

    if name not in file.tensors:
        raise BadFileError(path, f"damaged imatrix: tensor {name!a} is missing")
    if (fmt := file.tensors[name].format.name) != "f32":
        raise BadFileError(path, f"damaged imatrix: tensor {name!a} is {fmt}, it must be f32")
    return np.frombuffer(file.data(name).tobytes(), "<f4")


def _means(path: Path, name: str, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums over counts; for an expert that saw no input, all columns weigh 1."""
    import numpy as np

    if not counts.size or sums.size % counts.size:
        raise BadFileError(path, f"damaged imatrix: {sums.size} sums and {counts.size} counts for {name!a}")
    rows: Any = sums.reshape(counts.size, -1)
    seen = counts > 0
    means = np.ones_like(rows)
    with np.errstate(all="ignore"):  # an infinite mean is refused
        np.divide(rows, counts[:, None], out=means, where=seen[:, None])
    return _valid_weights(path, name, means.reshape(-1))


def _valid_weights(path: Path, name: str, weights: np.ndarray) -> np.ndarray:
    """``weights``; BadFileError naming the entry where one is infinite, NaN or negative."""
    import numpy as np

    bad = ~np.isfinite(weights) | (weights < 0)
    if bad.any():
        where = int(bad.argmax())
        raise BadFileError(path, f"damaged imatrix: column {where} of {name!a} has the weight {weights.flat[where]}")
    return weights


def read_legacy(path: Path) -> Imatrix:
    """Read llama.cpp's ".dat" imatrix.

    Layout, little-endian: i32 number of entries; for each one i32 name length, name, i32 calls, i32 values, f32 sums; then,
    optionally, i32 chunks, i32 length and the data set's name. BadFileError naming the field for anything out of bounds,
    OSError where the file cannot be read.
    """
    if not path.is_file():  # a device has no end, a pipe was read already
        raise BadFileError(path, "not an imatrix: it is not a file")
    if (size := path.stat().st_size) > _MAX_FILE:
        raise BadFileError(path, f"{size} bytes are too many for an imatrix")
    reader = _Reader(path, path.read_bytes())
    count = reader.i32("the number of entries")
    if not 1 <= count <= reader.left // 12:
        raise BadFileError(path, f"not an imatrix: it claims {count} entries in {size} bytes")
    entries: dict[str, np.ndarray] = {}
    calls: dict[str, int] = {}
    for name, values, n_calls in reader.entries(count):
        if name in entries:
            raise BadFileError(path, f"damaged imatrix: {name!a} appears twice")
        entries[name], calls[name] = values, n_calls
    chunks, datasets = 0, tuple[str, ...]()
    if reader.left:
        chunks = max(reader.i32("the number of chunks"), 0)
        if reader.left:
            length = reader.i32("the length of the data set's name")
            datasets = (reader.text(length, "the data set's name"),) if length else ()
    return Imatrix(str(path), entries, datasets, chunks, calls)


class _Reader:
    """A position in a legacy file's bytes; every read is checked against their end."""

    def __init__(self, path: Path, raw: bytes) -> None:
        self.path, self.raw, self.pos = path, raw, 0

    @property
    def left(self) -> int:
        return len(self.raw) - self.pos

    def _need(self, n: int, what: str) -> None:
        if not 0 <= n <= self.left:
            raise BadFileError(self.path, f"not an imatrix, or a damaged one: {what} runs past the end of the file")

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

    def entries(self, count: int) -> Iterator[tuple[str, np.ndarray, int]]:
        """Names, mean squares and calls."""
        import numpy as np

        for i in range(1, count + 1):
            length = self.i32(f"the name's length of entry {i}")
            if not 1 <= length <= MAX_NAME_BYTES:
                raise BadFileError(
                    self.path, f"not an imatrix, or a damaged one: the name of entry {i} has {length} bytes"
                )
            name = self.text(length, f"the name of entry {i}")
            calls = self.i32(f"the calls of {name!a}")
            n = self.i32(f"the number of values of {name!a}")
            if n < 1:
                raise BadFileError(self.path, f"damaged imatrix: {name!a} has {n} values")
            self._need(4 * n, f"the values of {name!a}")
            sums = np.frombuffer(self.raw, "<f4", n, self.pos).astype(np.float32)
            self.pos += 4 * n
            with np.errstate(all="ignore"):  # _valid_weights reports the error
                means = sums / np.float32(calls) if calls > 0 else sums
            yield name, _valid_weights(self.path, name, means), calls
