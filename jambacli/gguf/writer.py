"""Writes GGUF files, split ones included, in pieces and atomically; knows nothing of Jamba or of what tensors mean.

The layout is version 3 as llama.cpp and gguf-py write it: header, key-value pairs, tensor table, then the tensors in
the order they were planned, each padded to the alignment. A split model has llama.cpp's gguf-split layout.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from jambacli.errors import JambaError
from jambacli.files import refuse_existing, sync_directory, temporary_beside
from jambacli.gguf.reader import DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, SPLIT_NAME, split_path
from jambacli.gguf.values import Metadata, encode_string, encode_value
from jambacli.units import format_bytes
from quant.formats import Format, get_format

VERSION = 3
# ggml keeps tensor names in 64 bytes, the closing zero included, and refuses longer ones.
MAX_NAME_BYTES = 63
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
_WRITE_STEP = 1 << 26
_WRITEBACK_FROM = 1 << 20


@dataclass
class _Planned:
    name: str
    shape: tuple[int, ...]
    format: Format
    nbytes: int
    part: int = 0  # where the caller wants it until begin(), then where it is
    offset: int = 0  # in the part's data section until begin(), then absolute
    written: int = 0


@dataclass
class _Output:
    path: Path
    place: Path  # where ``path`` leads, if it is a link
    temporary: Path
    fd: int = -1


class GGUFWriter:
    """One GGUF file (or its split parts) being written.

    Order of use: ``add`` the metadata, ``plan_tensor`` every tensor, ``begin``, then ``write_tensor`` or ``write_at``
    in any order, ``finish``. As a context manager it finishes on a clean exit and removes everything it made otherwise.
    Bytes go to temporary files beside the target, preallocated, so a full disk shows in ``begin``.
    ValueError for a caller's mistake, JambaError for an existing output or a disk that refuses.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        split_max_size: int | None = None,
        force: bool = False,
        alignment: int = DEFAULT_ALIGNMENT,
    ) -> None:
        if alignment < 8 or alignment & (alignment - 1):
            raise ValueError(f"alignment {alignment} is no power of two from 8 up")
        if split_max_size is not None and split_max_size < 1:
            raise ValueError("split_max_size must be positive")
        self.path = Path(path)
        self.alignment = alignment
        self._split_max_size = split_max_size
        self._force = force
        self._values: dict[str, bytes] = {}
        self._tensors: dict[str, _Planned] = {}
        self._outputs: list[_Output] = []
        self._state = "planning"
        if split_max_size is None:
            refuse_existing(self.path, force)
        if alignment != DEFAULT_ALIGNMENT:
            self.add("general.alignment", alignment, "u32")

    @property
    def paths(self) -> list[Path]:
        """The files that ``finish`` puts in place, known after ``begin``."""
        return [output.path for output in self._outputs]

    def add(self, key: str, value: Any, type: str | None = None) -> None:
        """Add one key-value pair: ``type`` is "u32", "f32", "str", "bool", "arr[i32]" ... or None to infer it, as
        ``gguf_values.encode_value`` does."""
        self._put(key, encode_value(key, value, type))

    def copy_metadata(self, source: Metadata, skip: Collection[str] = ()) -> None:
        """Copy ``source``'s pairs byte for byte in its order, but ``skip``, the split.* keys and general.alignment."""
        for key in source:
            if key in skip or key in _SPLIT_KEYS or key == "general.alignment":
                continue
            self._put(key, source.encoded(key))

    def _put(self, key: str, encoded: bytes) -> None:
        self._need("planning", "add metadata")
        if not key or len(key.encode()) > 65535:
            raise ValueError(f"bad metadata key {key!r}")
        if key in self._values or key in _SPLIT_KEYS:
            raise ValueError(f"metadata key {key!r} is set already or is the writer's own")
        self._values[key] = encoded

    def plan_tensor(self, name: str, shape: Sequence[int], fmt: str | Format, part: int = 0) -> None:
        """Declare the next tensor in file order: ``shape`` in torch order, ``fmt`` a name or a Format.

        ``part`` (from 0, never going down) puts it into that part of a split set, whatever split_max_size says.
        """
        self._need("planning", "plan a tensor")
        fmt = get_format(fmt) if isinstance(fmt, str) else fmt
        dims = tuple(int(n) for n in shape)
        if not 1 <= len(dims) <= MAX_DIMS or min(dims) < 1:
            raise ValueError(f"tensor {name!r} has the impossible shape {dims}")
        if not name or len(name.encode()) > MAX_NAME_BYTES or name in self._tensors:
            raise ValueError(f"tensor name {name!r} is empty, too long or taken")
        nbytes = fmt.row_bytes(dims[-1])
        for n in dims[:-1]:
            nbytes *= n
        self._tensors[name] = _Planned(name, dims, fmt, nbytes, part)

    def planned_size(self) -> int:
        """Bytes of all parts together, headers included, as planned so far; nothing is created."""
        parts = self._layout()
        sizes = [_pad(len(self._header(tensors, i, len(parts))), self.alignment) for i, tensors in enumerate(parts)]
        return sum(sizes) + sum(_pad(tensor.nbytes, self.alignment) for tensor in self._tensors.values())

    def planned_paths(self) -> list[Path]:
        """The files that would be written, as planned so far; nothing is created."""
        return self._part_paths(len(self._layout()))

    def begin(self) -> None:
        """Lay the parts out, create and preallocate their temporary files and write the headers."""
        self._need("planning", "begin")
        self._state = "writing"
        parts = self._layout()
        paths = self._part_paths(len(parts))
        for path in paths:
            refuse_existing(path, self._force)
        try:
            for i, (path, tensors) in enumerate(zip(paths, parts, strict=True)):
                self._begin_part(path, tensors, i, len(parts))
        except BaseException:
            self.abort()
            raise

    def write_tensor(self, name: str, data: Any) -> None:
        """Write a whole tensor from a C-contiguous buffer of exactly its bytes."""
        view = _bytes_of(data)
        if view.nbytes != self._tensors[name].nbytes:
            raise ValueError(f"tensor {name!r} has {self._tensors[name].nbytes} bytes, not {view.nbytes}")
        self.write_at(name, 0, view)

    def write_at(self, name: str, byte_offset: int, data: Any) -> None:
        """Write ``data`` at ``byte_offset`` within the tensor; each byte is to be written once."""
        self._need("writing", "write a tensor")
        tensor, view = self._tensors[name], _bytes_of(data)
        if byte_offset < 0 or byte_offset + view.nbytes > tensor.nbytes or tensor.written + view.nbytes > tensor.nbytes:
            raise ValueError(
                f"bytes {byte_offset} to {byte_offset + view.nbytes} are outside tensor {name!r} or repeated"
            )
        output = self._outputs[tensor.part]
        try:
            with self._disk_errors(output.path):
                _write_all(output.fd, view, tensor.offset + byte_offset)
                _start_writeback(output.fd, tensor.offset + byte_offset, view.nbytes)
        except BaseException:
            self.abort()
            raise
        tensor.written += view.nbytes

    def finish(self) -> None:
        """Flush every part and rename it into place; the first part last, so it never stands without the others."""
        self._need("writing", "finish")
        try:
            for tensor in self._tensors.values():
                if tensor.written != tensor.nbytes:
                    raise ValueError(f"tensor {tensor.name!r} has {tensor.written} of {tensor.nbytes} bytes written")
            for output in self._outputs:
                with self._disk_errors(output.path):
                    os.fsync(output.fd)
                    os.close(output.fd)
                    output.fd = -1
            self._rename()
        except BaseException:
            self.abort()
            raise
        self._state = "finished"

    def abort(self) -> None:
        """Remove everything this writer made; silent when there is nothing."""
        self._state = "aborted"
        for output in self._outputs:
            if output.fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(output.fd)
                output.fd = -1
            output.temporary.unlink(missing_ok=True)

    def __enter__(self) -> GGUFWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            self.abort()
        elif self._state == "writing":
            self.finish()
        elif self._state == "planning":
            self.begin()
            self.finish()

    def _need(self, state: str, what: str) -> None:
        if self._state != state:
            raise ValueError(f"cannot {what}: the writer is {self._state}")

    def _layout(self) -> list[list[_Planned]]:
        """Tensors by part; like gguf-split, a part closes when the next tensor would take its data over the limit."""
        parts: list[list[_Planned]] = [[]]
        used = 0
        for tensor in self._tensors.values():
            padded = _pad(tensor.nbytes, self.alignment)
            limit = self._split_max_size
            full = limit is not None and bool(parts[-1]) and used + padded > limit
            while full or len(parts) <= tensor.part:
                parts.append([])
                used, full = 0, False
            tensor.part, tensor.offset = len(parts) - 1, used
            parts[-1].append(tensor)
            used += padded
        if len(parts) > 65535:
            raise JambaError(f"{self.path}: splitting would make {len(parts)} files; use a larger --split-max-size")
        return parts

    def _part_paths(self, count: int) -> list[Path]:
        if count == 1:
            return [self.path]
        match = SPLIT_NAME.fullmatch(self.path.name)
        stem = match["stem"] if match else self.path.name.removesuffix(".gguf")
        return [self.path.with_name(split_path(stem, i + 1, count)) for i in range(count)]

    def _begin_part(self, path: Path, tensors: list[_Planned], index: int, count: int) -> None:
        header = self._header(tensors, index, count)
        start = _pad(len(header), self.alignment)
        for tensor in tensors:
            tensor.offset += start
        size = max((_pad(t.offset + t.nbytes, self.alignment) for t in tensors), default=start)
        temporary, place = temporary_beside(path)
        with self._disk_errors(path, size):
            # Listed before it exists, so that an interrupt at any point finds it to remove.
            output = _Output(path, place, temporary)
            self._outputs.append(output)
            output.fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            _preallocate(output.fd, size)
            _write_all(output.fd, memoryview(header), 0)

    def _header(self, tensors: list[_Planned], index: int, count: int) -> bytes:
        values = dict(self._values) if index == 0 else {}
        if index and self.alignment != DEFAULT_ALIGNMENT:
            values["general.alignment"] = self._values["general.alignment"]
        if count > 1:
            values["split.no"] = encode_value("split.no", index, "u16")
            values["split.count"] = encode_value("split.count", count, "u16")
            values["split.tensors.count"] = encode_value("split.tensors.count", len(self._tensors), "i32")
        out = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(values))]
        for key, encoded in values.items():
            out += [encode_string(key), encoded]
        for tensor in tensors:
            dims = tuple(reversed(tensor.shape))
            out += [
                encode_string(tensor.name),
                struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.format.ggml_type, tensor.offset),
            ]
        return b"".join(out)

    def _rename(self) -> None:
        try:
            for output in reversed(self._outputs):
                with self._disk_errors(output.path):
                    output.temporary.replace(output.place)
        except BaseException:
            # A set with parts missing is of no use; a single file, once renamed, is whole.
            if len(self._outputs) > 1:
                for output in self._outputs:
                    if not output.temporary.exists():
                        output.place.unlink(missing_ok=True)
            raise
        sync_directory(self._outputs[0].place.parent)

    @contextlib.contextmanager
    def _disk_errors(self, path: Path, size: int | None = None) -> Iterator[None]:
        """Turn an OSError into one line naming ``path``; callers abort on the way out, which makes the line true."""
        try:
            yield
        except OSError as error:
            needed = f" ({format_bytes(size)} needed)" if size and error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise JambaError(
                f"cannot write {path}: {error.strerror or error}{needed}; nothing was left behind"
            ) from error


def _pad(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment


def _bytes_of(data: Any) -> memoryview:
    view = memoryview(data)
    if not view.c_contiguous:
        raise ValueError("tensor data must be a C-contiguous buffer")
    return view.cast("B")


def _preallocate(fd: int, size: int) -> None:
    """Reserve ``size`` bytes, so that a disk too small fails now; a hole where the file system cannot reserve."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    os.truncate(fd, size)


def _write_all(fd: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < view.nbytes:
        done += os.pwrite(fd, view[done : done + _WRITE_STEP], offset + done)


def _start_writeback(fd: int, offset: int, nbytes: int) -> None:
    """Have the disk start on what was just written, so that the flush at the end finds little left to do."""
    if nbytes >= _WRITEBACK_FROM and hasattr(os, "posix_fadvise"):
        # On Linux this queues dirty pages for writing; being dirty, they are not dropped from the cache.
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, nbytes, os.POSIX_FADV_DONTNEED)
