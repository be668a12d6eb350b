"""Writes GGUF files, split ones included, tensor by tensor, under temporary names until they are complete."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from jambacli.errors import JambaError
from jambacli.files import refuse_existing, sync_directory, temporary_beside
from jambacli.gguf.layout import ALIGNMENT_KEY, SPLIT_KEYS, Part, TensorSpec, copied_metadata, plan_parts
from jambacli.gguf.reader import DEFAULT_ALIGNMENT, SPLIT_NAME, split_path
from jambacli.gguf.values import Metadata, encode_value
from jambacli.unfinished import TemporaryFile
from jambacli.units import format_bytes
from quant.formats import Format, get_format

_WRITE_STEP = 1 << 26
_WRITEBACK_FROM = 1 << 20


@dataclass
class _Output:
    """One file being written."""

    path: Path
    temporary: TemporaryFile
    fd: int = -1


@dataclass
class _Destination:
    """Where a tensor's bytes go, and how many have been written."""

    output: _Output
    offset: int
    written: int = 0


class GGUFWriter:
    """One GGUF file (or its split parts) being written.

    Call ``add`` for the metadata, ``plan_tensor`` for each tensor, ``begin``, then ``write_tensor`` or ``write_at`` in any
    order, then ``finish``. As a context manager it finishes on a clean exit and otherwise removes everything it made.
    Bytes go to temporary files in the target's directory, preallocated, so that ``begin`` fails where the disk is too small.
    ValueError for a caller's mistake, JambaError for an output that exists or a write that fails.
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
            raise ValueError(f"alignment {alignment} is not a power of two of at least 8")
        if split_max_size is not None and split_max_size < 1:
            raise ValueError("split_max_size must be positive")
        self.path = Path(path)
        self.alignment = alignment
        self._split_max_size = split_max_size
        self._force = force
        self._values: dict[str, bytes] = {}
        self._tensors: dict[str, TensorSpec] = {}
        self._destinations: dict[str, _Destination] = {}
        self._outputs: list[_Output] = []
        self._state = "planning"
        if split_max_size is None:
            refuse_existing(self.path, force)
        if alignment != DEFAULT_ALIGNMENT:
            self.add(ALIGNMENT_KEY, alignment, "u32")

    @property
    def paths(self) -> list[Path]:
        """The files that ``finish`` puts in place, known after ``begin``."""
        return [output.path for output in self._outputs]

    def add(self, key: str, value: Any, type: str | None = None) -> None:
        """Add one key-value pair: ``type`` is "u32", "f32", "str", "bool", "arr[i32]" ..., or None to infer it as
        ``values.encode_value`` does."""
        self.add_encoded(key, encode_value(key, value, type))

    def copy_metadata(self, source: Metadata, skip: Collection[str] = ()) -> None:
        """Copy ``source``'s pairs byte for byte, in its order, except ``skip``, split.* and general.alignment."""
        for key, encoded in copied_metadata(source, skip).items():
            self.add_encoded(key, encoded)

    def add_encoded(self, key: str, encoded: bytes) -> None:
        """Add one key-value pair whose value is encoded already, its type before it."""
        self._need("planning", "add metadata")
        if not key or len(key.encode()) > 65535:
            raise ValueError(f"bad metadata key {key!r}")
        if key in self._values or key in SPLIT_KEYS:
            raise ValueError(f"metadata key {key!r} is set already or is the writer's own")
        self._values[key] = encoded

    def plan_tensor(self, name: str, shape: Sequence[int], fmt: str | Format, part: int = 0) -> None:
        """Declare the next tensor in file order: ``shape`` in torch order, ``fmt`` a name or a Format.

        ``part`` (from 0, never decreasing) puts it into that part of a split set, whatever ``split_max_size`` says.
        """
        self._need("planning", "plan a tensor")
        fmt = get_format(fmt) if isinstance(fmt, str) else fmt
        if name in self._tensors:
            raise ValueError(f"tensor name {name!r} is taken")
        self._tensors[name] = TensorSpec(name, tuple(int(n) for n in shape), fmt, part)

    def planned_paths(self) -> list[Path]:
        """The files that would be written, as planned so far; nothing is created."""
        return self._part_paths(len(self._plan_parts()))

    def begin(self) -> None:
        """Create and preallocate the temporary files and write their headers."""
        self._need("planning", "begin")
        self._state = "writing"
        parts = self._plan_parts()
        paths = self._part_paths(len(parts))
        for path in paths:
            refuse_existing(path, self._force)
        try:
            for path, part in zip(paths, parts, strict=True):
                self._begin_part(path, part)
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
        nbytes, to, view = self._tensors[name].nbytes, self._destinations[name], _bytes_of(data)
        if byte_offset < 0 or byte_offset + view.nbytes > nbytes or to.written + view.nbytes > nbytes:
            raise ValueError(
                f"bytes {byte_offset} to {byte_offset + view.nbytes} are outside tensor {name!r} or repeated"
            )
        try:
            with self._disk_errors(to.output.path):
                _write_all(to.output.fd, view, to.offset + byte_offset)
                _start_writeback(to.output.fd, to.offset + byte_offset, view.nbytes)
        except BaseException:
            self.abort()
            raise
        to.written += view.nbytes

    def finish(self) -> None:
        """Flush every part and rename it into place, the first part last, so that it never exists without the others."""
        self._need("writing", "finish")
        try:
            for name, tensor in self._tensors.items():
                if (written := self._destinations[name].written) != tensor.nbytes:
                    raise ValueError(f"tensor {name!r} has {written} of {tensor.nbytes} bytes written")
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
        """Remove everything this writer made, if it made anything."""
        self._state = "aborted"
        for output in self._outputs:
            if output.fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(output.fd)
                output.fd = -1
            output.temporary.remove()

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

    def _plan_parts(self) -> list[Part]:
        tensors = self._tensors.values()
        return plan_parts(self._values, tensors, alignment=self.alignment, split_max_size=self._split_max_size)

    def _part_paths(self, count: int) -> list[Path]:
        if count == 1:
            return [self.path]
        match = SPLIT_NAME.fullmatch(self.path.name)
        stem = match["stem"] if match else self.path.name.removesuffix(".gguf")
        return [self.path.with_name(split_path(stem, i + 1, count)) for i in range(count)]

    def _begin_part(self, path: Path, part: Part) -> None:
        with self._disk_errors(path, part.size):
            # Listed before it exists, so that an interrupt at any point finds it to remove.
            output = _Output(path, temporary_beside(path))
            self._outputs.append(output)
            output.fd = output.temporary.open()
            _preallocate(output.fd, part.size)
            _write_all(output.fd, memoryview(part.header), 0)
        for name, offset in part.offsets.items():
            self._destinations[name] = _Destination(output, offset)

    def _rename(self) -> None:
        try:
            for output in reversed(self._outputs):
                with self._disk_errors(output.path):
                    output.temporary.rename()
        except BaseException:
            # A set with parts missing is of no use; a single file is complete once it is renamed.
            if len(self._outputs) > 1:
                for output in self._outputs:
                    if output.temporary.renamed:
                        output.temporary.target.unlink(missing_ok=True)
            raise
        sync_directory(self._outputs[0].temporary.target.parent)

    @contextlib.contextmanager
    def _disk_errors(self, path: Path, size: int | None = None) -> Iterator[None]:
        """Turn an OSError into a JambaError naming ``path``; its last words are true because the callers abort."""
        try:
            yield
        except OSError as error:
            needed = f" ({format_bytes(size)} needed)" if size and error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise JambaError(
                f"cannot write {path}: {error.strerror or error}{needed}; nothing was left behind"
            ) from error


def _bytes_of(data: Any) -> memoryview:
    view = memoryview(data)
    if not view.c_contiguous:
        raise ValueError("tensor data must be a C-contiguous buffer")
    return view.cast("B")


def _preallocate(fd: int, size: int) -> None:
    """Reserve ``size`` bytes, so that a disk that is too small fails now; a sparse file if the file system cannot reserve."""
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
    """Start writing recent data to disk, so that the flush at the end is short."""
    if nbytes >= _WRITEBACK_FROM and hasattr(os, "posix_fadvise"):
        # On Linux this queues dirty pages for writing; dirty pages are not dropped from the cache.
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, nbytes, os.POSIX_FADV_DONTNEED)
