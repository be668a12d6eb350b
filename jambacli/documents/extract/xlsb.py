"""What an .xlsb ([MS-XLSB], BIFF 12) says of its cells besides their values: formats, errors, comments, what is hidden."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from jambacli.documents.extract.binary_info import ERRORS, BookInfo, SheetInfo, key
from jambacli.documents.extract.number_format import BUILT_IN, NumberFormat
from jambacli.documents.extract.ooxml import EXCEL_BINARY, Package, Relation, opened
from jambacli.documents.extract.xlsx_cells import style_formats
from jambacli.documents.extract.xlsx_drawings import drawing_lines
from jambacli.zip_guard import Bounded

_MAX_PART, _MAX_BOOK = 512 << 20, 32 << 20
_EVERY = 20_000
#: Types of records.
_ROW, _ERROR, _FORMULA_ERROR, _LAST_CELL = 0, 3, 11, 11
_FORMAT, _STYLE, _COLUMNS, _PROPERTIES, _SHEET, _MERGED, _LINK = 44, 47, 60, 153, 156, 176, 494
_BEGIN_STYLES, _END_STYLES, _COMMENT, _COMMENT_TEXT, _DRAWING = 617, 618, 635, 637, 550


def book_info(path: str, name: str, alive: Callable[[], None]) -> BookInfo:
    """Scan the records of an .xlsb. Raises BadFileError naming ``name`` if it is damaged."""
    info = BookInfo()
    with opened(path, name, EXCEL_BINARY) as package:
        sheets: list[tuple[str, Relation | None]] = []
        for kind, body in _records(package, package.main, alive, _MAX_BOOK):
            if kind == _PROPERTIES and body:
                info.from_1904 = bool(body[0] & 1)
            elif kind == _SHEET and len(body) >= 12:
                identifier, at = _string(body, 8)
                sheets.append((_string(body, at)[0], package.relations.get(identifier)))
        formats = _formats(package, alive)
        for title, relation in sheets:
            if relation is not None and not relation.external and package.has(relation.target):
                found = info.sheets[title] = SheetInfo()
                _sheet(package, relation.target, found, formats, alive, info)
        if any(r.kind == "vbaProject" for r in package.relations.values()):
            info.left.more.append("its macros were not read")
    return info


def _records(
    package: Package, part: str, alive: Callable[[], None], limit: int = _MAX_PART
) -> Iterator[tuple[int, bytes]]:
    """The types and contents of a part's records."""
    with package.opened(part, limit) as file:
        count = 0
        while (kind := _varint(file, 2)) is not None:
            length = _varint(file, 4)
            if length is None:
                return
            body = file.read(length)
            if len(body) < length:
                return
            yield kind, body
            count += 1
            if count % _EVERY == 0:
                alive()


def _varint(file: Bounded, most: int) -> int | None:
    """Seven bits of a number in each byte, the low ones first. A type's highest bits are those of its second byte."""
    value = 0
    for i in range(most):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << (7 * i)
        if not byte[0] & 0x80:
            break
    return value


def _string(body: bytes, at: int) -> tuple[str, int]:
    """A string, and where it ends."""
    if at + 4 > len(body):
        return "", len(body)
    length = struct.unpack_from("<I", body, at)[0]
    if length == 0xFFFFFFFF:
        return "", at + 4
    end = at + 4 + 2 * length
    return body[at + 4 : end].decode("utf-16-le", "replace"), end


def _formats(package: Package, alive: Callable[[], None]) -> list[NumberFormat | None]:
    part = package.related("styles", "styles.bin")
    codes: dict[int, str] = {}
    used: list[int] = []
    inside = False
    for kind, body in _records(package, part, alive) if part is not None else ():
        if kind in (_BEGIN_STYLES, _END_STYLES):
            inside = kind == _BEGIN_STYLES
        elif kind == _FORMAT and len(body) >= 6:
            codes[struct.unpack_from("<H", body)[0]] = _string(body, 2)[0]
        elif kind == _STYLE and inside and len(body) >= 4:
            used.append(struct.unpack_from("<H", body, 2)[0])
    return style_formats(codes, used, BUILT_IN)


def _sheet(
    package: Package,
    part: str,
    found: SheetInfo,
    formats: list[NumberFormat | None],
    alive: Callable[[], None],
    info: BookInfo,
) -> None:
    relations = package.relations_of(part)
    row = 0
    drawings: list[str] = []
    for kind, body in _records(package, part, alive):
        if kind == _ROW and len(body) >= 12:
            row = struct.unpack_from("<I", body)[0] + 1
            if body[11] & 0x10:
                found.hidden_rows.add(row)
        elif 1 < kind <= _LAST_CELL and len(body) >= 8:
            column, style = struct.unpack_from("<II", body)
            style &= 0xFFFFFF
            found.cell(row, column, formats[style] if style < len(formats) else None)
            if kind in (_ERROR, _FORMULA_ERROR) and len(body) > 8:
                found.errors[key(row, column)] = ERRORS.get(body[8], "#ERROR")
        elif kind == _COLUMNS and len(body) >= 18:
            first, last = struct.unpack_from("<II", body)
            if struct.unpack_from("<H", body, 16)[0] & 1:
                found.hidden_columns.append((first, last))
        elif kind == _MERGED and len(body) >= 16:
            top, bottom, first, last = struct.unpack_from("<4I", body)
            found.merged.append((top + 1, first, bottom + 1, last))
        elif kind == _LINK and len(body) >= 20:
            top, _, first, _ = struct.unpack_from("<4I", body)
            relation = relations.get(_string(body, 16)[0])
            if relation is not None and relation.external:
                found.notes.append((top + 1, first, f"({relation.target})"))
        elif kind == _DRAWING:
            drawings.append(_string(body, 0)[0])
    for relation in relations.values():
        if relation.kind == "comments" and not relation.external and package.has(relation.target):
            found.notes += _comments(package, relation.target, alive)
    for identifier in drawings:
        found.tail += drawing_lines(package, relations.get(identifier), info.left)


def _comments(package: Package, part: str, alive: Callable[[], None]) -> Iterator[tuple[int, int, str]]:
    row = column = 0
    for kind, body in _records(package, part, alive):
        if kind == _COMMENT and len(body) >= 20:
            row, _, column, _ = struct.unpack_from("<4I", body, 4)
        elif kind == _COMMENT_TEXT and len(body) >= 5:
            yield row + 1, column, f"[Comment: {' '.join(_string(body, 1)[0].split())}]"
