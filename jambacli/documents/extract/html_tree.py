"""The open elements of a web page: which tags end which, as in the HTML standard (13.2.6), without a limit of depth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_VOID_NAMES = "area base basefont bgsound br col embed frame hr img input keygen link meta param source track wbr"
VOID = frozenset(_VOID_NAMES.split())
#: A start tag of these ends an open paragraph.
_ENDS_P_NAMES = """address article aside blockquote center details dialog dir div dl dd dt fieldset figcaption figure footer
    form h1 h2 h3 h4 h5 h6 header hgroup hr li listing main menu nav ol p plaintext pre search section summary table ul xmp"""
_ENDS_P = frozenset(_ENDS_P_NAMES.split())
_FORMATTING_NAMES = "a b big code em font i nobr s small strike strong tt u"
_FORMATTING = frozenset(_FORMATTING_NAMES.split())
#: An end tag of another element does not reach over these.
_SPECIAL_NAMES = """applet area body br button caption col colgroup head html iframe img input link marquee meta noscript object
    select style tbody td template textarea tfoot th thead title tr"""
_SPECIAL = _ENDS_P | frozenset(_SPECIAL_NAMES.split())
#: End tags within these do not end elements around them.
_WALLS_NAMES = "table td th caption template object applet marquee foreignobject svg math"
_WALLS = frozenset(_WALLS_NAMES.split())
#: A start tag -> the elements it ends, and the elements beyond which it ends none.
_ENDS = {
    "li": (("li",), ("ul", "ol", "menu", "dir")),
    "dd": (("dd", "dt"), ("dl",)),
    "dt": (("dd", "dt"), ("dl",)),
    "option": (("option",), ("select", "datalist")),
    "optgroup": (("option", "optgroup"), ("select",)),
    "rt": (("rt", "rp"), ("ruby",)),
    "rp": (("rt", "rp"), ("ruby",)),
    "button": (("button",), ()),
}
_CELLS = frozenset(("td", "th"))
_SECTIONS = frozenset(("thead", "tbody", "tfoot"))


@dataclass(eq=False)
class Element:
    """An open element. ``restore``: what the reader wants back when it ends."""

    tag: str
    index: int = 0
    restore: Any = None
    open: bool = True


@dataclass(eq=False)
class _Wall:
    """The elements open within a wall, by tag, and those that only their own end tags end."""

    owner: str
    base: int
    by_tag: dict[str, list[Element]] = field(default_factory=dict)
    special: list[Element] = field(default_factory=list)

    def last(self, tag: str) -> int:
        elements = self.by_tag.get(tag)
        return elements[-1].index if elements else -1


class Tree:
    """The open elements. ``ended`` is called with each element that ends, innermost first."""

    def __init__(self, ended: Callable[[Element], None]) -> None:
        self._ended = ended
        self._open: list[Element] = []
        self._walls = [_Wall("", 0)]

    def start(self, tag: str) -> Element:
        """Ends the elements that a start tag of ``tag`` ends, and opens it. Void elements are opened too: end them."""
        self._make_room(tag)
        element = Element(tag, len(self._open))
        self._open.append(element)
        wall = self._walls[-1]
        wall.by_tag.setdefault(tag, []).append(element)
        if tag in _SPECIAL:
            wall.special.append(element)
        if tag in _WALLS:
            self._walls.append(_Wall(tag, len(self._open)))
        return element

    def end(self, tag: str) -> bool:
        """Ends the element that an end tag of ``tag`` belongs to; False if there is none."""
        if tag in _WALLS or tag in _SECTIONS or tag == "tr":
            return self._end_around(tag)
        wall = self._walls[-1]
        found = wall.by_tag.get(tag)
        if not found:
            return False
        element = found[-1]
        above = wall.special[-1].index if wall.special else -1
        if tag in _FORMATTING and above > element.index:
            found.pop()
            element.open = False
            self._ended(element)
        elif tag in _SPECIAL or above <= element.index:
            self._pop_to(element.index)
        return True

    def close(self, element: Element) -> None:
        """End an element that is still open, and all in it."""
        self._pop_to(element.index)

    def end_all(self) -> None:
        """The page ends."""
        self._pop_to(0)

    def needs_table(self, tag: str) -> str | None:
        """The element that is missing around a row or a cell, None if it has its place."""
        owner = self._walls[-1].owner
        if tag == "tr" or tag in _SECTIONS:
            return None if owner == "table" or self._within_cell() else "table"
        if owner != "table" and not self._within_cell():
            return "table"
        wall = self._walls[-1] if owner == "table" else self._walls[-2]
        return None if wall.by_tag.get("tr") else "tr"

    def _within_cell(self) -> bool:
        return (
            len(self._walls) > 2
            and self._walls[-1].owner in ("td", "th", "caption")
            and self._walls[-2].owner == "table"
        )

    def _make_room(self, tag: str) -> None:
        if tag in _CELLS or tag == "tr" or tag in _SECTIONS or tag == "caption":
            if self._within_cell():
                self._pop_to(self._walls[-1].base - 1)
            if tag not in _CELLS:
                first = min((w for w in map(self._walls[-1].last, ("tr", *_SECTIONS)) if w >= 0), default=-1)
                row = self._walls[-1].last("tr")
                stop = row if tag == "tr" else first
                if self._walls[-1].owner == "table" and stop >= 0:
                    self._pop_to(stop)
            return
        wall = self._walls[-1]
        if tag in _ENDS_P and wall.last("p") > wall.last("button"):
            self._pop_to(wall.last("p"))
        ends, beyond = _ENDS.get(tag, ((), ()))
        stop = max(map(wall.last, beyond), default=-1)
        indices = [i for i in map(wall.last, ends) if i > stop]
        if indices:
            self._pop_to(min(indices))
        if tag == "a" and wall.by_tag.get("a"):
            self.end("a")

    def _end_around(self, tag: str) -> bool:
        """End an element of a table, or another wall, from within it."""
        for wall in reversed(self._walls[-3:] if tag in _CELLS or tag == "tr" or tag in _SECTIONS else self._walls):
            if (index := wall.last(tag)) >= 0:
                self._pop_to(index)
                return True
            if wall.owner == "table" and tag in ("td", "th", "tr", *_SECTIONS):
                return False
            if wall.owner == "template" and tag != "template":
                return False
        return False

    def _pop_to(self, index: int) -> None:
        """End all elements from ``index`` on."""
        while len(self._open) > index:
            element = self._open.pop()
            if len(self._walls) > 1 and self._walls[-1].base > len(self._open):
                self._walls.pop()
            wall = self._walls[-1]
            if wall.special and wall.special[-1] is element:
                wall.special.pop()
            if element.open:
                wall.by_tag[element.tag].pop()
                element.open = False
                self._ended(element)
