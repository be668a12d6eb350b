"""Word's automatic numbers: the text that stands before a paragraph but is nowhere in it (ECMA-376 part 1, 17.9)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from jambacli.documents.extract.docx_symbols import symbol
from jambacli.documents.extract.numerals import shown
from jambacli.documents.extract.ooxml import attribute, short_name

_LEVELS = 9
# The longest text of a label.
_LONGEST = 1000
_PLACE = re.compile(r"%([1-9])")


@dataclass(frozen=True)
class Level:
    """One level of a list. ``text`` has the numbers' places: ``%1.%2``. ``restart``: the level whose use restarts this one,
    0 for none. ``style``: the paragraph style that numbers by this level."""

    start: int = 1
    kind: str = "decimal"
    text: str = ""
    suffix: str = "tab"
    restart: int | None = None
    legal: bool = False
    style: str | None = None
    font: str = ""
    digits: int = 0


@dataclass
class _Instance:
    """A w:num: an abstract list, with levels and first numbers of its own."""

    abstract: str
    levels: dict[int, Level]
    starts: dict[int, int] = field(default_factory=dict)


class Numbering:
    """The lists of a document, and where each has got to. Call ``label`` for every numbered paragraph, in order."""

    def __init__(self, root: Any | None = None) -> None:
        self._instances: dict[str, _Instance] = {}
        self._counts: dict[str, dict[int, int]] = {}
        self._met: set[str] = set()
        if root is not None:
            self._read(root)

    def level_of_style(self, number: str, style: str) -> int | None:
        """The level of a list that numbers the paragraphs of a style."""
        instance = self._instances.get(number)
        levels = instance.levels.items() if instance else ()
        return next((i for i, level in levels if level.style == style), None)

    def label(self, number: str, index: int) -> str:
        """What Word shows before the next paragraph of a list at a level (from 0), with the space after it; "" for nothing."""
        instance = self._instances.get(number)
        if instance is None or index not in instance.levels:
            return ""
        counts = self._counts.setdefault(instance.abstract, {})
        if number not in self._met:
            self._met.add(number)
            for restarted in instance.starts:
                counts.pop(restarted, None)
        level = instance.levels[index]
        counts[index] = counts[index] + 1 if index in counts else _start(instance, index)
        for deeper in [i for i in counts if i > index]:
            restart = instance.levels[deeper].restart if deeper in instance.levels else None
            if restart is None or index < restart:
                del counts[deeper]
        if level.kind == "bullet":
            text = _bullet(level, index)
        else:
            text = _PLACE.sub(lambda place: _number(instance, counts, int(place[1]) - 1, level), level.text)
        return text + ("" if level.suffix == "nothing" or not text.strip() else " ")

    def _read(self, root: Any) -> None:
        abstracts: dict[str, dict[int, Level]] = {}
        by_style: dict[str, str] = {}
        links: dict[str, str] = {}
        for element in root:
            tag = short_name(element.tag)
            if tag == "w:abstractNum":
                key = attribute(element, "w:abstractNumId", "") or ""
                abstracts[key] = _levels(element)
                for child in element:
                    name = short_name(child.tag)
                    if name == "w:styleLink":
                        by_style[attribute(child, "w:val", "") or ""] = key
                    elif name == "w:numStyleLink":
                        links[key] = attribute(child, "w:val", "") or ""
            elif tag == "w:num":
                self._read_instance(element, abstracts, by_style, links)

    def _read_instance(
        self, element: Any, abstracts: dict[str, dict[int, Level]], by_style: dict[str, str], links: dict[str, str]
    ) -> None:
        key = ""
        starts: dict[int, int] = {}
        own: dict[int, Level] = {}
        for child in element:
            name = short_name(child.tag)
            if name == "w:abstractNumId":
                key = attribute(child, "w:val", "") or ""
            elif name == "w:lvlOverride":
                index = _int(attribute(child, "w:ilvl"), 0)
                for part in child:
                    if short_name(part.tag) == "w:startOverride":
                        starts[index] = _int(attribute(part, "w:val"), 1)
                own |= _levels(child)
        key = by_style.get(links.get(key, ""), key)
        number = attribute(element, "w:numId", "") or ""
        self._instances[number] = _Instance(key, {**abstracts.get(key, {}), **own}, starts)


def _start(instance: _Instance, index: int) -> int:
    level = instance.levels.get(index)
    return instance.starts.get(index, level.start if level else 1)


def _number(instance: _Instance, counts: dict[int, int], index: int, shown_by: Level) -> str:
    level = instance.levels.get(index)
    if level is None:
        return ""
    value = counts.get(index, _start(instance, index))
    if shown_by.legal and level.kind not in ("bullet", "none"):
        return str(value)
    return str(value).zfill(level.digits) if level.digits else shown(value, level.kind)


def _bullet(level: Level, index: int) -> str:
    text = "".join(symbol(level.font, ord(c)) for c in level.text).strip()
    if (len(text) > 1 and any(c.isalnum() for c in text)) or text in ("☐", "☑", "☒", "✓", "✗", "→"):
        return text
    return "  " * index + "-"


def _levels(element: Any) -> dict[int, Level]:
    found: dict[int, Level] = {}
    for child in element:
        if short_name(child.tag) == "w:lvl":
            index = _int(attribute(child, "w:ilvl"), 0)
            if 0 <= index < _LEVELS:
                found[index] = _level(child)
    return found


def _level(element: Any) -> Level:
    values: dict[str, Any] = {}
    for child in element.iter():
        tag, value = short_name(child.tag), attribute(child, "w:val")
        if tag == "w:start":
            values["start"] = _int(value, 1)
        elif tag == "w:numFmt" and value is not None and "kind" not in values:
            values["kind"] = value
            pattern = attribute(child, "w:format") or ""
            values["digits"] = len(pattern.partition(",")[0].strip()) if value == "custom" else 0
        elif tag == "w:lvlText":
            values["text"] = (value or "")[:_LONGEST]
        elif tag == "w:suff":
            values["suffix"] = value
        elif tag == "w:lvlRestart":
            values["restart"] = _int(value, 0)
        elif tag == "w:isLgl":
            values["legal"] = value not in ("0", "false", "off")
        elif tag == "w:pStyle":
            values["style"] = value
        elif tag == "w:rFonts":
            values["font"] = attribute(child, "w:ascii") or attribute(child, "w:hAnsi") or ""
    if values.get("digits", 0) > 9:
        values["digits"] = 0
    return Level(**values)


def _int(value: str | None, default: int) -> int:
    try:
        return max(-(1 << 31), min(int(value or ""), (1 << 31) - 1))
    except ValueError:
        return default
