"""Text of a PowerPoint presentation (.pptx, .pptm, .ppsx, also Strict) by slide, in the order in which slides are shown:
the title, then the other shapes by their places, speaker notes and comments. Remarks say what was left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from jambacli.documents.extract.drawing_text import Drawing, Shape, child, local, ordered, paragraphs
from jambacli.documents.extract.ooxml import POWERPOINT, Package, Relation, attribute, opened
from jambacli.documents.extract.pieces import DocumentPart
from jambacli.documents.extract.reading_order import Box
from jambacli.documents.extract.slides import Slide, SlidesLeft
from jambacli.errors import BadFileError

_MAX_SLIDES = 20_000
#: Placeholders with the same text on every slide.
_FURNITURE = {"ftr": "Footer", "hdr": "Header", "dt": "Date"}
_TITLES = ("title", "ctrTitle")
# Placeholders of a slide that take the place of another type in its master.
_MASTER_TYPES = {"ctrTitle": "title", "subTitle": "body", "obj": "body", "tbl": "body", "chart": "body", "dgm": "body"}


def pptx_pieces(
    path: str, name: str, alive: Callable[[], None] = lambda: None
) -> tuple[str, Iterator[DocumentPart], list[str]]:
    """The unit "slide", the pieces, and remarks, complete after the last piece. Raises BadFileError naming ``name`` when
    it is no valid presentation."""
    remarks: list[str] = []
    return "slide", _pieces(path, name, alive, remarks), remarks


def _pieces(path: str, name: str, alive: Callable[[], None], remarks: list[str]) -> Iterator[DocumentPart]:
    left = SlidesLeft()
    with opened(path, name, POWERPOINT) as package:
        deck = _Deck(package, left)
        shown = 0
        for number, relation in enumerate(_order(package), 1):
            alive()
            if relation is None or relation.external or not package.has(relation.target):
                left.missing.append(number)
                continue
            for part in deck.slide(number, relation.target).parts():
                shown += 1
                yield part
        if any(r.kind == "vbaProject" for r in package.relations.values()):
            left.more.append("its macros were not read")
    remarks += left.remarks()
    if not shown:
        raise BadFileError(name, "contains no text" + (f" ({remarks[0]})" if remarks else ""))


def _order(package: Package) -> list[Relation | None]:
    """The slides in the order in which they are shown."""
    found: list[Relation | None] = []
    for event, tag, element in package.events(package.main):
        if event == "start" and tag == "p:sldId" and len(found) < _MAX_SLIDES:
            found.append(package.relations.get(attribute(element, "r:id") or ""))
    return found


@dataclass
class _Frame:
    """A layout or a master. ``boxes``: of its placeholders, by index and by type. ``texts``: of its other shapes."""

    boxes: dict[tuple[str, str], Box] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    shows_master: bool = True
    master: str | None = None


class _Deck:
    """Reads slides. ``said``: texts of footers, layouts and masters, which are read once."""

    def __init__(self, package: Package, left: SlidesLeft) -> None:
        self._package, self._left = package, left
        self._frames: dict[str, _Frame] = {}
        self._said: set[str] = set()

    def slide(self, number: int, part: str) -> Slide:
        """The text of a slide; nothing if it is hidden."""
        root = self._package.tree(part)
        slide = Slide(number)
        if root.get("show") in ("0", "false"):
            self._left.hidden.append(number)
            return slide
        relations = self._package.relations_of(part)
        layout = self._frame(self._target(relations, "slideLayout"))
        master = self._frame(layout.master)
        drawing = self._drawing(relations)
        shapes = drawing.shapes(_tree(root))
        body = [self._placed(s, layout, master) for s in shapes if s.placeholder not in (*_FURNITURE, "sldNum")]
        for shape in ordered(body):
            lines = drawing.shape_lines(shape)
            if shape.placeholder in _TITLES and not slide.title:
                slide.title = " ".join(line.strip() for line in lines)
            slide.lines += lines
        for shape in shapes:
            if shape.placeholder in _FURNITURE:
                self._once(slide, _FURNITURE[shape.placeholder], drawing.shape_lines(shape))
        if root.get("showMasterSp") not in ("0", "false"):
            self._once(slide, "Layout", layout.texts)
            if layout.shows_master:
                self._once(slide, "Layout", master.texts)
        slide.notes = self._notes(relations)
        slide.comments = list(self._comments(relations))
        self._left.add(drawing)
        return slide

    def _once(self, slide: Slide, what: str, lines: list[str]) -> None:
        text = " ".join(line.strip() for line in lines)
        if text and text not in self._said:
            self._said.add(text)
            slide.lines.append(f"{what}: {text}")

    def _drawing(self, relations: dict[str, Relation]) -> Drawing:
        def part_of(identifier: str | None) -> Any | None:
            relation = relations.get(identifier or "")
            held = relation is not None and not relation.external and self._package.has(relation.target)
            return self._package.tree(relation.target) if relation is not None and held else None

        return Drawing(part_of)

    def _target(self, relations: dict[str, Relation], kind: str) -> str | None:
        found = (r.target for r in relations.values() if r.kind == kind and not r.external)
        return next((target for target in found if self._package.has(target)), None)

    def _frame(self, part: str | None) -> _Frame:
        if part is None:
            return _Frame()
        if part not in self._frames:
            frame = self._frames[part] = _Frame()
            root, relations = self._package.tree(part), self._package.relations_of(part)
            drawing = self._drawing(relations)
            for shape in ordered(drawing.shapes(_tree(root))):
                if not shape.placeholder:
                    frame.texts += drawing.shape_lines(shape)
                elif shape.box is not None:
                    frame.boxes[shape.index, ""] = shape.box
                    frame.boxes.setdefault(("", shape.placeholder), shape.box)
            frame.shows_master = root.get("showMasterSp") not in ("0", "false")
            frame.master = self._target(relations, "slideMaster")
        return self._frames[part]

    @staticmethod
    def _placed(shape: Shape, layout: _Frame, master: _Frame) -> Shape:
        """A placeholder without a place of its own lies where its layout, or its master, has it."""
        if shape.box is not None or not shape.placeholder:
            return shape
        kind = shape.placeholder
        general = _MASTER_TYPES.get(kind, kind)
        box = layout.boxes.get((shape.index, "")) if shape.index else None
        box = box or layout.boxes.get(("", kind)) or master.boxes.get(("", general))
        return replace(shape, box=box)

    def _notes(self, relations: dict[str, Relation]) -> list[str]:
        part = self._target(relations, "notesSlide")
        if part is None:
            return []
        drawing = self._drawing(self._package.relations_of(part))
        lines: list[str] = []
        for shape in ordered(drawing.shapes(_tree(self._package.tree(part)))):
            if shape.placeholder in ("body", "") and local(shape.element) == "sp":
                lines += drawing.shape_lines(shape)
        return lines

    def _comments(self, relations: dict[str, Relation]) -> Iterator[str]:
        for relation in relations.values():
            if relation.kind != "comments" or relation.external or not self._package.has(relation.target):
                continue
            for comment in self._package.tree(relation.target):
                if local(comment) != "cm":
                    continue
                older = child(comment, "text")
                texts = [older.text or ""] if older is not None else []
                for body in (e for e in comment.iter() if local(e) == "txBody"):
                    texts.append(" ".join(paragraphs(body)))
                if text := " / ".join(" ".join(t.split()) for t in texts if t.strip()):
                    yield text


def _tree(root: Any) -> Any:
    """The shapes of a slide, a layout, a master or notes."""
    found = child(root, "cSld", "spTree")
    return found if found is not None else ()
