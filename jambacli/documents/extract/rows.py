"""Cells -> rows: one line with bars for a row of data, the lines of the cells for a row that only lays out a page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

# A row with a cell of more lines than this, or more text, lays out a page.
_LINES, _CHARS = 8, 2000
# Empty cells that a merged one may stand for.
_MOST_COLUMNS = 64


@dataclass
class Line:
    """A line of text and where it is. ``cells``: of a table's row, what is in it."""

    at: int
    text: str
    cells: tuple[str, ...] = ()


@dataclass
class Cell:
    """The lines of a cell, and how many columns and rows it takes."""

    columns: int = 1
    rows: int = 1
    lines: list[Line] = field(default_factory=list)

    def text(self) -> str:
        """The lines as one: rows of a nested table divided by semicolons."""
        out, after_row = "", False
        for line in self.lines:
            text = " ".join(filter(None, line.cells)) if line.cells else " ".join(line.text.split())
            out += ("; " if after_row and line.cells else " ") + text
            after_row = bool(line.cells)
        return out.strip()


class Rows:
    """The rows of one table. Knows which columns are taken by cells of rows above."""

    def __init__(self, *, layout: bool = False) -> None:
        self._layout = layout
        self._taken: dict[int, int] = {}

    def lines(self, cells: list[Cell]) -> Iterator[Line]:
        """The lines of a row; none if it is empty. Empty cells are kept, so that columns line up."""
        filled = [cell for cell in cells if cell.lines]
        texts = self._columns(cells)
        if not filled:
            return
        size = sum(len(line.text) for cell in filled for line in cell.lines)
        most = max(len(cell.lines) for cell in filled)
        if len(cells) == 1 and len(texts) == 1:
            yield from filled[0].lines
        elif (len(filled) == 1 and most > 1) or most > _LINES or size > _CHARS or self._layout:
            for cell in filled:
                yield from cell.lines
        else:
            yield Line(filled[0].lines[0].at, " | ".join(texts), tuple(texts))

    def _columns(self, cells: list[Cell]) -> list[str]:
        """The text of every column up to the last cell; "" where a cell of this row or one above is merged into it."""
        texts: list[str] = []
        last = 0
        for cell in cells:
            self._skip(texts)
            texts.append(cell.text())
            last = len(texts)
            for column in range(last - 1, min(last - 1 + cell.columns, _MOST_COLUMNS)):
                if cell.rows > 1:
                    self._taken[column] = cell.rows - 1
            texts += [""] * (min(cell.columns, _MOST_COLUMNS) - 1)
        for column in [c for c in self._taken if c >= len(texts)]:
            self._use(column)
        return texts[:last]

    def _skip(self, texts: list[str]) -> None:
        while self._taken.get(len(texts)):
            self._use(len(texts))
            texts.append("")

    def _use(self, column: int) -> None:
        self._taken[column] -= 1
        if not self._taken[column]:
            del self._taken[column]
