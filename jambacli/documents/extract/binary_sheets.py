"""Text of Excel's binary workbooks by sheet: .xls (until 2003) and .xlsb. Values are read by calamine; their number
formats, errors, comments and what is hidden, which it does not tell, by ``biff`` and ``xlsb``."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from jambacli.documents.extract.binary_info import BookInfo, SheetInfo, key
from jambacli.documents.extract.number_format import NumberFormat, general
from jambacli.documents.extract.pieces import DocumentPart
from jambacli.documents.extract.sheet_text import MAX_COLUMNS, CellText, Sheet
from jambacli.errors import BadFileError, JambaError

# calamine holds a sheet as a rectangle, with its empty cells.
MOST_CELLS = 20_000_000
_EVERY = 1000
_DAY = 86400.0
_EPOCHS = {False: datetime.datetime(1899, 12, 30), True: datetime.datetime(1904, 1, 1)}


def xls_pieces(
    path: str, name: str, alive: Callable[[], None] = lambda: None
) -> tuple[str, Iterator[DocumentPart], list[str]]:
    """The unit "sheet", the pieces, and remarks, complete after the last piece, of an .xls. Raises BadFileError naming
    ``name``."""
    from jambacli.documents.extract.biff import book_info

    remarks: list[str] = []
    return "sheet", _pieces(path, name, alive, remarks, book_info), remarks


def xlsb_pieces(
    path: str, name: str, alive: Callable[[], None] = lambda: None
) -> tuple[str, Iterator[DocumentPart], list[str]]:
    """The same of an .xlsb."""
    from jambacli.documents.extract.xlsb import book_info

    remarks: list[str] = []
    return "sheet", _pieces(path, name, alive, remarks, book_info), remarks


def _pieces(
    path: str,
    name: str,
    alive: Callable[[], None],
    remarks: list[str],
    book_info: Callable[[str, str, Callable[[], None]], BookInfo],
) -> Iterator[DocumentPart]:
    info = book_info(path, name, alive)
    left = info.left
    shown = 0
    with _library_errors(name) as calamine:
        book = calamine.CalamineWorkbook.from_path(path)
        for number, meta in enumerate(book.sheets_metadata, 1):
            alive()
            known = info.sheets.get(meta.name, SheetInfo())
            if meta.visible != calamine.SheetVisibleEnum.Visible:
                left.sheets.append(meta.name)
                continue
            sheet = Sheet(number, meta.name, name, left, alive)
            if meta.typ == calamine.SheetTypeEnum.WorkSheet and known.first is not None:
                _check_size(known, name)
                _fill(sheet, book.get_sheet_by_name(meta.name), known, info.from_1904, alive)
            elif meta.typ not in (calamine.SheetTypeEnum.WorkSheet, calamine.SheetTypeEnum.ChartSheet):
                left.more.append(f"the sheet {meta.name} was left out: it holds macros or a dialog")
            sheet.tail += known.tail
            for part in sheet.parts():
                shown += 1
                yield part
    remarks += left.remarks()
    if not shown:
        raise BadFileError(name, "contains no text" + (f" ({remarks[0]})" if remarks else ""))


@contextmanager
def _library_errors(name: str) -> Iterator[Any]:
    try:
        import python_calamine
    except ImportError as error:
        raise JambaError(f"{name}: reading .xls and .xlsb files needs: pip install 'jambacli[docs]'") from error
    try:
        yield python_calamine
    except python_calamine.PasswordError as error:
        raise BadFileError(name, "is protected by a password; save it without one") from error
    except (python_calamine.CalamineError, OSError) as error:
        raise BadFileError(name, f"is a damaged workbook ({error}); save it again, as .xlsx") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust, which is no Exception
            raise
        raise BadFileError(name, "is a damaged workbook; save it again, as .xlsx") from error


def _check_size(known: SheetInfo, name: str) -> None:
    assert known.first is not None
    rows, columns = known.last[0] - known.first[0] + 1, known.last[1] - known.first[1] + 1
    if rows * columns > MOST_CELLS:
        raise BadFileError(
            name, f"has a sheet of {rows:,} rows and {columns:,} columns, too large to read; save it as .xlsx"
        )


def _fill(sheet: Sheet, table: Any, known: SheetInfo, from_1904: bool, alive: Callable[[], None]) -> None:
    for first, last in known.hidden_columns:
        sheet.hide_columns(first, last)
    for merged in known.merged:
        sheet.merge(*merged)
    for row, column, text in known.notes:
        sheet.append(row, column, text)
    start = table.start
    if start is None:
        return
    errors: dict[int, dict[int, str]] = {}
    for cell, text in known.errors.items():
        errors.setdefault(cell // MAX_COLUMNS, {})[cell % MAX_COLUMNS] = text
    for row, values in enumerate(_rows(table), start[0] + 1):
        if row % _EVERY == 0:
            alive()
        cells = dict(_cells(values, row, start[1], known, from_1904, sheet))
        if (wrong := errors.get(row)) is not None:
            cells = dict(sorted((cells | wrong).items()))
        sheet.add(row, cells.items(), hidden=row in known.hidden_rows)


def _rows(table: Any) -> Iterable[list[Any]]:
    """The rows from the first with a value on."""
    rows: Iterable[list[Any]] = table.to_python(skip_empty_area=True)
    return rows


def _cells(
    values: list[Any], row: int, first: int, known: SheetInfo, from_1904: bool, sheet: Sheet
) -> Iterator[CellText]:
    for column, value in enumerate(values, first):
        if value == "" and isinstance(value, str):
            continue
        text = _shown(value, known.formats.get(key(row, column)), from_1904)
        if text:
            yield column, text
        else:
            sheet.formatted_away()


def _shown(value: Any, shape: NumberFormat | None, from_1904: bool) -> str:
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, str):
        return shape.text(value) if shape is not None else value
    number = _serial(value, from_1904)
    if number is None:
        return str(value)
    if shape is None:
        return general(number) if isinstance(value, int | float) else str(value)
    return shape.number(number, from_1904=from_1904)


def _serial(value: Any, from_1904: bool) -> float | None:
    """The number that a cell holds, of what calamine makes of it by its format."""
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, datetime.date):
        if not isinstance(value, datetime.datetime):
            value = datetime.datetime.combine(value, datetime.time())
        days = (value - _EPOCHS[from_1904]).total_seconds() / _DAY
        return days if from_1904 or days > 60 else days - 1  # the year 1900 has a 29 February
    if isinstance(value, datetime.timedelta):
        return value.total_seconds() / _DAY
    if isinstance(value, datetime.time):
        return (value.hour * 3600 + value.minute * 60 + value.second + value.microsecond / 1e6) / _DAY
    return None
