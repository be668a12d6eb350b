"""Charts and text boxes of a worksheet, in .xlsx and .xlsb."""

from __future__ import annotations

from typing import Any

from jambacli.documents.extract.drawing_text import Drawing
from jambacli.documents.extract.ooxml import Package, Relation
from jambacli.documents.extract.sheet_text import Left


def drawing_lines(package: Package, drawing: Relation | None, left: Left) -> list[str]:
    """The lines of the drawing that a relationship of a sheet leads to; none if it is missing. What is left out is counted."""
    if drawing is None or drawing.external or not package.has(drawing.target):
        return []
    relations = package.relations_of(drawing.target)

    def part_of(identifier: str | None) -> Any | None:
        relation = relations.get(identifier or "")
        held = relation is not None and not relation.external and package.has(relation.target)
        return package.tree(relation.target) if relation is not None and held else None

    reader = Drawing(part_of)
    lines = reader.lines(package.tree(drawing.target))
    left.pictures += reader.pictures + reader.media
    left.objects += reader.objects
    return lines
