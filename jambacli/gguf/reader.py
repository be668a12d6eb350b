"""Reads GGUF files, split ones included, by mapping them into memory.

Versions 2 and 3, little-endian, as in the GGUF specification. Every count, length, dimension and offset is checked against
the file's size before it is used: a damaged or hostile file raises BadFileError, naming the file and the field.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import re
import stat
import weakref
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from jambacli.errors import BadFileError, JambaError, UnsupportedError
from jambacli.files import file_identity
from jambacli.gguf.experts_int8 import scale_name
from jambacli.gguf.fused import split_qkv
from jambacli.gguf.jamba_metadata import factor_name
from jambacli.gguf.tensor_info import TensorInfo
from jambacli.gguf.values import MAX_KEYS, Cursor, Metadata, MetadataEntry, shown, skip_value
from quant.formats import BY_GGML_TYPE

if TYPE_CHECKING:
    import numpy as np
    import torch

    from quant.formats import QTensor

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_TENSORS = 1 << 17
MAX_DIMS = 4
_NO_WEIGHTS = ("i8", "i16", "i32", "i64", "f64")  # i8 with separate scales (ExpertsInt8) holds weights
SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def split_path(stem: str, number: int, count: int) -> str:
    """The file name of part ``number`` (from 1) of ``count``, as llama.cpp's gguf-split names it."""
    return f"{stem}-{number:05d}-of-{count:05d}.gguf"


class GGUFFile:
    """A GGUF file, all its parts, mapped read-only. Open it with ``GGUFFile.open``; ``close`` it or use it in ``with``."""

    def __init__(self, parts: list[_Part]) -> None:
        first = parts[0]
        self._parts = parts
        self._views: list[np.ndarray | None] = [None] * len(parts)
        self.path: Path = first.path
        self.paths: list[Path] = [part.path for part in parts]
        self.version: int = first.version
        self.alignment: int = first.alignment
        #: The identity (see ``file_identity``) of all files as they were opened, whatever the paths lead to later.
        self.identity: str = "|".join(part.identity for part in parts)
        self.size: int = sum(part.size for part in parts)
        #: Of the files as they were opened, in the order of ``identity``; they are closed with this object.
        self.descriptors: list[int] = [part.descriptor for part in parts]
        self.metadata: Metadata = first.metadata
        self.tensors: dict[str, TensorInfo] = {}
        for part in parts:
            for name, info in part.tensors.items():
                if name in self.tensors:
                    raise BadFileError(
                        part.path, f"tensor {shown(name)} is also in {parts[self.tensors[name].part].path}"
                    )
                self.tensors[name] = info
        self.tensors = split_qkv(self.tensors, self.metadata, self.path)

    @classmethod
    def open(cls, path: str | Path) -> GGUFFile:
        """Map ``path`` and, where it is one part of a split model, all other parts.

        Raises JambaError where a file is missing or unreadable, BadFileError where it is damaged, UnsupportedError for
        a GGUF version or byte order that is not supported.
        """
        path = Path(path)
        parts = [_Part(path, 0)]
        try:
            count = _split_value(parts[0], "split.count", 1)
            if count > 1:
                parts[:] = _open_parts(parts[0], count)
            return cls(parts)
        except BaseException:
            for part in parts:
                part.close()
            raise

    def data(self, name: str) -> np.ndarray:
        """The tensor's bytes, uint8 [nbytes]: a read-only view of the mapped file. KeyError for an unknown name."""
        info = self.tensors[name]
        view = self._views[info.part]
        if view is None:
            import numpy as np

            view = self._views[info.part] = np.frombuffer(self._parts[info.part].buffer, np.uint8)
        return view[info.offset : info.offset + info.nbytes]

    def advise(self, name: str, start: int, stop: int, *, needed: bool) -> None:
        """Tell the kernel that bytes ``start`` to ``stop`` of a tensor are needed soon, or no longer (``needed`` False).

        The first overlaps reading with work; the second keeps resident memory small while a whole file is read.
        """
        advice = getattr(mmap, "MADV_WILLNEED" if needed else "MADV_DONTNEED", None)
        if advice is None:
            return
        info = self.tensors[name]
        page = mmap.PAGESIZE
        # Whole pages: rounded outwards to read, inwards to release, because neighbours may still be in use.
        first = (info.offset + start) // page if needed else -(-(info.offset + start) // page)
        last = -(-(info.offset + stop) // page) if needed else (info.offset + stop) // page
        if last > first:
            buffer = self._parts[info.part].buffer
            with contextlib.suppress(OSError, ValueError):
                buffer.madvise(advice, first * page, min(last * page, len(buffer)) - first * page)

    def qtensor(self, name: str) -> QTensor:
        """The tensor as a QTensor over the mapped bytes, without a copy; ExpertsInt8 stacks (i8) and NVFP4 with row scales.

        Imports torch; the tensor must not be written to. BadFileError where the scales do not fit, UnsupportedError
        for a type that is not used for weights (plain integers, f64), and where ``factors`` says so.
        """
        from quant.formats import QTensor
        from quant.rows import host_tensor

        info = self.tensors[name]
        scale = self.factors(name)
        if info.format.name == "i8" and (beside := scale_name(name)) in self.tensors:
            found = self.tensors[beside]
            if found.format.name != "f32" or found.shape != info.shape[:-1]:
                raise BadFileError(self.path, f"tensor {beside} is not F32 {list(info.shape[:-1])}, one scale per row")
            scale = host_tensor(self.data(beside).view("<f4")).view(found.shape)
        if scale is None and info.format.name in _NO_WEIGHTS:
            raise UnsupportedError(
                f"{self.path}: tensor {shown(name)} is stored as {info.format.name}, which is not a type of weights"
            )
        return QTensor(host_tensor(self.data(name)), info.format, info.shape, scale)

    def factors(self, name: str) -> torch.Tensor | None:
        """The factors of a weight's rows, float32 [*shape[:-1]] (a copy): NVFP4 has them in ``….scale``, one for a matrix or
        one for each expert of a stack. None where the file has none.

        Raises BadFileError where they do not fit, UnsupportedError for a weight in another format.
        """
        info = self.tensors[name]
        if not name.endswith(".weight") or (found := self.tensors.get(factor_name(name))) is None:
            return None
        from quant.rows import host_tensor

        count = info.shape[0] if len(info.shape) == 3 else 1
        if found.format.name != "f32" or found.shape != (count,):
            raise BadFileError(self.path, f"tensor {shown(found.name)} is not F32 [{count}], the factor of each matrix")
        values = host_tensor(self.data(found.name).view("<f4"))
        if not values.isfinite().all():
            raise BadFileError(self.path, f"tensor {shown(found.name)} holds a NaN or an infinity")
        if info.format.name == "nvfp4":
            return values.view(-1, *[1] * (len(info.shape) - 2)).expand(info.shape[:-1]).contiguous()
        if (values == 1).all():
            return None
        raise UnsupportedError(
            f"{self.path}: tensor {shown(found.name)}: factors of {info.format.name} weights are not supported"
        )

    def close(self) -> None:
        """Unmap the parts. A part stays mapped as long as views of it exist."""
        self._views = [None] * len(self._parts)
        for part in self._parts:
            part.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class _Part:
    """One mapped file, its header parsed and checked."""

    def __init__(self, path: Path, index: int) -> None:
        self.path = path
        self.buffer, self.identity, self.descriptor = _map(path)
        self._close_descriptor = weakref.finalize(self, os.close, self.descriptor)
        self.size = len(self.buffer)
        try:
            self._parse(index)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._close_descriptor()
        # Views may still be in use; the last one unmaps the file.
        with contextlib.suppress(BufferError):
            self.buffer.close()

    def _parse(self, index: int) -> None:
        cursor = Cursor(self.path, self.buffer)
        self.version = _read_version(cursor)
        n_tensors = cursor.u64("the tensor count")
        n_keys = cursor.u64("the metadata count")
        # The smallest tensor entry is 33 bytes, the smallest key-value pair 14.
        _check_count(cursor, n_tensors, "tensors", MAX_TENSORS, 33)
        _check_count(cursor, n_keys, "metadata keys", MAX_KEYS, 14)
        entries: dict[str, MetadataEntry] = {}
        for i in range(n_keys):
            key = cursor.name(f"metadata key number {i}")
            if key in entries:
                raise cursor.bad(f"metadata key {shown(key)} appears twice")
            entries[key] = skip_value(cursor, key)
        self.metadata = Metadata(self.path, self.buffer, entries)
        self.alignment = _alignment(cursor, self.metadata)
        found = [_read_tensor(cursor, i, index) for i in range(n_tensors)]
        start = -(-cursor.pos // self.alignment) * self.alignment
        self.tensors = _place(cursor, found, start, self.alignment)


def _map(path: Path) -> tuple[mmap.mmap, str, int]:
    """The file mapped, its identity, and a descriptor of it, which the caller closes."""
    try:
        # Opening a pipe would wait for its writer, so look at the path first.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise JambaError(f"cannot read {path}: it is {kind}")
        if status.st_size == 0:
            raise BadFileError(path, "the file is empty, not a GGUF file")
        with path.open("rb") as file:
            identity = file_identity(os.fstat(file.fileno()))
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), identity, os.dup(file.fileno())
    except (OSError, ValueError) as error:
        raise JambaError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _read_version(cursor: Cursor) -> int:
    if (magic := cursor.buffer[:4]) != MAGIC:
        raise cursor.bad(f"not a GGUF file: it starts with {magic!a} instead of b'GGUF'")
    cursor.pos = 4
    version = cursor.u32("the version")
    if version and version & 0xFFFF == 0:
        raise UnsupportedError(
            f"{cursor.path}: a big-endian GGUF file; only little-endian files can be read; convert it"
        )
    if version not in (2, 3):
        raise UnsupportedError(f"{cursor.path}: GGUF version {version}; versions 2 and 3 can be read")
    return version


def _check_count(cursor: Cursor, count: int, what: str, limit: int, least_bytes: int) -> None:
    if count > limit or count * least_bytes > cursor.size - cursor.pos:
        raise cursor.bad(f"the header claims {count} {what}, more than the file can hold")


def _alignment(cursor: Cursor, metadata: Metadata) -> int:
    key = "general.alignment"
    if key not in metadata:
        return DEFAULT_ALIGNMENT
    value = metadata[key] if metadata.type_name(key) == "u32" else None
    if value is None or not 8 <= value <= 1 << 20 or value & (value - 1):
        found = metadata.type_name(key) if value is None else value
        raise cursor.bad(f"{key} is {found}; it must be a u32 power of two from 8 to 1048576")
    return int(value)


def _read_tensor(cursor: Cursor, number: int, part: int) -> TensorInfo:
    name = cursor.name(f"the name of tensor number {number}")
    what = f"tensor {shown(name)}"
    n_dims = cursor.u32(f"the dimension count of {what}")
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.bad(f"{what} has {n_dims} dimensions; 1 to {MAX_DIMS} are possible")
    dims = [cursor.u64(f"a dimension of {what}") for _ in range(n_dims)]
    type_id = cursor.u32(f"the type of {what}")
    offset = cursor.u64(f"the offset of {what}")
    fmt = BY_GGML_TYPE.get(type_id)
    if fmt is None:
        raise cursor.bad(f"{what} has the unknown type {type_id}")
    values = 1
    for dim in dims:
        values *= dim
    if values == 0:
        raise cursor.bad(f"{what} has a dimension of 0: {dims}")
    if values >= 1 << 63:
        raise cursor.bad(f"{what} has invalid dimensions: {dims}")
    if dims[0] % fmt.block:
        raise cursor.bad(f"{what} has rows of {dims[0]} values, not a multiple of {fmt.name}'s block of {fmt.block}")
    nbytes = values // fmt.block * fmt.block_bytes
    return TensorInfo(name, tuple(reversed(dims)), fmt, offset, nbytes, part)


def _place(cursor: Cursor, found: list[TensorInfo], start: int, alignment: int) -> dict[str, TensorInfo]:
    """The tensors by name in file order, their offsets made absolute; checks names, bounds and overlaps."""
    placed: dict[str, TensorInfo] = {}
    for info in found:
        what = f"tensor {shown(info.name)}"
        if info.name in placed:
            raise cursor.bad(f"{what} appears twice")
        if info.offset % alignment:
            raise cursor.bad(f"{what} lies at offset {info.offset}, not a multiple of the alignment of {alignment}")
        offset = start + info.offset
        if offset + info.nbytes > cursor.size:
            raise cursor.bad(
                f"truncated or damaged: {what} needs bytes {offset} to {offset + info.nbytes}, "
                f"the file has {cursor.size}"
            )
        placed[info.name] = TensorInfo(info.name, info.shape, info.format, offset, info.nbytes, info.part)
    ordered = sorted(placed.values(), key=lambda info: info.offset)
    for before, after in itertools.pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise cursor.bad(f"tensors {shown(before.name)} and {shown(after.name)} overlap")
    return placed


def _split_value(part: _Part, key: str, default: int | None = None) -> int:
    value = part.metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadFileError(part.path, f"{key} is {'missing' if value is None else 'not a count'}")
    return value


def _open_parts(opened: _Part, count: int) -> list[_Part]:
    """All parts of the split model that ``opened`` belongs to, in order. Closes ``opened``, and all parts on an error."""
    match = SPLIT_NAME.fullmatch(opened.path.name)
    number = _split_value(opened, "split.no") + 1
    if number > count:
        raise BadFileError(opened.path, f"split.no is {number - 1}, but split.count is {count}")
    if not match or int(match["count"]) != count or int(match["no"]) != number:
        raise BadFileError(
            opened.path,
            f"it is part {number} of {count}; name it {split_path('NAME', number, count)} next to the others",
        )
    paths = [opened.path.with_name(split_path(match["stem"], i + 1, count)) for i in range(count)]
    if missing := [path.name for path in paths if not path.is_file()]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise BadFileError(
            opened.path, f"of its {count} parts {', '.join(missing[:3])}{more} are missing from its directory"
        )
    parts: list[_Part] = []
    try:
        for i, path in enumerate(paths):
            part = _Part(path, i)
            parts.append(part)
            if _split_value(part, "split.count") != count or _split_value(part, "split.no") != i:
                raise BadFileError(path, f"its split.no or split.count does not say part {i + 1} of {count}")
        total, held = _split_value(parts[0], "split.tensors.count"), sum(len(part.tensors) for part in parts)
        if total != held:
            raise BadFileError(paths[0], f"split.tensors.count is {total}, but the parts hold {held} tensors")
    except BaseException:
        for part in parts:
            part.close()
        raise
    opened.close()
    return parts
