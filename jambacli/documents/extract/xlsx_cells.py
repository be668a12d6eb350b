"""The cells of one worksheet of an .xlsx (SpreadsheetML), read as a stream of XML into a ``Sheet``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from jambacli.documents.extract.number_format import NumberFormat, general, number_format
from jambacli.documents.extract.sheet_text import MAX_COLUMNS, MAX_ROWS, CellText, Left, Sheet

# How much of a formula is shown where its value is missing.
_FORMULA = 200
_ESCAPE = re.compile(r"_x([0-9A-Fa-f]{4})_")
_REFERENCE = re.compile(r"\$?([A-Za-z]{1,3})\$?([0-9]{1,7})(?::\$?([A-Za-z]{1,3})\$?([0-9]{1,7}))?")


def unescaped(text: str) -> str:
    """A string of SpreadsheetML, in which ``_x000A_`` stands for a character."""
    return _ESCAPE.sub(lambda m: chr(int(m[1], 16)), text) if "_x" in text else text


def column_of(letters: str) -> int:
    """The number of a column, counted from 0: 0 for "A", 26 for "AA"."""
    number = 0
    for letter in letters.upper():
        number = 26 * number + ord(letter) - 64
    return number - 1


def cell_range(reference: str) -> tuple[int, int, int, int] | None:
    """First row and column, last row and column of ``B2`` or ``B2:D5``: rows from 1, columns from 0."""
    found = _REFERENCE.match(reference)
    if found is None:
        return None
    first = int(found[2]), column_of(found[1])
    last = (int(found[4]), column_of(found[3])) if found[3] else first
    return *first, *last


@dataclass
class Workbook:
    """What the cells of all sheets refer to. ``formats``: by style, None for General."""

    strings: list[str] = field(default_factory=list)
    formats: list[NumberFormat | None] = field(default_factory=list)
    from_1904: bool = False
    computes_on_load: bool = False
    left: Left = field(default_factory=Left)

    def shown(self, value: float, style: int) -> str:
        """A number in the format of a style."""
        shape = self.formats[style] if 0 <= style < len(self.formats) else None
        if shape is None:
            return general(value)
        text = shape.number(value, from_1904=self.from_1904)
        self.left.formatted_away += not text
        return text


def style_formats(codes: dict[int, str], used: list[int], built_in: dict[int, str]) -> list[NumberFormat | None]:
    """The format of every style. ``codes``: those that the file defines; ``used``: the number of the format of each style."""
    names = [codes.get(n) or built_in.get(n, "General") for n in used]
    return [None if name.lower() == "general" else number_format(name) for name in names]


class CellHandler:
    """Handles the events of a worksheet's XML. ``links``: of cells, with the id of a relationship or None."""

    def __init__(self, sheet: Sheet, book: Workbook) -> None:
        self.links: list[tuple[int, int, str | None, str]] = []
        self.drawings: list[str] = []
        self.print_lines: list[tuple[str, str]] = []
        self._sheet, self._book = sheet, book
        self._columns: dict[str, int] = {}
        self._cells: list[CellText] = []
        self._row = 0
        self._hidden = False
        self._column = -1
        self._kind = "n"
        self._style = 0
        self._picture = False
        self._value: list[str] | None = None
        self._formula: list[str] | None = None
        self._taken = 0
        self._into: list[str] | None = None
        self._phonetic = 0
        self._starts: dict[str, Callable[[dict[str, str]], None]] = {
            "x:c": self._cell, "x:v": self._start_value, "x:t": self._start_text, "x:f": self._start_formula,
            "x:row": self._start_row, "x:col": self._col, "x:mergeCell": self._merge, "x:hyperlink": self._link,
            "x:rPh": self._start_phonetic, "x:drawing": self._drawing, "x:oddHeader": self._start_print,
            "x:oddFooter": self._start_print, "x:firstHeader": self._start_print, "x:firstFooter": self._start_print,
        }  # fmt: skip
        self._ends: dict[str, Callable[[], None]] = {
            "x:c": self._end_cell, "x:row": self._end_row, "x:rPh": self._end_phonetic,
        }  # fmt: skip

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if (handler := self._starts.get(tag)) is not None:
            handler(attributes)

    def end(self, tag: str) -> None:
        if (handler := self._ends.get(tag)) is not None:
            handler()
        elif self._into is not None and tag in ("x:oddHeader", "x:oddFooter", "x:firstHeader", "x:firstFooter"):
            self.print_lines.append((tag[-6:].lower(), "".join(self._into)))
        self._into = None

    def text(self, data: str) -> None:
        if self._into is None:
            return
        if self._into is self._formula:
            data = data[: max(0, _FORMULA - self._taken)]
            self._taken += len(data)
        self._into.append(data)

    def _start_row(self, attributes: dict[str, str]) -> None:
        number = attributes.get("r", "")
        self._row = int(number) if number.isdigit() and len(number) < 8 else self._row + 1
        self._hidden = attributes.get("hidden") in ("1", "true") or attributes.get("ht") == "0"
        self._column = -1
        self._cells = []

    def _end_row(self) -> None:
        cells = self._cells
        if len(cells) > 1 and any(a[0] >= b[0] for a, b in pairwise(cells)):
            cells = sorted(dict(cells).items())
        if self._row <= MAX_ROWS:
            self._sheet.add(self._row, cells, hidden=self._hidden)
        else:
            self._book.left.outside += len(cells)
        self._cells = []

    def _cell(self, attributes: dict[str, str]) -> None:
        reference = attributes.get("r")
        self._column += 1
        if reference:
            letters = reference.rstrip("0123456789")
            column = self._columns.get(letters)
            if column is None:
                column = self._columns[letters] = (
                    column_of(letters) if letters.isascii() and letters.isalpha() and len(letters) < 4 else self._column
                )
            self._column = column
        self._kind = attributes.get("t", "n")
        style = attributes.get("s", "0")
        self._style = int(style) if style.isdigit() and len(style) < 7 else 0
        self._picture = "vm" in attributes
        self._value = self._formula = None

    def _start_value(self, attributes: dict[str, str]) -> None:
        self._value = self._into = []

    def _start_text(self, attributes: dict[str, str]) -> None:
        """A run of an inline string."""
        if not self._phonetic:
            if self._value is None:
                self._value = []
            self._into = self._value

    def _start_formula(self, attributes: dict[str, str]) -> None:
        self._formula = self._into = []
        self._taken = 0

    def _start_phonetic(self, attributes: dict[str, str]) -> None:
        self._phonetic += 1

    def _end_phonetic(self) -> None:
        self._phonetic -= 1

    def _end_cell(self) -> None:
        if self._value is None and self._formula is None:
            return
        text = self._text()
        if text and self._column < MAX_COLUMNS:
            self._cells.append((self._column, text))
        elif text:
            self._book.left.outside += 1

    def _text(self) -> str:
        book = self._book
        if self._value is None or (not self._value and self._formula is not None and self._kind == "n"):
            book.left.not_computed += 1
            return "=" + unescaped("".join(self._formula or ())).strip() if self._formula else "= (not computed)"
        value = "".join(self._value)
        kind = self._kind
        if kind == "s":
            index = int(value) if value.strip().isdigit() else -1
            text = book.strings[index] if 0 <= index < len(book.strings) else ""
            return self._as_text(text)
        if kind in ("str", "inlineStr"):
            return self._as_text(unescaped(value))
        if kind == "b":
            return "TRUE" if value.strip() in ("1", "true") else "FALSE"
        if kind == "e":
            if self._picture and value.strip() == "#VALUE!":
                book.left.pictures += 1
                return ""
            return value.strip()
        if kind == "d":
            return value.strip().removesuffix("T00:00:00").replace("T", " ")
        try:
            number = float(value)
        except ValueError:
            return value.strip()
        if self._formula is not None and number == 0 and book.computes_on_load:
            book.left.perhaps_not_computed += 1
        return book.shown(number, self._style)

    def _as_text(self, text: str) -> str:
        shape = self._book.formats[self._style] if self._style < len(self._book.formats) else None
        if shape is None or shape.texts is None or not text:
            return text
        shown = shape.text(text)
        self._book.left.formatted_away += not shown
        return shown

    # Beside the cells

    def _col(self, attributes: dict[str, str]) -> None:
        if attributes.get("hidden") in ("1", "true") or attributes.get("width") == "0":
            first, last = attributes.get("min", ""), attributes.get("max", "")
            if first.isdigit() and last.isdigit():
                self._sheet.hide_columns(int(first) - 1, int(last) - 1)

    def _merge(self, attributes: dict[str, str]) -> None:
        if (found := cell_range(attributes.get("ref", ""))) is not None:
            self._sheet.merge(*found)

    def _link(self, attributes: dict[str, str]) -> None:
        if (found := cell_range(attributes.get("ref", ""))) is not None:
            self.links.append((found[0], found[1], attributes.get("r:id"), attributes.get("location", "")))

    def _drawing(self, attributes: dict[str, str]) -> None:
        if identifier := attributes.get("r:id"):
            self.drawings.append(identifier)

    def _start_print(self, attributes: dict[str, str]) -> None:
        self._into = []


class StringHandler:
    """Handles the events of the shared strings: rich text as its runs, without the hints of how it is pronounced."""

    def __init__(self) -> None:
        self.strings: list[str] = []
        self._runs: list[str] = []
        self._inside = False
        self._phonetic = 0
        self._known: dict[str, str] = {}

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "x:si":
            self._runs = []
        elif tag == "x:rPh":
            self._phonetic += 1
        elif tag == "x:t":
            self._inside = not self._phonetic

    def end(self, tag: str) -> None:
        if tag == "x:t":
            self._inside = False
        elif tag == "x:rPh":
            self._phonetic -= 1
        elif tag == "x:si":
            text = unescaped("".join(self._runs))
            self.strings.append(self._known.setdefault(text, text) if len(self._known) < 100_000 else text)

    def text(self, data: str) -> None:
        if self._inside:
            self._runs.append(data)
