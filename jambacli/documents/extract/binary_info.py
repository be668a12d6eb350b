"""What is known of the sheets of a binary workbook besides their values."""

from __future__ import annotations

from dataclasses import dataclass, field

from jambacli.documents.extract.number_format import NumberFormat
from jambacli.documents.extract.sheet_text import MAX_COLUMNS, Left

#: The values of cells whose formula failed, by their codes.
ERRORS = {
    0: "#NULL!",
    7: "#DIV/0!",
    15: "#VALUE!",
    23: "#REF!",
    29: "#NAME?",
    36: "#NUM!",
    42: "#N/A",
    43: "#GETTING_DATA",
}


@dataclass
class SheetInfo:
    """What is known of a sheet besides its values. Rows from 1, columns from 0; cells by ``key``.

    ``formats``: of cells that have one. ``last``: the last row and column with a cell. ``tail``: lines of text boxes and
    charts."""

    formats: dict[int, NumberFormat] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    hidden_rows: set[int] = field(default_factory=set)
    hidden_columns: list[tuple[int, int]] = field(default_factory=list)
    merged: list[tuple[int, int, int, int]] = field(default_factory=list)
    notes: list[tuple[int, int, str]] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)
    first: tuple[int, int] | None = None
    last: tuple[int, int] = (0, 0)

    def cell(self, row: int, column: int, shape: NumberFormat | None) -> None:
        """There is a cell, with its format."""
        if shape is not None:
            self.formats[key(row, column)] = shape
        first = self.first or (row, column)
        self.first = min(first[0], row), min(first[1], column)
        self.last = max(self.last[0], row), max(self.last[1], column)


@dataclass
class BookInfo:
    """What is known of a workbook. ``sheets``: by name."""

    sheets: dict[str, SheetInfo] = field(default_factory=dict)
    from_1904: bool = False
    left: Left = field(default_factory=Left)


def key(row: int, column: int) -> int:
    """A cell's number, for dictionaries."""
    return row * MAX_COLUMNS + column
