"""The properties of an Outlook message (MS-OXMSG): streams and storages of a compound file, read by olefile.

A damaged or hostile file gives missing properties, or a BadFileError; what is read from it is bounded by its size.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from jambacli.documents.extract.mail_text import decoded
from jambacli.documents.extract.outlook_rtf import code_page
from jambacli.errors import BadFileError, JambaError

_PROPERTIES = "__properties_version1.0"
_NAMES = "__nameid_version1.0"
_STRING8, _UNICODE, _BINARY = 0x001E, 0x001F, 0x0102
_MESSAGE_CODE_PAGE, _INTERNET_CODE_PAGE = 0x3FFD, 0x3FDE
_EPOCH = datetime(1601, 1, 1, tzinfo=UTC)
# The streams of a valid file are together no larger than it; more were listed twice.
_TIMES = 3


class MessageFile:
    """An opened .msg or .oft file. Close it."""

    def __init__(self, source: str | bytes, name: str) -> None:
        """``source``: a path, or the content. Raises BadFileError naming ``name``."""
        try:
            import olefile
        except ImportError as error:
            raise JambaError(f"{name}: reading Outlook messages needs: pip install 'jambacli[docs]'") from error
        self.name = name
        self.damaged = 0
        try:
            self._ole: Any = olefile.OleFileIO(source)
            self._children: dict[tuple[str, ...], dict[str, str]] = {}
            for path in self._ole.listdir(streams=True, storages=True):
                above = tuple(each.lower() for each in path[:-1])
                self._children.setdefault(above, {})[path[-1].lower()] = path[-1]
        except Exception as error:  # the library fails in many ways on damaged files
            raise self._damage(error) from error
        self._left = _TIMES * self._ole._filesize + (1 << 20)
        self.code_page: str | None = None
        if _PROPERTIES not in self._children.get((), {}):
            self.close()
            raise BadFileError(name, "is a damaged Outlook message, without properties; save it again")

    def close(self) -> None:
        """Close the file."""
        self._ole.close()

    def children(self, path: tuple[str, ...]) -> dict[str, str]:
        """The streams and storages of a storage: their names, by those in small letters."""
        return self._children.get(tuple(each.lower() for each in path), {})

    def stream(self, path: tuple[str, ...]) -> bytes:
        """The content of a stream; b"" when there is none or it is damaged. Raises BadFileError for a file whose streams are
        larger than it is."""
        *above, last = path
        if last.lower() not in self.children(tuple(above)):
            return b""
        try:
            data: bytes = self._ole.openstream(list(path)).read()
            self.damaged += len(data) < self._ole.get_size(list(path))
        except Exception:  # see above
            self.damaged += 1
            return b""
        self._left -= len(data)
        if self._left < 0:
            raise BadFileError(self.name, "is damaged: its parts are larger than the file; it was not read")
        return data

    def names(self) -> dict[int, int]:
        """The properties that have a number as their name: that number -> the property's identifier in this file."""
        entries = self.stream((_NAMES, "__substg1.0_00030102"))
        found: dict[int, int] = {}
        for name, kind, index in struct.iter_unpack("<IHH", entries[: len(entries) // 8 * 8]):
            if not kind & 1:
                found.setdefault(name, 0x8000 + index)
        return found

    def _damage(self, error: Exception) -> BadFileError:
        return BadFileError(self.name, f"is a damaged Outlook message ({type(error).__name__}: {error}); save it again")


class Properties:
    """The properties of one storage: a message, a recipient or an attachment."""

    def __init__(self, file: MessageFile, path: tuple[str, ...], header: int) -> None:
        """``header``: the bytes before the properties of fixed size: 32 for a file's message, 24 for one within it, else 8."""
        self.file, self.path = file, path
        data = file.stream((*path, _PROPERTIES))[header:]
        self._fixed: dict[int, bytes] = dict(struct.iter_unpack("<I4x8s", data[: len(data) // 16 * 16]))
        if header > 8:  # attachments and recipients take the code page of their message
            pages = (self.number(_MESSAGE_CODE_PAGE), self.number(_INTERNET_CODE_PAGE))
            file.code_page = next((name for page in pages if page and (name := code_page(page))), file.code_page)
        self.code_page = file.code_page

    def has(self, identifier: int, kind: int) -> bool:
        """Whether there is a stream or storage of a property."""
        return _name(identifier, kind).lower() in self.file.children(self.path)

    def number(self, identifier: int) -> int | None:
        """A property that is a whole number or true or false; None if there is none."""
        if (value := self._fixed.get(identifier << 16 | 0x0003)) is not None:
            return int.from_bytes(value[:4], "little")
        if (value := self._fixed.get(identifier << 16 | 0x000B)) is not None:
            return int(value[0] != 0)
        return None

    def time(self, identifier: int) -> datetime | None:
        """A property that is a time; None if there is none or it is no date."""
        value = self._fixed.get(identifier << 16 | 0x0040)
        ticks = int.from_bytes(value, "little") if value is not None else 0
        try:
            found = _EPOCH + timedelta(microseconds=ticks // 10) if ticks else None
        except OverflowError:
            return None
        return found if found is not None and found.year < 4000 else None  # 4501 stands for none

    def text(self, identifier: int) -> str:
        """A property that is a string, with ``\\n`` line ends; "" if there is none."""
        if data := self.binary(identifier, _UNICODE):
            text = data.decode("utf-16-le", "replace")
        elif data := self.binary(identifier, _STRING8):
            text = decoded(data, self.code_page)
        else:
            return ""
        return re.sub(r"\r\n?", "\n", text).replace("\x00", "").removeprefix("\ufeff")

    def line(self, identifier: int) -> str:
        """A string as one line."""
        return " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", self.text(identifier)).split())

    def binary(self, identifier: int, kind: int = _BINARY) -> bytes:
        """The bytes of a property; b"" if there are none."""
        return self.file.stream((*self.path, _name(identifier, kind)))

    def within(self, prefix: str, most: int) -> Iterator[tuple[str, ...]]:
        """The storages below whose names begin with ``prefix``, in order."""
        names = sorted(name for low, name in self.file.children(self.path).items() if low.startswith(prefix))
        return ((*self.path, name) for name in names[:most])

    def count(self, prefix: str) -> int:
        """How many storages below have names that begin with ``prefix``."""
        return sum(name.startswith(prefix) for name in self.file.children(self.path))


def _name(identifier: int, kind: int) -> str:
    return f"__substg1.0_{identifier:04X}{kind:04X}"
