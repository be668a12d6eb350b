"""Markers of list items: bullets, and the numbers that ordered lists show."""

from __future__ import annotations

import re

from jambacli.documents.extract.numerals import letters, roman

_INTEGER = re.compile(r"\s*([+-]?\d{1,9})")
_ITEM = re.compile(r"<(/?)(li|ol|ul|menu|dir)(?=[\s/>])", re.IGNORECASE)
# How far the items of a reversed list are counted ahead.
_AHEAD = 256 << 10


class List:
    """One list: ``ol`` with start, type, reversed and the value of an item, or a list with bullets."""

    def __init__(self, tag: str, attributes: dict[str, str], source: str, at: int) -> None:
        self._ordered = tag == "ol"
        self._type = attributes.get("type", "1").strip()
        self._step = -1 if "reversed" in attributes else 1
        start = _integer(attributes.get("start"))
        if start is None:
            start = _items(source, at) if self._step < 0 and self._ordered else 1
        self._next = start

    def marker(self, attributes: dict[str, str], depth: int) -> str:
        """The marker of the next item, indented by how deep the list is nested."""
        indent = "  " * min(depth - 1, 12)
        if not self._ordered:
            return indent + "- "
        value = _integer(attributes.get("value"))
        number = self._next if value is None else value
        self._next = number + self._step
        kind = attributes.get("type", self._type).strip()
        if kind in ("a", "A") and number > 0:
            shown = letters(number)
        elif kind in ("i", "I") and 0 < number < 4000:
            shown = roman(number)
        else:
            shown = str(number)
        return f"{indent}{shown.lower() if kind in ('a', 'i') else shown.upper()}. "


def _integer(value: str | None) -> int | None:
    found = _INTEGER.match(value) if value is not None else None
    return int(found[1]) if found else None


def _items(source: str, at: int) -> int:
    """How many items the list has that starts at ``at``."""
    count = depth = 0
    for tag in _ITEM.finditer(source, at, at + _AHEAD):
        if tag[2].lower() == "li":
            count += not tag[1] and depth == 1
        else:
            depth += -1 if tag[1] else 1
            if depth <= 0:
                break
    return count
