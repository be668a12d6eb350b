"""Text of the drawings of OpenDocument files in reading order: text boxes, tables, charts, groups, alternative texts of
pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from jambacli.documents.extract.reading_order import Box, in_reading_order
from jambacli.documents.extract.rows import Cell, Line, Rows

#: Elements that are shapes.
SHAPES = frozenset(
    ("draw:frame", "draw:custom-shape", "draw:rect", "draw:ellipse", "draw:circle", "draw:line", "draw:connector",
     "draw:polyline", "draw:polygon", "draw:path", "draw:regular-polygon", "draw:g", "draw:caption", "draw:measure",
     "draw:page-thumbnail", "draw:control")
)  # fmt: skip
_INCHES = {"cm": 1 / 2.54, "mm": 1 / 25.4, "in": 1.0, "pt": 1 / 72, "pc": 1 / 6, "px": 1 / 96}
_LENGTH = re.compile(r"(-?[\d.]+)(cm|mm|in|pt|pc|px)")
_TRANSLATE = re.compile(r"translate\s*\(\s*(\S+?)[\s,]+(\S+?)\s*\)")
_NOT_SHOWN = frozenset(
    ("office:annotation", "officeooo:annotation", "text:note", "text:ruby-text", "svg:desc", "svg:title")
)
_DEPTH, _REPEATS = 60, 1000


@dataclass(frozen=True)
class Shape:
    """A shape. ``role``: what it is on a slide ("title", "outline", "notes" ...), "" for others."""

    element: Element
    box: Box | None
    role: str


class Drawing:
    """Reads shapes. ``tree_of``: the content of an embedded object by its address.

    ``pictures``, ``objects``, ``media``, ``hidden``: how many were left out.
    """

    def __init__(self, tree_of: Callable[[str], Element | None]) -> None:
        self.pictures = self.objects = self.media = self.hidden = 0
        self._tree_of = tree_of

    def shapes(self, container: Element) -> list[Shape]:
        """The shapes within an element, in reading order, titles first."""
        found = [_shape(e) for e in container if e.tag in SHAPES]
        titles = [s for s in found if s.role == "title"]
        return titles + in_reading_order([s for s in found if s.role != "title"], lambda shape: shape.box)

    def shape_lines(self, element: Element, depth: int = 0) -> list[str]:
        """The lines of one shape."""
        if element.get("presentation:placeholder") == "true" or depth > _DEPTH:
            return []
        if element.tag == "draw:g":
            return [line for shape in self.shapes(element) for line in self.shape_lines(shape.element, depth + 1)]
        if element.tag == "draw:control":
            self.objects += 1
            return []
        if element.tag != "draw:frame":
            return paragraphs(element)
        words = " ".join(_plain(element.find(name)) for name in ("svg:title", "svg:desc")).split()
        for content in element:
            match content.tag:
                case "draw:text-box":
                    inner = [line for e in content if e.tag in SHAPES for line in self.shape_lines(e, depth + 1)]
                    return paragraphs(content) + inner
                case "table:table":
                    return table_lines(content)
                case "draw:object":
                    return self._object(content)
                case "draw:object-ole" | "draw:applet" | "draw:floating-frame":
                    self.objects += 1
                    return []
                case "draw:plugin":
                    self.media += 1
                    return []
                case "draw:image":
                    self.pictures += not words
                    return [f"[{' '.join(words)}]"] if words else []
        return []

    def _object(self, element: Element) -> list[str]:
        root = self._tree_of(element.get("xlink:href", ""))
        chart = next((e for e in root.iter("chart:chart")), None) if root is not None else None
        if chart is None:
            self.objects += 1
            return []
        return chart_lines(chart)


def _shape(element: Element) -> Shape:
    sizes = [_length(element.get(f"svg:{name}")) for name in ("x", "y", "width", "height")]
    x, y, width, height = sizes
    if (moved := _TRANSLATE.search(element.get("draw:transform", ""))) is not None:
        x, y = _length(moved[1]), _length(moved[2])
    if element.get("svg:x1") is not None:
        ends = [_length(element.get(f"svg:{name}")) or 0.0 for name in ("x1", "y1", "x2", "y2")]
        box = Box(min(ends[0], ends[2]), min(ends[1], ends[3]), max(ends[0], ends[2]), max(ends[1], ends[3]))
        return Shape(element, box, "")
    if element.tag == "draw:g":
        boxes = [b for e in element if e.tag in SHAPES and (b := _shape(e).box) is not None][:_REPEATS]
        if boxes:
            left, top = min(b.left for b in boxes), min(b.top for b in boxes)
            return Shape(element, Box(left, top, max(b.right for b in boxes), max(b.bottom for b in boxes)), "")
    box_or_none = None if x is None or y is None else Box(x, y, x + (width or 0), y + (height or 0))
    return Shape(element, box_or_none, element.get("presentation:class", ""))


def _length(text: str | None) -> float | None:
    """A length in inches."""
    found = _LENGTH.fullmatch(text or "")
    try:
        return float(found[1]) * _INCHES[found[2]] if found else None
    except ValueError:
        return None


# Text


def paragraphs(container: Element) -> list[str]:
    """The paragraphs and lists within an element as lines, deeper levels of lists indented."""
    return [line for line in _lines(container, 0, 0) if line.strip()]


def _lines(container: Element, level: int, depth: int) -> Iterator[str]:
    for element in container:
        if element.tag in ("text:p", "text:h"):
            for line in inline(element).split("\n"):
                yield "  " * max(0, level - 1) + line.strip()
        elif element.tag in ("text:list", "text:list-item", "text:list-header", "text:section") and depth < _DEPTH:
            yield from _lines(element, min(8, level + (element.tag == "text:list")), depth + 1)


def inline(element: Element, depth: int = 0) -> str:
    """The text of a paragraph; white space counts as in the format: runs of it are one space."""
    out = [_spaces(element.text)]
    for part in element:
        match part.tag:
            case "text:s":
                count = part.get("text:c", "1")
                out.append(" " * min(int(count) if count.isdigit() and len(count) < 5 else 1, _REPEATS))
            case "text:tab":
                out.append(" ")
            case "text:line-break":
                out.append("\n")
            case _ if part.tag not in _NOT_SHOWN and part.tag not in SHAPES and depth < _DEPTH:
                out.append(inline(part, depth + 1))
        out.append(_spaces(part.tail))
    return "".join(out)


def _spaces(text: str | None) -> str:
    return re.sub(r"[ \t\r\n]+", " ", text) if text else ""


def _plain(element: Element | None) -> str:
    return "".join(element.itertext()) if element is not None else ""


def comment_text(element: Element) -> str:
    """What an annotation says, without its author and date."""
    return " ".join(" ".join(inline(p).split()) for p in element.iter("text:p")).strip()


def repeated(element: Element, name: str) -> int:
    """How often a row or a cell stands for itself, at most 1,000 times."""
    count = element.get(f"table:number-{name}-repeated", "1")
    return min(int(count), _REPEATS) if count.isdigit() and len(count) < 10 else 1


def table_lines(table: Element) -> list[str]:
    """A table's rows. Cells that are merged into others are there, and empty."""
    rows = Rows()
    lines: list[str] = []
    for row in table.iter("table:table-row"):
        cells = []
        for cell in row:
            if cell.tag in ("table:table-cell", "table:covered-table-cell"):
                texts = paragraphs(cell) if cell.tag == "table:table-cell" else []
                cells += [Cell(lines=[Line(0, text) for text in texts])] * repeated(cell, "columns")
        while cells and not cells[-1].lines:
            cells.pop()
        for _ in range(repeated(row, "rows") if cells else 0):
            lines += [line.text for line in rows.lines(cells)]
    return lines


def chart_lines(chart: Element) -> list[str]:
    """A chart's title, and for each series its name and ``category: value`` of each point."""
    title = chart.find("chart:title")
    words = " ".join(_plain(title).split())
    lines = [f"[Chart: {words}]" if words else "[Chart]"]
    table = next(chart.iter("table:table"), None)
    grid: list[list[str]] = []
    for row in table.iter("table:table-row") if table is not None else ():
        grid.append([text for cell in row for text in [_cell(cell)] * repeated(cell, "columns")])
    names, points = (grid[0], grid[1:]) if grid else ([], [])
    for column in range(1, len(names)):
        pairs = [(row[0], row[column]) for row in points if len(row) > column and row[column] not in ("", "NaN")]
        values = ", ".join(f"{label}: {value}" if label else value for label, value in pairs)
        if values:
            lines.append(f"{names[column]}: {values}" if names[column] else values)
    return lines


def _cell(cell: Element) -> str:
    return " ".join(" ".join(paragraphs(cell)).split()) or cell.get("office:value", "")
