"""Text of an OpenDocument presentation by slide: the title, then the other shapes by their places, notes and comments.
Remarks say what was left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from xml.etree.ElementTree import Element

from jambacli.documents.extract.odf_drawing import Drawing, comment_text
from jambacli.documents.extract.open_document import Builder, Package, opened
from jambacli.documents.extract.pieces import DocumentPart
from jambacli.documents.extract.slides import Slide, SlidesLeft
from jambacli.errors import BadFileError

#: What is on every slide of a master, or nothing but a number.
_FURNITURE = {"footer": "Footer", "header": "Header", "date-time": "Date", "page-number": ""}


def odp_pieces(
    path: str, name: str, alive: Callable[[], None] = lambda: None
) -> tuple[str, Iterator[DocumentPart], list[str]]:
    """The unit "slide", the pieces, and remarks, complete after the last piece. Raises BadFileError naming ``name`` when
    it is no valid presentation."""
    remarks: list[str] = []
    return "slide", _pieces(path, name, alive, remarks), remarks


def _pieces(path: str, name: str, alive: Callable[[], None], remarks: list[str]) -> Iterator[DocumentPart]:
    with opened(path, name, ".odp", alive) as package:
        content = _Slides(package)
        if package.has("styles.xml"):
            package.read("styles.xml", content)
        package.read("content.xml", content)
    shown = 0
    for slide in content.slides:
        for part in slide.parts():
            shown += 1
            yield part
    remarks += content.left.remarks()
    if not shown:
        raise BadFileError(name, "contains no text" + (f" ({remarks[0]})" if remarks else ""))


class _Slides:
    """Handles the events of styles.xml, then of content.xml. A master or a slide is kept whole until it is read."""

    def __init__(self, package: Package) -> None:
        self.slides: list[Slide] = []
        self.left = SlidesLeft()
        self._package = package
        self._hidden: set[str] = set()
        self._footers: set[str] = set()
        self._declared: dict[tuple[str, str], str] = {}
        self._masters: dict[str, list[str]] = {}
        self._said: set[str] = set()
        self._style = ""
        self._number = 0
        self._builder: Builder | None = None
        self._words: list[str] | None = None
        self._key = ("", "")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if self._builder is not None:
            self._builder.start(tag, attributes)
        elif tag in ("draw:page", "style:master-page"):
            self._builder = Builder()
            self._builder.start(tag, attributes)
        elif tag == "style:style":
            self._style = attributes.get("style:name", "")
        elif tag == "style:drawing-page-properties":
            if attributes.get("presentation:visibility") == "hidden":
                self._hidden.add(self._style)
            if attributes.get("presentation:display-footer") == "true":
                self._footers.add(self._style)
        elif tag in ("presentation:footer-decl", "presentation:header-decl", "presentation:date-time-decl"):
            self._words = []
            self._key = tag[13:].removesuffix("-decl"), attributes.get("presentation:name", "")

    def end(self, tag: str) -> None:
        if self._builder is not None:
            self._builder.end(tag)
            if (root := self._builder.root) is not None:
                self._builder = None
                if root.tag == "draw:page":
                    self._slide(root)
                else:
                    self._master(root)
        elif self._words is not None:
            self._declared[self._key] = " ".join("".join(self._words).split())
            self._words = None

    def text(self, data: str) -> None:
        if self._builder is not None:
            self._builder.text(data)
        elif self._words is not None:
            self._words.append(data)

    def _master(self, root: Element) -> None:
        drawing = Drawing(self._package.tree)
        lines = [
            line for shape in drawing.shapes(root) if not shape.role for line in drawing.shape_lines(shape.element)
        ]
        self._masters[root.get("style:name", "")] = lines

    def _slide(self, root: Element) -> None:
        self._number += 1
        if root.get("draw:style-name", "") in self._hidden:
            self.left.hidden.append(self._number)
            return
        slide = Slide(self._number)
        drawing = Drawing(self._package.tree)
        for shape in drawing.shapes(root):
            lines = drawing.shape_lines(shape.element)
            if shape.role in _FURNITURE:
                self._once(slide, _FURNITURE[shape.role], lines)
                continue
            if shape.role == "title" and not slide.title:
                slide.title = " ".join(line.strip() for line in lines)
            slide.lines += lines
        if root.get("draw:style-name", "") in self._footers:
            footer = self._declared.get(("footer", root.get("presentation:use-footer-name", "")))
            self._once(slide, "Footer", [footer] if footer else [])
        self._once(slide, "Layout", self._masters.get(root.get("draw:master-page-name", ""), []))
        notes = root.find("presentation:notes")
        for shape in drawing.shapes(notes) if notes is not None else ():
            if shape.role in ("notes", "") and shape.element.tag != "draw:page-thumbnail":
                slide.notes += drawing.shape_lines(shape.element)
        for tag in ("office:annotation", "officeooo:annotation"):
            slide.comments += filter(None, (comment_text(e) for e in root.iter(tag)))
        self.left.add(drawing)
        self.slides.append(slide)

    def _once(self, slide: Slide, what: str, lines: list[str]) -> None:
        text = " ".join(line.strip() for line in lines)
        if what and text and text not in self._said:
            self._said.add(text)
            slide.lines.append(f"{what}: {text}")
