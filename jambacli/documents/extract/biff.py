"""What an .xls ([MS-XLS], BIFF 5 and 8) says of its cells besides their values: formats, errors, comments, what is hidden."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from jambacli.documents.extract.binary_info import ERRORS, BookInfo, SheetInfo, key
from jambacli.documents.extract.number_format import BUILT_IN, NumberFormat
from jambacli.documents.extract.xlsx_cells import style_formats
from jambacli.errors import BadFileError, JambaError

_BOF, _EOF, _CONTINUE = 0x809, 0x0A, 0x3C
_CELLS = frozenset((0x201, 0x203, 0x204, 0x205, 0x27E, 0xFD, 0x06, 0xD6))
_URL_MONIKER = bytes.fromhex("e0c9ea79f9bace118c8200aa004ba90b")
#: Kinds of objects on a sheet.
_CHART, _PICTURE, _NOTE = 5, 8, 25
_EVERY = 20_000


def book_info(path: str, name: str, alive: Callable[[], None]) -> BookInfo:
    """Scan the records of an .xls. Raises BadFileError naming ``name`` if it is protected or damaged."""
    try:
        import olefile
    except ImportError as error:
        raise JambaError(f"{name}: reading .xls files needs: pip install 'jambacli[docs]'") from error
    try:
        with olefile.OleFileIO(path) as file:
            stream = next((s for s in ("Workbook", "Book") if file.exists(s)), None)
            if stream is None:
                raise BadFileError(name, "is a damaged workbook; save it again, as .xlsx")
            data: bytes = file.openstream(stream).read()
            macros = file.exists("_VBA_PROJECT_CUR")
    except OSError as error:
        raise BadFileError(name, f"is a damaged workbook ({error}); save it again, as .xlsx") from error
    scan = _Scan(name, alive)
    scan.globals(data)
    for title, offset in scan.sheets:
        scan.sheet(title, data, offset)
    if macros:
        scan.info.left.more.append("its macros were not read")
    return scan.info


def _records(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + 4 <= len(data):
        kind, length = struct.unpack_from("<HH", data, at)
        yield kind, data[at + 4 : at + 4 + length]
        at += 4 + length


@dataclass
class _Object:
    """An object of a sheet, until its text is known."""

    kind: int = 0
    number: int = 0
    texts: dict[int, str] = field(default_factory=dict)
    notes: list[tuple[int, int, int]] = field(default_factory=list)


class _Scan:
    def __init__(self, name: str, alive: Callable[[], None]) -> None:
        self.info = BookInfo()
        self.sheets: list[tuple[str, int]] = []
        self._name, self._alive = name, alive
        self._formats: list[NumberFormat | None] = []
        self._wide = True

    def globals(self, data: bytes) -> None:
        codes: dict[int, str] = {}
        used: list[int] = []
        for kind, body in _records(data, 0):
            if kind == _BOF and len(body) >= 2:
                self._wide = struct.unpack_from("<H", body)[0] >= 0x600
            elif kind == 0x2F:
                raise BadFileError(self._name, "is protected by a password; save it without one")
            elif kind == 0x22 and len(body) >= 2:
                self.info.from_1904 = body[0] == 1
            elif kind == 0x85 and len(body) > 7:
                self.sheets.append((self._string(body, 6, 1), struct.unpack_from("<I", body)[0]))
            elif kind == 0x41E and len(body) > 4:
                codes[struct.unpack_from("<H", body)[0]] = self._string(body, 2, 2 if self._wide else 1)
            elif kind == 0xE0 and len(body) >= 4:
                used.append(struct.unpack_from("<H", body, 2)[0])
            elif kind == _EOF:
                break
        self._formats = style_formats(codes, used, BUILT_IN)

    def sheet(self, title: str, data: bytes, offset: int) -> None:
        info = self.info.sheets.setdefault(title, SheetInfo())
        left = self.info.left
        found = _Object()
        depth = 0
        waiting = False
        for count, (kind, body) in enumerate(_records(data, offset)):
            if count % _EVERY == 0:
                self._alive()
            if kind == _BOF:
                depth += 1
                if depth == 2 or (len(body) >= 4 and body[2:4] == b"\x20\x00"):
                    left.objects += 1
            elif kind == _EOF:
                depth -= 1
                if depth <= 0:
                    break
            elif depth == 1:
                waiting = self._record(kind, body, info, found, waiting)
        for row, column, number in found.notes:
            if text := " ".join(found.texts.pop(number, "").split()):
                info.notes.append((row, column, f"[Comment: {text}]"))
        info.tail += [line for text in found.texts.values() for line in text.split("\n") if line.strip()]

    def _record(self, kind: int, body: bytes, info: SheetInfo, found: _Object, waiting: bool) -> bool:
        """Take one record of a sheet; whether the next one may be the text of an object."""
        if kind in _CELLS and len(body) >= 6:
            self._cell(kind, body, info)
        elif kind == 0xBD and len(body) >= 6:
            row, first = struct.unpack_from("<HH", body)
            for i in range((len(body) - 6) // 6):
                self._styled(info, row, first + i, struct.unpack_from("<H", body, 4 + 6 * i)[0])
        elif kind == 0x208 and len(body) >= 14:
            if struct.unpack_from("<H", body, 12)[0] & 0x20:
                info.hidden_rows.add(struct.unpack_from("<H", body)[0] + 1)
        elif kind == 0x7D and len(body) >= 10:
            first, last, _, _, flags = struct.unpack_from("<5H", body)
            if flags & 1:
                info.hidden_columns.append((first, last))
        elif kind == 0xE5 and len(body) >= 2:
            for i in range(min(struct.unpack_from("<H", body)[0], (len(body) - 2) // 8)):
                top, bottom, first, last = struct.unpack_from("<4H", body, 2 + 8 * i)
                info.merged.append((top + 1, first, bottom + 1, last))
        elif kind == 0x5D and len(body) >= 8:
            found.kind, found.number = struct.unpack_from("<HH", body, 4)
            self.info.left.pictures += found.kind == _PICTURE
        elif kind == 0x1B6:
            return True
        elif kind == _CONTINUE and waiting and len(body) > 1:
            encoding = "utf-16-le" if body[0] & 1 else "cp1252"
            text = body[1:].decode(encoding, "replace").replace("\r\n", "\n").replace("\r", "\n")
            found.texts[found.number if found.kind == _NOTE else -1 - len(found.texts)] = text
        elif kind == 0x1C and len(body) >= 8 and self._wide:
            row, column, _, number = struct.unpack_from("<4H", body)
            found.notes.append((row + 1, column, number))
        elif kind == 0x1C and len(body) > 6:
            row, column = struct.unpack_from("<HH", body)
            info.notes.append((row + 1, column, f"[Comment: {' '.join(body[6:].decode('cp1252', 'replace').split())}]"))
        elif kind == 0x1B8 and len(body) > 32 and (address := _link(body)):
            info.notes.append(
                (struct.unpack_from("<H", body)[0] + 1, struct.unpack_from("<H", body, 4)[0], f"({address})")
            )
        return False

    def _cell(self, kind: int, body: bytes, info: SheetInfo) -> None:
        row, column, style = struct.unpack_from("<3H", body)
        if kind != 0x201:
            self._styled(info, row, column, style)
        code = None
        if kind == 0x205 and len(body) >= 8 and body[7]:
            code = body[6]
        elif kind == 0x06 and len(body) >= 14 and body[12:14] == b"\xff\xff" and body[6] == 2:
            code = body[8]
        if code is not None:
            info.errors[key(row + 1, column)] = ERRORS.get(code, "#ERROR")

    def _styled(self, info: SheetInfo, row: int, column: int, style: int) -> None:
        info.cell(row + 1, column, self._formats[style] if style < len(self._formats) else None)

    def _string(self, body: bytes, at: int, size: int) -> str:
        """A string with its length in ``size`` bytes before it, and from BIFF 8 on with flags."""
        length = int.from_bytes(body[at : at + size], "little")
        at += size
        if not self._wide:
            return body[at : at + length].decode("cp1252", "replace")
        if at < len(body) and body[at] & 1:
            return body[at + 1 : at + 1 + 2 * length].decode("utf-16-le", "replace")
        return body[at + 1 : at + 1 + length].decode("latin-1")


def _link(body: bytes) -> str:
    """The address of a link; "" if it leads to a place in the file."""
    at = body.find(_URL_MONIKER, 32)
    if at < 0 or at + 20 > len(body):
        return ""
    length = struct.unpack_from("<I", body, at + 16)[0]
    return body[at + 20 : at + 20 + length].decode("utf-16-le", "replace").partition("\0")[0]
