"""What styles say that changes the text: a numbered list, hidden text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jambacli.documents.extract.ooxml import attribute, short_name

_DEEPEST = 50


@dataclass
class Style:
    """One style; None where it leaves a thing to the style it is based on."""

    based_on: str | None = None
    number: str | None = None
    level: int | None = None
    hidden: bool | None = None


class Styles:
    """The styles of a document, by their ids."""

    def __init__(self, root: Any | None = None) -> None:
        self._styles: dict[str, Style] = {}
        self._default: str | None = None
        for element in root if root is not None else ():
            if short_name(element.tag) == "w:style":
                key = attribute(element, "w:styleId", "") or ""
                self._styles[key] = _style(element)
                if attribute(element, "w:type") == "paragraph" and on(attribute(element, "w:default", "0")):
                    self._default = key

    def numbering(self, key: str | None) -> tuple[str, str, int | None] | None:
        """(list, the style that names it, level) for paragraphs of a style; None if they are not numbered."""
        level = None
        for name, style in self._chain(key or self._default):
            level = style.level if level is None else level
            if style.number is not None:
                return style.number, name, level
        return None

    def hidden(self, key: str | None) -> bool:
        """Whether text of a style is hidden."""
        return next((s.hidden for _, s in self._chain(key or self._default) if s.hidden is not None), False)

    def _chain(self, key: str | None) -> Iterator[tuple[str, Style]]:
        for _ in range(_DEEPEST):
            style = self._styles.get(key or "")
            if style is None or key is None:
                return
            yield key, style
            key = style.based_on


def on(value: str | None) -> bool:
    """Whether a property that is present with this value is switched on."""
    return value not in ("0", "false", "off", "none")


def _style(element: Any) -> Style:
    style = Style()
    for child in element:
        tag = short_name(child.tag)
        if tag == "w:basedOn":
            style.based_on = attribute(child, "w:val")
        elif tag in ("w:pPr", "w:rPr"):
            for part in child:
                name = short_name(part.tag)
                if name == "w:numPr":
                    for number in part:
                        value = attribute(number, "w:val", "")
                        if short_name(number.tag) == "w:numId":
                            style.number = value
                        elif short_name(number.tag) == "w:ilvl" and value and value.isdecimal():
                            style.level = int(value)
                elif name == "w:vanish" and tag == "w:rPr":
                    style.hidden = on(attribute(part, "w:val"))
    return style
