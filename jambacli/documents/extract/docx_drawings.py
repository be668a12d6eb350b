"""Text of charts and SmartArt, which are parts of their own."""

from __future__ import annotations

from typing import Any

from jambacli.documents.extract.number_format import number_format
from jambacli.documents.extract.ooxml import short_name

_MOST_POINTS = 10_000


def chart_lines(root: Any) -> list[str]:
    """A chart's title, and for each series its name and ``category: value`` of each point."""
    title = next((e for e in root.iter() if short_name(e.tag) in ("c:title", "cx:title")), None)
    words = " ".join(_texts(title, "a:t")) if title is not None else ""
    lines = [f"[Chart: {words}]" if words else "[Chart]"]
    for series in (e for e in root.iter() if short_name(e.tag) == "c:ser"):
        parts = {short_name(child.tag): child for child in series}
        name = " ".join(_texts(parts.get("c:tx"), "c:v"))
        labels = _points(parts.get("c:cat", parts.get("c:xVal")))
        values = _points(parts.get("c:val", parts.get("c:yVal")))
        points = ", ".join(f"{labels[i]}: {value}" if i in labels else value for i, value in values.items())
        lines.append(f"{name}: {points}" if name else points)
    if len(lines) == 1:
        lines += [", ".join(found)] if (found := _texts(root, "cx:pt")) else []
    return [line for line in lines if line.strip()]


def diagram_lines(root: Any) -> list[str]:
    """A line for each shape of a SmartArt drawing."""
    lines = []
    for point in (e for e in root.iter() if short_name(e.tag) == "dgm:pt"):
        if point.get("type", "node") in ("node", "asst", "doc"):
            lines.append("".join(_texts(point, "a:t")).strip())
    return [line for line in lines if line]


def _points(element: Any | None) -> dict[int, str]:
    """The texts of a list of points by their numbers, which skip points without a value. Categories of several levels are
    joined, the outer one first."""
    found: dict[int, str] = {}
    if element is None:
        return found
    levels = [e for e in element.iter() if short_name(e.tag) == "c:lvl"] or [element]
    for level in levels:  # the innermost comes first, and an outer one is stated once for all its inner ones
        code = "".join(_texts(level, "c:formatCode")[:1])
        inner = list(level.iter())
        points = [e for e in inner if short_name(e.tag) == "c:pt"] or [e for e in inner if short_name(e.tag) == "c:v"]
        own = {
            _index(e, i): _shown(text[0], code)
            for i, e in enumerate(points[:_MOST_POINTS])
            if (text := _texts(e, "c:v"))
        }
        if level is levels[0]:
            found = own
            continue
        outer = ""
        for i in sorted(found):
            outer = own.get(i, outer)
            found[i] = f"{outer} {found[i]}".strip()
    return found


def _index(point: Any, place: int) -> int:
    text = point.get("idx") or ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else place


def _shown(text: str, code: str) -> str:
    """A point's text: a date as its format shows it, other numbers as they are stored."""
    if code and code != "General" and (form := number_format(code)).is_date:
        try:
            return form.number(float(text))
        except ValueError:
            return text
    return text


def _texts(element: Any | None, tag: str) -> list[str]:
    if element is None:
        return []
    return [e.text.strip() for e in element.iter() if short_name(e.tag) == tag and (e.text or "").strip()][
        :_MOST_POINTS
    ]
