"""Text of a Jupyter notebook by cell: Markdown, code and text outputs. Images and other data are left out, and said."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jambacli.documents.extract.pieces import PART_CHARS, DocumentPart, parts_of_lines
from jambacli.documents.extract.plain import decode
from jambacli.errors import BadFileError
from jambacli.units import counted

# Terminal colours, as in tracebacks.
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
# Outputs that are text, best first. HTML repeats what text/plain says.
_TEXTS = ("text/markdown", "text/plain", "text/latex", "application/json", "text/html")
# An image within Markdown.
_EMBEDDED = re.compile(r"data:[\w.+/-]+;base64,[A-Za-z0-9+/=\s]{40,}?(?=[)\"'>\s]|\Z)")


def notebook_pieces(path: str, name: str) -> tuple[str, Iterator[DocumentPart], list[str]]:
    """The unit "cell", the pieces, and remarks on what was left out, complete after the last piece. Raises BadFileError naming
    ``name`` when the file is no notebook."""
    text, remark = decode(Path(path).read_bytes(), name)
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadFileError(name, "is a damaged notebook; open it in Jupyter and save it again") from error
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if cells is None and isinstance(notebook, dict):  # format 3
        sheets = [sheet for sheet in _list(notebook.get("worksheets")) if isinstance(sheet, dict)]
        cells = [cell for sheet in sheets for cell in _list(sheet.get("cells"))] if sheets else None
    if not isinstance(cells, list):
        raise BadFileError(name, "is not a notebook, despite its name; export it again")
    remarks = [remark] if remark else []
    return "cell", _pieces(cells, remarks, name), remarks


def _pieces(cells: list[Any], remarks: list[str], name: str) -> Iterator[DocumentPart]:
    dropped = 0
    held: list[str] = []
    first = last = length = 0
    found = False
    for number, cell in enumerate(cells, 1):
        text, left_out = _cell(cell)
        dropped += left_out
        if not text:
            continue
        found = True
        if held and length + len(text) > PART_CHARS:
            yield DocumentPart("\n\n".join(held), first, last)
            held, length = [], 0
        if len(text) > PART_CHARS:
            for part in parts_of_lines(enumerate(text.split("\n"), 1)):
                yield DocumentPart(part.text, number, number)
            continue
        first = first if held else number
        held.append(text)
        length += len(text)
        last = number
    if held:
        yield DocumentPart("\n\n".join(held), first, last)
    if dropped:
        remarks.append(f"{counted(dropped, 'image')} or other data in its cells left out")
    if not found:
        raise BadFileError(name, "contains no text")


def _cell(cell: Any) -> tuple[str, int]:
    """A cell's text, and how many images and other data were left out."""
    if not isinstance(cell, dict):
        return "", 0
    source, dropped = _without_data(_text(cell.get("source", cell.get("input"))))
    attachments = cell.get("attachments")
    dropped += len(attachments) if isinstance(attachments, dict) else 0
    kind = cell.get("cell_type")
    if kind == "heading":
        source = "#" * max(1, min(6, _int(cell.get("level")))) + " " + source
    blocks = [f"```\n{source.strip()}\n```" if kind == "code" and source.strip() else source.strip()]
    for output in _list(cell.get("outputs")):
        if isinstance(output, dict):
            text, lost = _output(output)
            dropped += lost
            blocks.append(f"Output:\n{text}" if text else "")
    return "\n".join(block for block in blocks if block), dropped


def _output(output: dict[str, Any]) -> tuple[str, int]:
    if output.get("output_type") in ("error", "pyerr"):
        trace = "\n".join(_text(line) for line in _list(output.get("traceback")))
        return _COLOURS.sub("", trace or f"{_text(output.get('ename'))}: {_text(output.get('evalue'))}").strip(), 0
    if "text" in output and "data" not in output:
        text, dropped = _without_data(_text(output["text"]))
        return _COLOURS.sub("", text).strip(), dropped
    data = output.get("data")
    if not isinstance(data, dict):  # format 3: the data stand beside the type
        data = {"image/png": output["png"]} if "png" in output else {}
    kinds = [kind for kind in _TEXTS if kind in data]
    others = sum(not kind.startswith(("text/", "application/json")) for kind in data if isinstance(kind, str))
    if not kinds:
        return "", max(others, len(data) > 0)
    value = data[kinds[0]]
    text = _text(value) if isinstance(value, (str, list)) else json.dumps(value, ensure_ascii=False)
    if kinds[0] == "text/html":
        text = re.sub(r"<[^<>]*>", " ", text)
    text, dropped = _without_data(text)
    return _COLOURS.sub("", text).strip(), others + dropped


def _without_data(text: str) -> tuple[str, int]:
    return _EMBEDDED.subn("(image)", text) if "base64," in text else (text, 0)


def _text(value: Any) -> str:
    return (
        "".join(line for line in value if isinstance(line, str))
        if isinstance(value, list)
        else value
        if isinstance(value, str)
        else ""
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _int(value: Any) -> int:
    return value if isinstance(value, int) else 1
