"""Tables that a person builds by naming columns: the schema for them, and the rows as CSV, JSON or Markdown."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jambacli.server.errors import bad_request, not_found

#: Columns of a table; characters of a column's name and description, and of an instruction.
MOST_COLUMNS, _NAME, _DESCRIPTION, INSTRUCTION = 24, 60, 400, 4000
# What the values of a column are, in JSON schema.
TYPES: Mapping[str, Mapping[str, Any]] = {
    "text": {"type": "string"},
    "number": {"type": ["number", "null"]},
    "date": {"type": "string", "description": "a date as YYYY-MM-DD, or empty"},
    "yes/no": {"type": ["boolean", "null"]},
}
# The rows of a table, and what a spreadsheet takes for a formula.
_ROWS = 1000
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


@dataclass(frozen=True)
class Column:
    """A column: its name, one of ``TYPES``, and what is to stand in it."""

    name: str
    type: str = "text"
    description: str = ""

    def to_json(self) -> dict[str, str]:
        """The column as the page has it."""
        more = {"description": self.description} if self.description else {}
        return {"name": self.name, "type": self.type, **more}


def read_columns(value: Any) -> list[Column]:
    """The columns in a body. Raises ApiError."""
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_COLUMNS:
        raise bad_request(f"the field 'columns' must be a list of 1 to {MOST_COLUMNS} columns", "columns")
    columns = []
    for i, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise bad_request(f"columns[{i}] must be an object with a name", "columns")
        name, kind, what = item.get("name"), item.get("type") or "text", item.get("description") or ""
        if not isinstance(name, str) or not (name := _line(name)) or len(name) > _NAME:
            raise bad_request(f"columns[{i}] needs a name of at most {_NAME} characters", "columns")
        if kind not in TYPES:
            raise bad_request(f"columns[{i}] has a type that is none of {', '.join(TYPES)}", "columns")
        if not isinstance(what, str) or len(what) > _DESCRIPTION:
            raise bad_request(f"columns[{i}] has a description that is no text of {_DESCRIPTION} characters", "columns")
        columns.append(Column(name, kind, _line(what)))
    names = [column.name.casefold() for column in columns]
    if len(set(names)) < len(names):
        raise bad_request("two columns have the same name", "columns")
    return columns


def schema_of(columns: Sequence[Column]) -> dict[str, Any]:
    """The schema of a reply with rows of these columns."""
    properties = {}
    for column in columns:
        schema = dict(TYPES[column.type])
        said = [text for text in (column.description, schema.get("description")) if text]
        properties[column.name] = {**schema, **({"description": "; ".join(said)} if said else {})}
    row = {
        "type": "object",
        "properties": properties,
        "required": [c.name for c in columns],
        "additionalProperties": False,
    }
    rows = {"type": "array", "items": row, "maxItems": _ROWS}
    return {"type": "object", "properties": {"rows": rows}, "required": ["rows"], "additionalProperties": False}


def table_instruction(columns: Sequence[Column], instruction: str = "") -> str:
    """What the model is asked for."""
    names = ", ".join(column.name for column in columns)
    text = instruction.strip() or f"List everything in the documents that has these properties: {names}."
    return f"{text}\nOne row for each. Take only what the documents say; leave out what they do not."


def table_of(text: str, columns: Sequence[Mapping[str, str]]) -> dict[str, Any] | None:
    """The table in a reply, None if it is not whole."""
    try:
        rows = json.loads(text)["rows"]
        found = [[row.get(column["name"]) for column in columns] for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return {"columns": [dict(column) for column in columns], "rows": [[_cell(value) for value in row] for row in found]}


def as_csv(table: Mapping[str, Any]) -> bytes:
    """A table for spreadsheets: UTF-8 with its mark, and no text that they would take for a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow([_harmless(column["name"]) for column in table["columns"]])
    writer.writerows([_harmless(value) for value in row] for row in table["rows"])
    return out.getvalue().encode("utf-8-sig", "replace")


def as_json(table: Mapping[str, Any]) -> bytes:
    """A table as a list of objects."""
    names = [column["name"] for column in table["columns"]]
    rows = [dict(zip(names, row, strict=True)) for row in table["rows"]]
    return json.dumps(rows, ensure_ascii=False, indent=2).encode("utf-8", "replace") + b"\n"


def as_markdown(table: Mapping[str, Any]) -> bytes:
    """A table as Markdown, whose cells are plain text."""
    lines = [_row([column["name"] for column in table["columns"]]), _row(["---"] * len(table["columns"]), plain=True)]
    lines += [_row(row) for row in table["rows"]]
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


#: By the ending of a file: how a table is written, and its type.
FORMATS = {
    "csv": (as_csv, "text/csv; charset=utf-8"),
    "json": (as_json, "application/json"),
    "md": (as_markdown, "text/markdown; charset=utf-8"),
}


def table_file(table: Mapping[str, Any] | None, form: str) -> tuple[bytes, str]:
    """A table as the bytes and the type of a file. Raises ApiError for another form, or no table."""
    if form not in FORMATS:
        raise bad_request(f"the parameter 'format' must be one of {', '.join(FORMATS)}", "format")
    if table is None:
        raise not_found("this message has no table")
    write, kind = FORMATS[form]
    return write(table), kind


def _cell(value: Any) -> str | int | float | bool | None:
    return value if isinstance(value, str | int | float | bool) or value is None else json.dumps(value)


def _harmless(value: Any) -> Any:
    """A cell as text that no spreadsheet computes; numbers stay numbers."""
    if not isinstance(value, str):
        return "" if value is None else value
    text = value.replace("\x00", "")
    # Spaces before a formula do not make it harmless everywhere.
    return f"'{text}" if text.lstrip(" \u00a0").startswith(_FORMULA) or text.startswith(_FORMULA) else text


def _row(values: Sequence[Any], plain: bool = False) -> str:
    cells = [str(v) if plain else _escaped("" if v is None else str(v)) for v in values]
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#!~&])", r"\\\1", " ".join(text.split()))


def _line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
