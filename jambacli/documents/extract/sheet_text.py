"""The cells of a sheet as text: a row one line, cells divided by bars, and every part with the table's header before it.

Columns without any content are left out, so that the others stand under one another in every row. Rows are held as one string
each until the sheet is complete: merged cells, links and the columns in use are known only then.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from jambacli.documents.extract.pieces import MAX_TEXT, PART_CHARS, DocumentPart, parts_of_lines
from jambacli.documents.extract.rows import Cell, Line, Rows
from jambacli.errors import BadFileError
from jambacli.units import counted

#: A cell's column, counted from 0, and its text.
CellText = tuple[int, str]
#: The rows and columns of a workbook's largest sheet.
MAX_ROWS, MAX_COLUMNS = 1 << 20, 1 << 14
# A longer header is not repeated, and it is one of the first rows of its table.
_MAX_HEADER, _HEADER_ROWS, _TABLE_ROWS = 1000, 8, 40
_BETWEEN, _AFTER_COLUMN = "\x1e", "\x1f"
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
# Merged ranges and links of a sheet beyond these are not looked at.
_EVERY = 5000
_MOST_RANGES, _MOST_OPEN = 200_000, 1000


@dataclass
class Left:
    """What was left out of a workbook, for the remarks. ``rows`` and ``columns``: hidden ones, by sheet."""

    sheets: list[str] = field(default_factory=list)
    rows: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    covered: int = 0
    formatted_away: int = 0
    outside: int = 0
    not_computed: int = 0
    perhaps_not_computed: int = 0
    pictures: int = 0
    objects: int = 0
    more: list[str] = field(default_factory=list)

    def remarks(self) -> list[str]:
        """A line for each kind of thing."""

        def said(number: int, noun: str, what: str) -> None:
            if number:
                lines.append(f"{counted(number, noun)} {'was' if number == 1 else 'were'} {what}")

        lines: list[str] = []
        said(len(self.sheets), "hidden sheet", f"left out: {_named(self.sheets)}")
        for what, found in (("row", self.rows), ("column", self.columns)):
            said(sum(found.values()), f"hidden {what}", f"left out (in {_named(list(found))})")
        said(self.formatted_away, "value", "left out: their number format hides them")
        said(self.covered, "cell", "left out: a merged cell hides them")
        said(self.outside, "cell", "left out: they lie outside of any sheet")
        one = self.not_computed == 1
        said(
            self.not_computed,
            "formula",
            f"read instead of {'its value' if one else 'their values'}: no program has computed "
            f"{'it' if one else 'them'} yet; open the file in a spreadsheet program and save it",
        )
        if self.perhaps_not_computed:
            lines.append(
                f"{counted(self.perhaps_not_computed, 'formula')} with the value 0 may never have been computed: the file "
                "asks to be computed when it is opened; open it in a spreadsheet program and save it"
            )
        said(self.pictures, "picture", "left out; text in them is not read")
        said(self.objects, "embedded object or form control", "left out")
        return lines + self.more


def _named(names: Sequence[str]) -> str:
    shown = [name if len(name) <= 40 else f"{name[:37]}..." for name in names[:8]]
    return ", ".join(shown) + (", ..." if len(names) > 8 else "")


class Sheet:
    """One sheet, filled row by row. ``number``: counted from 1, hidden sheets included. ``name``: of its file, for errors.

    ``tail``: lines after the rows, such as charts and text boxes. ``head``: lines before them. ``alive`` is called now
    and then.
    """

    def __init__(
        self, number: int, title: str, name: str, left: Left, alive: Callable[[], None] = lambda: None
    ) -> None:
        self.number, self.title = number, " ".join(_CONTROL.sub("", title).split())
        self.head: list[str] = []
        self.tail: list[str] = []
        self._name, self._left, self._alive = name, left, alive
        self._rows: list[tuple[int, str]] = []
        self._used: set[int] = set()
        self._chars = 0
        self._hidden_columns = bytearray(MAX_COLUMNS)
        self._hidden_rows: set[int] = set()
        self._after: dict[int, dict[int, str]] = {}
        self._merged: list[tuple[int, int, int, int]] = []

    def add(self, row: int, cells: Iterable[CellText], *, hidden: bool = False) -> None:
        """A row, counted from 1, in rising order, with its cells in rising order. ``hidden``: it is not shown."""
        inside = [(column, text) for column, text in cells if text]
        kept = [(column, text) for column, text in inside if column < MAX_COLUMNS]
        self._left.outside += len(inside) - len(kept)
        if hidden:
            self._hidden_rows.add(row)
        if not kept:
            return
        if hidden:
            self._left.rows[self.title] += 1
            return
        self._used.update([column for column, _ in kept])
        packed = _BETWEEN.join([f"{column}{_AFTER_COLUMN}{_clean(text)}" for column, text in kept])
        self._chars += len(packed)
        if self._chars > 2 * MAX_TEXT:
            raise BadFileError(self._name, f"contains more than {MAX_TEXT >> 20} MB of text; split it")
        self._rows.append((row, packed))

    def hide_columns(self, first: int, last: int) -> None:
        """Columns, counted from 0, that are not shown."""
        first, last = max(0, first), min(last, MAX_COLUMNS - 1)
        if first <= last:
            self._hidden_columns[first : last + 1] = b"\1" * (last + 1 - first)

    def merge(self, first_row: int, first: int, last_row: int, last: int) -> None:
        """A merged range, of which only the first cell is shown."""
        if len(self._merged) < _MOST_RANGES and (first_row < last_row or first < last):
            self._merged.append((first_row, first, last_row, last))

    def append(self, row: int, column: int, text: str) -> None:
        """Text after that of a cell: a comment, the address of a link."""
        if row <= MAX_ROWS and 0 <= column < MAX_COLUMNS and text:
            found = self._after.setdefault(row, {})
            found[column] = f"{found[column]} {text}" if column in found else text

    def formatted_away(self) -> None:
        """A value is hidden by its format."""
        self._left.formatted_away += 1

    def lines(self) -> Iterator[tuple[int, str]]:
        """Row numbers and lines; a blank one between tables."""
        columns, rows = self._prepared()
        for text in self.head:
            yield (rows[0][0] if rows else 1), text
        before = 0
        for count, (row, packed) in enumerate(rows):
            if count % _EVERY == 0:
                self._alive()
            if before and not self._adjacent(before, row):
                yield row - 1, ""
            before = row
            for text in _row_lines(self._cells(packed), columns):
                yield row, text
        if self.tail and before:
            yield before, ""
        for text in self.tail:
            yield max(1, before), text

    def parts(self) -> Iterator[DocumentPart]:
        """The text in parts. Those after a table's header begin with it."""
        columns, rows = self._prepared()
        numbers = [row for row, _ in rows]
        starts = [i for i in range(len(rows)) if i == 0 or not self._adjacent(numbers[i - 1], numbers[i])]
        headers = _headers(numbers, starts, lambda i: self._cells(rows[i][1]), columns)
        found = list(parts_of_lines(self.lines()))
        at, header = 0, None
        for part in found:
            while at < len(headers) and headers[at].row < part.first:
                header = headers[at] if headers[at].text else None
                at += 1
            text = part.text
            if header is not None and header.row < part.first <= header.last:
                text = f"{header.text}\n{text}"
            where = f"rows {part.first}-{part.last}" if part.first < part.last else f"row {part.first}"
            label = f"{self.title}, {where}" if self.title else where
            yield DocumentPart(text, self.number, self.number, label if len(found) > 1 else self.title)

    def _adjacent(self, before: int, row: int) -> bool:
        """Whether there is no empty row between two rows, hidden ones apart."""
        return all(between in self._hidden_rows for between in range(before + 1, row))

    def _prepared(self) -> tuple[dict[int, int], list[tuple[int, str]]]:
        """For each column that is shown its place, and the rows."""
        hidden = {c for c in self._used if self._hidden_columns[c]}
        if hidden and self.title not in self._left.columns:
            self._left.columns[self.title] = len(hidden)
        if self._after or self._merged:
            self._settle()
        self._used -= hidden
        return {column: place for place, column in enumerate(sorted(self._used))}, self._rows

    def _settle(self) -> None:
        """Put texts after their cells, and remove cells under merged ones."""
        after, self._after = self._after, {}
        known = {row for row, _ in self._rows}
        rows = self._rows + [(row, "") for row in after if row not in known and row not in self._hidden_rows]
        rows.sort(key=lambda r: r[0])
        ranges = _Ranges(self._merged)
        settled = []
        for count, (row, packed) in enumerate(rows):
            if count % _EVERY == 0:
                self._alive()
            covering = ranges.at(row)
            all_cells = self._cells(packed)
            cells = {c: t for c, t in all_cells if not any(_covers(r, row, c) for r in covering)}
            self._left.covered += len(all_cells) - len(cells)
            for column, text in after.get(row, {}).items():
                if not self._hidden_columns[column]:
                    cells[column] = f"{cells.get(column, '')} {_clean(text)}".strip()
                    self._used.add(column)
            settled.append((row, _BETWEEN.join([f"{c}{_AFTER_COLUMN}{cells[c]}" for c in sorted(cells)])))
        self._merged = []
        self._rows = [(row, packed) for row, packed in settled if packed]

    @staticmethod
    def _cells(packed: str) -> list[CellText]:
        cells = []
        for one in packed.split(_BETWEEN) if packed else ():
            column, _, text = one.partition(_AFTER_COLUMN)
            cells.append((int(column), text))
        return cells


#: A merged range: its first row and column, its last row and column.
_Range = tuple[int, int, int, int]


def _covers(merged: _Range, row: int, column: int) -> bool:
    first_row, first, last_row, last = merged
    return first_row <= row <= last_row and first <= column <= last and (row, column) != (first_row, first)


class _Ranges:
    """Merged ranges by row, for rows in rising order."""

    def __init__(self, ranges: list[_Range]) -> None:
        self._waiting = sorted(ranges, reverse=True)
        self._open: list[_Range] = []

    def at(self, row: int) -> list[_Range]:
        """The ranges that cover cells of a row."""
        self._open = [r for r in self._open if r[2] >= row]
        while self._waiting and self._waiting[-1][0] <= row:
            found = self._waiting.pop()
            if found[2] >= row and len(self._open) < _MOST_OPEN:
                self._open.append(found)
        return self._open


def _clean(text: str) -> str:
    if text.isprintable():
        return text
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def _row_lines(cells: list[CellText], columns: dict[int, int]) -> Iterator[str]:
    shown = [(columns[column], text.strip()) for column, text in cells if column in columns and text.strip()]
    if not shown:
        return
    if sum(len(text) for _, text in shown) < PART_CHARS // 2 and not any("\n" in text for _, text in shown):
        texts = [""] * (shown[-1][0] + 1)
        for place, text in shown:
            texts[place] = text
        yield " | ".join(texts)
        return
    filled = {place: [Line(0, line) for line in text.split("\n") if line.strip()] for place, text in shown}
    for line in Rows().lines([Cell(lines=filled.get(place, [])) for place in range(shown[-1][0] + 1)]):
        yield line.text


@dataclass(frozen=True)
class _Header:
    """A table's header, "" for none, the number of its row, and of the last row that it belongs to."""

    row: int
    text: str
    last: int


def _headers(
    numbers: Sequence[int], starts: Sequence[int], cells: Callable[[int], list[CellText]], columns: dict[int, int]
) -> list[_Header]:
    """The headers of the tables of a sheet. A table is a block of rows without an empty one between them. One without a
    header of its own continues the table before it if it has no other columns."""
    found: list[_Header] = []
    current: tuple[str, frozenset[int]] | None = None
    for start, stop in pairwise([*starts, len(numbers)]):
        block = [
            [(columns[c], t) for c, t in cells(i) if c in columns] for i in range(start, min(stop, start + _TABLE_ROWS))
        ]
        last = numbers[stop - 1]
        at = _header_row(block)
        if at is None:
            inside = frozenset(c for row in block for c, _ in row)
            kept = current if current is not None and inside <= current[1] else None
            found.append(_Header(numbers[start] - 1, kept[0] if kept else "", last))
            continue
        text = "\n".join(_row_lines(cells(start + at), columns))
        text = text if len(text) < _MAX_HEADER else ""
        current = (text, frozenset(c for row in block for c, _ in row))
        found.append(_Header(numbers[start + at], text, last))
    return found


def _header_row(block: list[list[CellText]]) -> int | None:
    """The first row of a table with nearly as many cells as most have, if it names things."""
    if len(block) < 3:
        return None
    usual = Counter(len(row) for row in block).most_common(1)[0][0]
    for i, row in enumerate(block[:_HEADER_ROWS]):
        if len(row) >= max(2, 0.75 * usual):
            named = sum(
                any(char.isalpha() for char in text) or bool(re.fullmatch(r"(19|20)\d\d", text)) for _, text in row
            )
            return i if 2 * named > len(row) else None
    return None
