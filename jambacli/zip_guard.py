"""Opens zip archives of unknown origin: Word files, workbooks, presentations, e-books.

Python's zipfile builds an object for every entry of an archive's directory before it can be asked how many there are, so the
directory is counted first. What an entry claims of its size is not trusted either.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from jambacli.errors import BadFileError

#: More entries than any document has. A workbook of a thousand sheets with drawings has a few thousand.
MAX_ENTRIES = 20_000
# The longest directory that is looked at: so many entries with names of 200 characters.
_MAX_DIRECTORY = 8 << 20
_END, _END64, _LOCATOR, _ENTRY = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02"
_END_SIZE, _COMMENT = 22, 1 << 16


@contextmanager
def opened_zip(source: str | Path | bytes, name: str) -> Iterator[zipfile.ZipFile]:
    """The archive at a path, or of bytes. Raises BadFileError naming ``name`` if its directory is too long,
    zipfile.BadZipFile if it is damaged."""
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
        check_directory(file, name)
        with zipfile.ZipFile(file) as archive:
            yield archive


def check_directory(file: BinaryIO, name: str) -> None:
    """Count the entries of a zip archive's directory, without reading more of it than is needed. Raises BadFileError naming
    ``name`` if there are more than ``MAX_ENTRIES``. A file that is no archive passes: zipfile says what is wrong with it."""
    found = _directory(file)
    if found is None:
        return
    start, size, stated = found
    if stated > MAX_ENTRIES or size > _MAX_DIRECTORY:
        raise _too_many(name)
    file.seek(start)
    data = file.read(size)
    at = count = 0
    while data.startswith(_ENTRY, at) and at + 46 <= len(data):
        count += 1
        at += 46 + sum(struct.unpack_from("<HHH", data, at + 28))
        if count > MAX_ENTRIES:
            raise _too_many(name)


def _too_many(name: str) -> BadFileError:
    return BadFileError(name, f"holds more than {MAX_ENTRIES:,} files: a zip bomb, or an archive to unpack first")


def _directory(file: BinaryIO) -> tuple[int, int, int] | None:
    """Where the directory begins, its size in bytes, and how many entries the archive claims to have: the same record that
    zipfile takes."""
    size = file.seek(0, os.SEEK_END)
    first = max(0, size - _END_SIZE - _COMMENT)
    file.seek(first)
    tail = file.read()
    at = len(tail) - _END_SIZE
    if at < 0:
        return None
    if not (tail.startswith(_END, at) and tail.endswith(b"\0\0")):
        at = tail.rfind(_END)
        if at < 0 or at + _END_SIZE > len(tail):
            return None
    entries, length = struct.unpack_from("<HL", tail, at + 10)
    end = first + at
    file.seek(max(0, end - 20))
    locator = file.read(20)
    if end >= 76 and locator.startswith(_LOCATOR):
        file.seek(end - 76)
        record = file.read(56)
        if record.startswith(_END64):
            entries, length = struct.unpack_from("<QQ", record, 32)
            end -= 76
    return max(0, end - length), length, entries


class Bounded:
    """A file that fails once more than ``limit`` bytes have been read; the sizes that a zip states need not be true."""

    def __init__(self, file: IO[bytes], name: str, limit: int) -> None:
        self._file, self._name, self._limit, self._left = file, name, limit, limit

    def read(self, n: int = -1) -> bytes:
        data = self._file.read(min(n, self._left + 1) if n >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise _too_long(self._name, self._limit)
        return data


@contextmanager
def opened_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, limit: int) -> Iterator[Bounded]:
    """The unpacked bytes of an entry, at most ``limit``. Raises BadFileError naming ``name`` for one that is encrypted,
    longer, or packed in a way that documents are not."""
    if info.flag_bits & 1:
        raise BadFileError(name, "is encrypted; save it without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others may ask for gigabytes of memory
        raise BadFileError(name, f"is packed by method {info.compress_type}, which no document is; save it again")
    if info.file_size > limit:
        raise _too_long(name, info.file_size)
    with archive.open(info) as packed:
        yield Bounded(packed, name, limit)


def _too_long(name: str, size: int) -> BadFileError:
    return BadFileError(name, f"unpacks to more than {size >> 20:,} MB: a zip bomb, or too long to read")
