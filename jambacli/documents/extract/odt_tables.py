"""Tables of an OpenDocument text, and streams of paragraphs within others."""

from __future__ import annotations

from jambacli.documents.extract.odt_lists import number_of
from jambacli.documents.extract.odt_paragraphs import Paragraphs
from jambacli.documents.extract.odt_state import Context, Frame, Table
from jambacli.documents.extract.rows import Cell

# Repeated cells and rows of a table that are read; spreadsheets repeat empty ones to their last column and row.
_MOST_COLUMNS, _MOST_ROWS = 64, 200
_Values = dict[str, str]


class Tables(Paragraphs):
    """Reads them."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._fields: list[bool] = []
        self._embedded = False

    def _start_section(self, tag: str, values: _Values) -> None:
        display = values.get("text:display")
        hidden = display == "none" or (display == "condition" and values.get("text:is-hidden") == "true")
        self._fields.append(hidden)
        self._hidden += hidden

    def _start_field(self, tag: str, values: _Values) -> None:
        """An element within a paragraph whose content is what it shows, unless it says that it shows nothing."""
        hidden = values.get("text:display") == "none"
        self._fields.append(hidden)
        self._hidden += hidden

    def _end_field(self, tag: str) -> None:
        if self._fields:
            self._hidden -= self._fields.pop()

    # Frames

    def _start_frame(self, tag: str, values: _Values) -> None:
        self._frames.append(self._frame)
        self._frame = Frame()

    def _finish_frame(self) -> None:
        frame = self._frame
        if frame.paragraph is not None:
            self._end_paragraph("")
        while frame.tables:  # cells outside of a table
            self._end_cell("")
            self._end_row("")
            self._end_table("")

    def _leave_frame(self) -> Frame:
        self._finish_frame()
        done = self._frame
        self._frame = self._frames.pop() if self._frames else Frame()
        return done

    # Tables

    def _start_table(self, tag: str, values: _Values) -> None:
        if self._frame.paragraph is not None:
            self._end_paragraph(tag)
        style = self._styles.look("table", values.get("table:style-name", ""))
        if not self._frame.tables:
            self._begin_page(style)
        self._frame.tables.append(Table())

    def _end_table(self, tag: str) -> None:
        frame = self._frame
        if frame.tables:
            frame.tables.pop()
        if not frame.tables:
            frame.lines += frame.after
            frame.after = []

    def _start_row(self, tag: str, values: _Values) -> None:
        table = self._table()
        table.cells = []
        table.row_times = max(1, number_of(values.get("table:number-rows-repeated"), 1))
        hidden = self._embedded and values.get("table:visibility") in ("collapse", "filter")
        self._fields.append(hidden)
        self._hidden += hidden

    def _end_row(self, tag: str) -> None:
        frame, table = self._frame, self._table()
        lines = list(table.rows.lines(table.cells))
        outer = frame.tables[-2].cell if len(frame.tables) > 1 else None
        sink = outer.lines if outer else frame.lines
        sink.extend(lines)
        if lines and table.row_times > 1:
            for _ in range(min(table.row_times, _MOST_ROWS) - 1):
                sink.extend(table.rows.lines(table.cells))
            self.context.left.rows += max(0, table.row_times - _MOST_ROWS)
        table.cells = []
        if len(frame.tables) == 1:
            frame.lines += frame.after
            frame.after = []
            if not self._frames:
                self._place, self._number = -1, self._number + 1
        if tag:
            self._end_field(tag)

    def _start_cell(self, tag: str, values: _Values) -> None:
        table = self._table()
        columns = number_of(values.get("table:number-columns-spanned"), 1)
        rows = number_of(values.get("table:number-rows-spanned"), 1)
        table.cell = Cell(max(1, min(columns, 1000)), max(1, min(rows, 1 << 20)))
        table.cell_times = max(1, min(number_of(values.get("table:number-columns-repeated"), 1), _MOST_COLUMNS))
        table.covered = tag == "table:covered-table-cell"
        self._hidden += table.covered

    def _end_cell(self, tag: str) -> None:
        if self._frame.paragraph is not None:
            self._end_paragraph(tag)
        table = self._table()
        if table.cell is not None and not table.covered:
            room = max(1, _MOST_COLUMNS - len(table.cells)) if table.cell_times > 1 else 1
            table.cells += [table.cell] * min(table.cell_times, room)
        self._hidden -= table.covered
        table.cell, table.covered = None, False

    def _table(self) -> Table:
        if not self._frame.tables:
            self._frame.tables.append(Table())
        return self._frame.tables[-1]
