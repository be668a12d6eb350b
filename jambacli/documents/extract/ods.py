"""Text of an OpenDocument spreadsheet by sheet. The file holds every cell's text as the program that saved it showed it,
so no number is formatted again. Hidden sheets, rows and columns are left out, and remarks say so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from jambacli.documents.extract.number_format import general
from jambacli.documents.extract.odf_drawing import SHAPES, Drawing, comment_text
from jambacli.documents.extract.open_document import Builder, opened
from jambacli.documents.extract.pieces import DocumentPart
from jambacli.documents.extract.sheet_text import MAX_COLUMNS, MAX_ROWS, CellText, Left, Sheet
from jambacli.errors import BadFileError

_FORMULA = 200
_SPACES = re.compile(r"[ \t\r\n]+")
_ROWS = ("table:table-row",)
_CELLS = ("table:table-cell", "table:covered-table-cell")
#: Parts of a sheet or a document that repeat cells in another form, or describe them.
_SKIPPED = frozenset(
    ("table:tracked-changes", "table:scenario", "table:content-validations", "table:dde-links", "text:ruby-text",
     "office:event-listeners", "table:named-expressions", "table:data-pilot-tables", "office:forms")
)  # fmt: skip


def ods_pieces(
    path: str, name: str, alive: Callable[[], None] = lambda: None
) -> tuple[str, Iterator[DocumentPart], list[str]]:
    """The unit "sheet", the pieces, and remarks, complete after the last piece. Raises BadFileError naming ``name`` when
    it is no valid spreadsheet."""
    remarks: list[str] = []
    return "sheet", _pieces(path, name, alive, remarks), remarks


def _pieces(path: str, name: str, alive: Callable[[], None], remarks: list[str]) -> Iterator[DocumentPart]:
    with opened(path, name, ".ods", alive) as package:
        content = _Content(name, package.tree, alive)
        package.read("content.xml", content)
        if package.has("Basic/script-lc.xml"):
            content.left.more.append("its macros were not read")
    shown = 0
    while content.sheets:
        for part in content.sheets.pop(0).parts():
            shown += 1
            yield part
    remarks += content.left.remarks()
    if not shown:
        raise BadFileError(name, "contains no text" + (f" ({remarks[0]})" if remarks else ""))


@dataclass
class _Cell:
    """A cell while it is read. ``repeat``: how many columns it stands for."""

    repeat: int = 1
    covered: bool = False
    attributes: dict[str, str] = field(default_factory=dict)
    paragraphs: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)


class _Content:
    """Handles the events of content.xml."""

    def __init__(self, name: str, tree_of: Callable[[str], Element | None], alive: Callable[[], None]) -> None:
        self.sheets: list[Sheet] = []
        self.left = Left()
        self._name, self._tree_of, self._alive = name, tree_of, alive
        self._hidden_styles: set[str] = set()
        self._style = ""
        self._tables = 0
        self._number = 0
        self._sheet: Sheet | None = None
        self._hidden = False
        self._row = self._column = 0
        self._row_repeat = 1
        self._row_hidden = False
        self._cells: list[CellText] = []
        self._cell: _Cell | None = None
        self._inside: list[str] | None = None
        self._skipped = 0
        self._builder: Builder | None = None

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if self._builder is not None:
            self._builder.start(tag, attributes)
        elif self._skipped or tag in _SKIPPED:
            self._skipped += 1
        elif tag == "style:style":
            self._style = attributes.get("style:name", "")
        elif tag == "style:table-properties":
            if attributes.get("table:display") == "false":
                self._hidden_styles.add(self._style)
        elif tag == "table:table":
            self._tables += 1
            if self._tables == 1:
                self._start_table(attributes)
        elif self._sheet is None:
            return
        elif tag in SHAPES or tag in ("office:annotation", "officeooo:annotation"):
            self._builder = Builder()
            self._builder.start(tag, attributes)
        elif self._cell is not None:
            self._within_cell(tag, attributes)
        elif tag in _CELLS:
            self._cell = _Cell(_count(attributes, "columns"), tag == _CELLS[1], attributes)
        elif tag in _ROWS:
            self._row_repeat = _count(attributes, "rows")
            self._row_hidden = attributes.get("table:visibility") in ("collapse", "filter")
            self._column, self._cells = 0, []
        elif tag == "table:table-column":
            repeat = _count(attributes, "columns")
            if attributes.get("table:visibility") in ("collapse", "filter"):
                self._sheet.hide_columns(self._column, self._column + repeat - 1)
            self._column += repeat

    def end(self, tag: str) -> None:
        if self._builder is not None:
            self._builder.end(tag)
            if self._builder.root is not None:
                self._drawn(self._builder.root)
                self._builder = None
        elif self._skipped:
            self._skipped -= 1
        elif tag == "table:table":
            self._tables -= 1
            if not self._tables:
                self._sheet = None
        elif self._cell is not None and tag in ("text:p", "text:h"):
            self._cell.paragraphs.append("".join(self._inside or ()).strip())
            self._inside = None
        elif tag in _CELLS and self._cell is not None and self._sheet is not None and self._tables == 1:
            self._end_cell(self._cell, self._sheet)
            self._cell = None
        elif tag in _ROWS and self._sheet is not None and self._tables == 1:
            self._end_row(self._sheet)

    def text(self, data: str) -> None:
        if self._builder is not None:
            self._builder.text(data)
        elif self._inside is not None and not self._skipped:
            self._inside.append(_SPACES.sub(" ", data))

    def _start_table(self, attributes: dict[str, str]) -> None:
        self._number += 1
        self._row = 1
        self._column = 0
        title = attributes.get("table:name", "")
        sheet = Sheet(self._number, title, self._name, self.left, self._alive)
        self._hidden = attributes.get("table:style-name", "") in self._hidden_styles
        if self._hidden:
            self.left.sheets.append(title)
            # Counted as a sheet, not as its rows.
            sheet = Sheet(self._number, title, self._name, Left())
        else:
            self.sheets.append(sheet)
        self._sheet = sheet

    def _within_cell(self, tag: str, attributes: dict[str, str]) -> None:
        assert self._cell is not None
        if tag in ("text:p", "text:h"):
            self._inside = []
        elif self._inside is None:
            return
        elif tag in ("text:s", "text:tab"):
            self._inside.append(" ")
        elif tag == "text:line-break":
            self._inside.append("\n")
        elif tag == "text:a" and "://" in attributes.get("xlink:href", ""):
            self._cell.links.append(attributes["xlink:href"])

    def _drawn(self, element: Element) -> None:
        """A shape or a comment is complete."""
        assert self._sheet is not None
        if element.tag in ("office:annotation", "officeooo:annotation"):
            if self._cell is not None and (text := comment_text(element)):
                self._cell.comments.append(text)
            return
        if self._hidden:
            return
        drawing = Drawing(self._tree_of)
        self._sheet.tail += drawing.shape_lines(element)
        self.left.pictures += drawing.pictures
        self.left.objects += drawing.objects + drawing.media

    def _end_cell(self, cell: _Cell, sheet: Sheet) -> None:
        text = "" if self._hidden else self._text(cell)
        if text and cell.covered:
            self.left.covered += 1
            text = ""
        if not text:
            self._column += cell.repeat
            return
        for link in dict.fromkeys(cell.links):
            if link not in text:
                text += f" ({link})"
        text = " ".join([text, *(f"[Comment: {comment}]" for comment in cell.comments)]).strip()
        for _ in range(cell.repeat):
            if self._column >= MAX_COLUMNS:
                self.left.outside += 1
                break
            self._cells.append((self._column, text))
            self._column += 1

    def _text(self, cell: _Cell) -> str:
        text = "\n".join(cell.paragraphs).strip("\n")
        if text.strip():
            return text
        a = cell.attributes
        kind = a.get("office:value-type", a.get("calcext:value-type", ""))
        value = a.get("office:value", "")
        found = ""
        match kind:
            case "string":
                found = a.get("office:string-value", "")
            case "boolean":
                found = "TRUE" if a.get("office:boolean-value") == "true" else "FALSE"
            case "date":
                found = a.get("office:date-value", "").removesuffix("T00:00:00").replace("T", " ")
            case "time":
                found = a.get("office:time-value", "")
            case "float" | "percentage" | "currency":
                found = _number(value, kind, a.get("office:currency", ""))
        if not found and not kind and (formula := a.get("table:formula")):
            self.left.not_computed += 1
            found = "=" + formula.partition("=")[2][:_FORMULA]
        return found or (" " if cell.comments else "")

    def _end_row(self, sheet: Sheet) -> None:
        cells = self._cells
        if cells and self._row <= MAX_ROWS:
            for row in range(self._row, min(self._row + self._row_repeat, MAX_ROWS + 1)):
                sheet.add(row, cells, hidden=self._row_hidden)
        elif cells:
            self.left.outside += len(cells)
        self._row += self._row_repeat
        self._cells = []


def _number(value: str, kind: str, currency: str) -> str:
    try:
        number = float(value)
    except ValueError:
        return value
    if kind == "percentage":
        return f"{general(round(number * 100, 12))}%"
    return f"{general(number)} {currency}".strip()


def _count(attributes: dict[str, str], name: str) -> int:
    count = attributes.get(f"table:number-{name}-repeated", "1")
    return max(1, int(count)) if count.isdigit() and len(count) < 10 else 1
