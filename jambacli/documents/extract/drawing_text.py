"""Text of drawings (DrawingML) in reading order: text boxes, tables, charts, diagrams, groups, alternative texts of pictures.

The shapes of presentations and of sheets have the same names within different namespaces, so names are compared without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from jambacli.documents.extract import formula
from jambacli.documents.extract.docx_drawings import chart_lines, diagram_lines
from jambacli.documents.extract.numerals import letters, roman
from jambacli.documents.extract.ooxml import attribute, short_name
from jambacli.documents.extract.reading_order import Box, in_reading_order
from jambacli.documents.extract.rows import Cell, Line, Rows

_SHAPES = frozenset(("sp", "grpSp", "graphicFrame", "pic", "cxnSp"))
_ANCHORS = frozenset(("twoCellAnchor", "oneCellAnchor", "absoluteAnchor", "relSizeAnchor", "absSizeAnchor"))
_MEDIA = frozenset(("videoFile", "audioFile", "wavAudioFile", "quickTimeFile", "audioCd"))
# Groups within groups beyond this depth are not looked into.
_DEPTH = 50


def local(element: Any) -> str:
    """The name of an element without its namespace."""
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def child(element: Any | None, *names: str) -> Any | None:
    """The descendant that a path of names leads to, each the first of its name."""
    for name in names:
        if element is None:
            return None
        element = next((e for e in element if local(e) == name), None)
    return element


@dataclass(frozen=True)
class Shape:
    """A shape of a drawing. ``placeholder``: its type ("title", "body" ...), "" for a shape that is none; ``index``: which
    of the layout's it is. ``box``: where it lies, None if its layout says so."""

    element: Any
    box: Box | None = None
    placeholder: str = ""
    index: str = ""


class Drawing:
    """Reads shapes. ``part_of``: the root of the part that a relationship's id leads to, None if it is missing.

    ``pictures``, ``objects``, ``media``, ``hidden``: how many were left out.
    """

    def __init__(self, part_of: Callable[[str | None], Any | None]) -> None:
        self.pictures = self.objects = self.media = self.hidden = 0
        self._part_of = part_of
        self._known: dict[str, list[str]] = {}

    def lines(self, root: Any) -> list[str]:
        """The lines of all shapes of a drawing."""
        return [line for shape in ordered(self.shapes(root)) for line in self.shape_lines(shape)]

    def shapes(self, container: Any) -> list[Shape]:
        """The shapes that stand in a drawing, a slide's tree or a group, in the order of the file, without hidden ones."""
        found: list[Shape] = []
        for element in container:
            name = local(element)
            if name in _ANCHORS:
                for shape in self.shapes(element):
                    found.append(replace(shape, box=_anchor_box(element)))
            elif name in ("AlternateContent", "Choice", "Fallback"):
                found += self._alternative(element)
            elif name in _SHAPES:
                shape = _shape(element)
                if _properties(element).get("hidden") in ("1", "true"):
                    self.hidden += 1
                else:
                    found.append(shape)
        return found

    def shape_lines(self, shape: Shape, depth: int = 0) -> list[str]:
        """The lines of one shape."""
        element = shape.element
        match local(element):
            case "sp" | "cxnSp":
                return paragraphs(child(element, "txBody"))
            case "pic":
                return self._picture(element)
            case "grpSp" if depth < _DEPTH:
                inner = ordered(self.shapes(element))
                return [line for one in inner for line in self.shape_lines(one, depth + 1)]
            case "graphicFrame":
                return self._graphic(element)
        return []

    def _alternative(self, element: Any) -> list[Shape]:
        """The shapes of the first choice that has any, else of the fallback."""
        if local(element) != "AlternateContent":
            return self.shapes(element)
        for choice in element:
            if shapes := self.shapes(choice):
                return shapes
        return []

    def _picture(self, element: Any) -> list[str]:
        properties = _properties(element)
        words = " ".join((properties.get("descr") or "").split())
        if any(local(e) in _MEDIA for e in element.iter()):
            self.media += 1
        elif not words:
            self.pictures += 1
        return [f"[{words}]"] if words else []

    def _graphic(self, element: Any) -> list[str]:
        data = child(element, "graphic", "graphicData")
        if data is None:
            return []
        for e in data.iter():
            match short_name(e.tag) if isinstance(e.tag, str) else "":
                case "a:tbl":
                    return table_lines(e)
                case "c:chart" | "cx:chart" if (identifier := attribute(e, "r:id")) is not None:
                    return self._part_lines(identifier, chart_lines)
                case "dgm:relIds":
                    return self._part_lines(attribute(e, "r:dm"), diagram_lines)
                case "p:oleObj":
                    return self._object()
        return []

    def _part_lines(self, identifier: str | None, lines: Callable[[Any], list[str]]) -> list[str]:
        """The lines of a chart or a diagram. A part is read once, however often it is shown."""
        key = identifier or ""
        if key not in self._known:
            root = self._part_of(identifier)
            if root is None:
                return self._object()
            self._known[key] = lines(root)
        return self._known[key]

    def _object(self) -> list[str]:
        self.objects += 1
        return []


def ordered(shapes: list[Shape]) -> list[Shape]:
    """Shapes in reading order: titles first, then by their places."""
    titles = [s for s in shapes if s.placeholder in ("title", "ctrTitle")]
    rest = [s for s in shapes if s.placeholder not in ("title", "ctrTitle")]
    return titles + in_reading_order(rest, lambda shape: shape.box)


def _properties(element: Any) -> Any:
    """The element with a shape's name, alternative text and whether it is hidden."""
    for part in element:
        if local(part).startswith("nv") and (found := child(part, "cNvPr")) is not None:
            return found
    return {}


def _shape(element: Any) -> Shape:
    kind = index = ""
    for part in element:
        if local(part).startswith("nv") and (found := child(part, "nvPr", "ph")) is not None:
            kind, index = found.get("type", "obj"), found.get("idx", "")
    return Shape(element, shape_box(element), kind, index)


def shape_box(element: Any) -> Box | None:
    """Where a shape lies; None if it does not say."""
    for holder in (child(element, "spPr"), child(element, "grpSpPr"), element):
        frame = child(holder, "xfrm")
        offset, size = child(frame, "off"), child(frame, "ext")
        if offset is not None and size is not None:
            numbers = [_int(offset.get("x")), _int(offset.get("y")), _int(size.get("cx")), _int(size.get("cy"))]
            return Box(numbers[0], numbers[1], numbers[0] + numbers[2], numbers[1] + numbers[3])
    return None


def _anchor_box(element: Any) -> Box | None:
    """A place on a sheet in columns and rows."""
    start, end = child(element, "from"), child(element, "to")
    if start is None:
        return None
    left, top = (_int(_words(child(start, name))) for name in ("col", "row"))
    right, bottom = (_int(_words(child(end, name))) for name in ("col", "row")) if end is not None else (left, top)
    return Box(left, top, max(right, left + 1), max(bottom, top + 1))


def _words(element: Any | None) -> str:
    return (element.text or "").strip() if element is not None else ""


def _int(text: str | None) -> int:
    text = text or ""
    return int(text) if text.removeprefix("-").isdigit() and len(text) < 16 else 0


# Text


def paragraphs(body: Any | None) -> list[str]:
    """The paragraphs of a text as lines, with the numbers of lists and levels indented."""
    lines: list[str] = []
    counts: dict[int, tuple[str, int]] = {}
    for paragraph in (e for e in body if local(e) == "p") if body is not None else ():
        text = _paragraph(paragraph)
        properties = child(paragraph, "pPr")
        level = min(_int(properties.get("lvl")), 8) if properties is not None else 0
        if not text.strip():
            continue
        mark = _mark(properties, level, counts)
        for i, line in enumerate(text.split("\n")):
            if line.strip():
                lines.append("  " * level + (mark if i == 0 else "") + " ".join(line.split()))
    return lines


def _paragraph(element: Any) -> str:
    out: list[str] = []
    for part in element:
        match local(part):
            case "r" | "fld":
                out += [(t.text or "").replace("_x000B_", "\n").replace("\v", "\n") for t in part if local(t) == "t"]
            case "br":
                out.append("\n")
            case "m" | "oMath" | "oMathPara":
                out.append(_formula(part))
            case "AlternateContent":
                texts = (_paragraph(choice) for choice in part)
                out.append(next((text for text in texts if text.strip()), ""))
    return "".join(out)


def _mark(properties: Any | None, level: int, counts: dict[int, tuple[str, int]]) -> str:
    """The number or the bullet that a paragraph states itself."""
    for deeper in [known for known in counts if known > level]:
        del counts[deeper]
    numbered = child(properties, "buAutoNum")
    if numbered is None:
        counts.pop(level, None)
        return "- " if child(properties, "buChar") is not None else ""
    kind, start = numbered.get("type", "arabicPeriod"), max(1, _int(numbered.get("startAt")))
    before = counts.get(level)
    number = before[1] + 1 if before is not None and before[0] == kind else start
    counts[level] = kind, number
    shown = str(number)
    if kind.startswith("alpha"):
        shown = letters(min(number, 10_000))
    elif kind.startswith("roman"):
        shown = roman(number)
    if "Lc" in kind:
        shown = shown.lower()
    if kind.endswith("ParenBoth"):
        return f"({shown}) "
    return f"{shown}) " if kind.endswith("ParenR") else f"{shown} " if kind.endswith("Plain") else f"{shown}. "


def _formula(element: Any) -> str:
    def read(e: Any, depth: int) -> str:
        name = short_name(e.tag) if isinstance(e.tag, str) else ""
        if name == "m:t":
            return e.text or ""
        if name in ("a14:m", "m:oMath", "m:oMathPara"):
            return "".join(read(inner, depth + 1) for inner in e)
        if (not name.startswith("m:") and name != "a14:m") or depth > 100:
            return ""
        value = attribute(e, "m:val")
        if value is not None:
            return value
        return formula.element(name.partition(":")[2], [(local(inner), read(inner, depth + 1)) for inner in e])

    return formula.spaced(read(element, 0))


def table_lines(table: Any) -> list[str]:
    """A table's rows. Cells that are merged into others are there, and empty."""
    rows = Rows()
    lines: list[str] = []
    for row in (e for e in table if local(e) == "tr"):
        cells = []
        for cell in (e for e in row if local(e) == "tc"):
            merged = cell.get("hMerge") in ("1", "true") or cell.get("vMerge") in ("1", "true")
            texts: Iterable[str] = () if merged else paragraphs(child(cell, "txBody"))
            cells.append(Cell(lines=[Line(0, text) for text in texts]))
        lines += [line.text for line in rows.lines(cells)]
    return lines
