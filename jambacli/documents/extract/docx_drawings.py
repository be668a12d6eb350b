"""Text of charts and SmartArt, which are parts of their own."""

from __future__ import annotations

from typing import Any

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
        labels = _texts(parts.get("c:cat", parts.get("c:xVal")), "c:v")
        values = _texts(parts.get("c:val", parts.get("c:yVal")), "c:v")
        pairs = zip(labels, values, strict=False) if len(labels) == len(values) else (("", v) for v in values)
        points = ", ".join(f"{label}: {value}" if label else value for label, value in pairs)
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


def _texts(element: Any | None, tag: str) -> list[str]:
    if element is None:
        return []
    return [e.text.strip() for e in element.iter() if short_name(e.tag) == tag and (e.text or "").strip()][
        :_MOST_POINTS
    ]
