"""Text of an Excel workbook (.xlsx, .xlsm, .xltx, also Strict) by sheet, as Excel shows it: values in their number
formats, without hidden sheets, rows and columns, with comments at their cells. Remarks say what was left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from jambacli.documents.extract.number_format import BUILT_IN
from jambacli.documents.extract.ooxml import EXCEL, Package, Relation, attribute, opened, short_name
from jambacli.documents.extract.pieces import DocumentPart
from jambacli.documents.extract.sheet_text import Sheet
from jambacli.documents.extract.xlsx_cells import (
    CellHandler,
    StringHandler,
    Workbook,
    cell_range,
    style_formats,
    unescaped,
)
from jambacli.documents.extract.xlsx_drawings import drawing_lines
from jambacli.documents.extract.xml_stream import stream
from jambacli.errors import BadFileError

# A sheet's XML is several times as long as its text, and read as a stream.
_MAX_SHEET = 1 << 30
_MAX_SHEETS = 5000
_PAGE_NUMBER = re.compile("&[PN]")  # with a word such as "Page" it says nothing
_PRINT_CODE = re.compile(r'&(?:"[^"]*"|K[0-9A-Fa-f]{6}|K\d\d[+-]\d{3}|\d+|[LCRPNDTZFAGBIUESXYOH])')


def xlsx_pieces(
    path: str, name: str, alive: Callable[[], None] = lambda: None
) -> tuple[str, Iterator[DocumentPart], list[str]]:
    """The unit "sheet", the pieces, and remarks, complete after the last piece. Raises BadFileError naming ``name`` when
    it is no valid workbook."""
    remarks: list[str] = []
    return "sheet", _pieces(path, name, alive, remarks), remarks


def _pieces(path: str, name: str, alive: Callable[[], None], remarks: list[str]) -> Iterator[DocumentPart]:
    with opened(path, name, EXCEL) as package:
        book, sheets = _workbook(package, name, alive)
        shown = 0
        seen: set[str] = set()
        for number, (title, state, relation) in enumerate(sheets, 1):
            if relation is None or relation.external or not package.has(relation.target):
                book.left.more.append(f"the sheet {title} is missing in the file")
            elif state in ("hidden", "veryHidden"):
                book.left.sheets.append(title)
            elif relation.kind not in ("worksheet", "chartsheet"):
                book.left.more.append(f"the sheet {title} was left out: it holds macros or a dialog")
            elif relation.target not in seen:
                seen.add(relation.target)
                sheet = Sheet(number, title, name, book.left, alive)
                _read(package, relation.target, sheet, book, alive)
                for part in sheet.parts():
                    shown += 1
                    yield part
        if any(r.kind == "vbaProject" for r in package.relations.values()):
            book.left.more.append("its macros were not read")
        remarks += book.left.remarks()
        if not shown:
            raise BadFileError(name, "contains no text" + (f" ({remarks[0]})" if remarks else ""))


def _workbook(
    package: Package, name: str, alive: Callable[[], None]
) -> tuple[Workbook, list[tuple[str, str, Relation | None]]]:
    """What all sheets share, and their titles, states and parts in the order of their tabs."""
    book = Workbook()
    sheets: list[tuple[str, str, Relation | None]] = []
    for event, tag, element in package.events(package.main):
        if event == "end":
            continue
        if tag == "x:workbookPr":
            book.from_1904 = element.get("date1904") in ("1", "true")
        elif tag == "x:calcPr":
            book.computes_on_load = element.get("fullCalcOnLoad") in ("1", "true")
        elif tag == "x:sheet" and len(sheets) < _MAX_SHEETS:
            relation = package.relations.get(attribute(element, "r:id") or "")
            sheets.append((element.get("name", ""), element.get("state", "visible"), relation))
    if not sheets:
        raise BadFileError(name, "is a workbook without sheets; save it again")
    if (part := package.related("sharedStrings", "sharedStrings.xml")) is not None:
        strings = StringHandler()
        with package.opened(part, _MAX_SHEET) as file:
            stream(file, strings, short_name, alive)
        book.strings = strings.strings
    if (part := package.related("styles", "styles.xml")) is not None:
        codes: dict[int, str] = {}
        used: list[int] = []
        inside = False
        for event, tag, element in package.events(part):
            if tag == "x:cellXfs":
                inside = event == "start"
            elif event == "end" and tag == "x:numFmt":
                codes[_int(element.get("numFmtId"))] = unescaped(element.get("formatCode", ""))
            elif event == "end" and tag == "x:xf" and inside:
                used.append(_int(element.get("numFmtId")))
        book.formats = style_formats(codes, used, BUILT_IN)
    return book, sheets


def _read(package: Package, part: str, sheet: Sheet, book: Workbook, alive: Callable[[], None]) -> None:
    relations = package.relations_of(part)
    handler = CellHandler(sheet, book)
    with package.opened(part, _MAX_SHEET) as file:
        stream(file, handler, short_name, alive)
    for what, text in handler.print_lines:
        words = " ".join(_PRINT_CODE.sub(" ", text.replace("&&", "\0")).replace("\0", "&").split())
        if words and not (_PAGE_NUMBER.search(text) and len(words.split()) < 3):
            line = f"{what.capitalize()}: {words}"
            lines = sheet.head if what == "header" else sheet.tail
            if line not in lines:
                lines.append(line)
    for row, column, identifier, location in handler.links:
        relation = relations.get(identifier or "")
        if relation is not None and relation.external and not location.startswith("#"):
            sheet.append(row, column, f"({relation.target})")
    for row, column, text in _comments(package, relations):
        sheet.append(row, column, f"[Comment: {' '.join(text.split())}]")
    sheet.tail[:0] = [line for i in handler.drawings for line in drawing_lines(package, relations.get(i), book.left)]
    book.left.objects += sum(r.kind in ("oleObject", "package", "control", "ctrlProp") for r in relations.values())


def _comments(package: Package, relations: dict[str, Relation]) -> Iterator[tuple[int, int, str]]:
    """Comments with their cells. A conversation is read from its own part; the older form of it repeats it with a hint."""
    threads: dict[str, list[str]] = {}
    for relation in relations.values():
        if relation.kind == "threadedComment" and not relation.external and package.has(relation.target):
            for event, tag, element in package.events(relation.target):
                if event == "start" and tag == "tc:threadedComment":
                    cell = element.get("ref", "")
                elif event == "end" and tag == "tc:text":
                    threads.setdefault(cell, []).append(element.text or "")
    for cell, texts in threads.items():
        if (found := cell_range(cell)) is not None:
            yield found[0], found[1], " / ".join(texts)
    for relation in relations.values():
        if relation.kind != "comments" or relation.external or not package.has(relation.target):
            continue
        words: list[str] = []
        phonetic = 0
        for event, tag, element in package.events(relation.target):
            if tag == "x:comment" and event == "start":
                words = []
            elif tag == "x:rPh":
                phonetic += 1 if event == "start" else -1
            elif tag == "x:t" and event == "end" and not phonetic:
                words.append(unescaped(element.text or ""))
            elif tag == "x:comment" and element.get("ref", "") not in threads and words:
                found = cell_range(element.get("ref", ""))
                yield (*(found[:2] if found else (0, -1)), "".join(words))


def _int(text: str | None) -> int:
    return int(text) if text is not None and text.isdigit() and len(text) < 9 else 0
