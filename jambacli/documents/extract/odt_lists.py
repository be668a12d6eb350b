"""OpenDocument's automatic numbers: the text that stands before a paragraph but is nowhere in it (OpenDocument 1.3, 16.31)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from jambacli.documents.extract.docx_symbols import symbol
from jambacli.documents.extract.numerals import letters, shown

_LEVELS = 10
_PLACE = re.compile(r"%(\d{1,2})%")
#: Formats that LibreOffice writes -> those of WordprocessingML.
_FORMATS = {
    "i": "lowerRoman",
    "I": "upperRoman",
    "1": "decimal",
    "01": "decimalZero",
    "1st": "ordinal",
    "One": "cardinalText",
    "First": "ordinalText",
    "①, ②, ③, ...": "decimalEnclosedCircle",
    "一, 二, 三, ...": "chineseCounting",
    "イ, ロ, ハ, ...": "iroha",
    "ア, イ, ウ, ...": "aiueoFullWidth",
    "１, ２, ３, ...": "decimalFullWidth",
    "א, ב, ג, ...": "hebrew2",
    "أ, ب, ت, ...": "arabicAlpha",
    "А, Б, .., Аа, Аб, ... (ru)": "russianUpper",
    "а, б, .., аа, аб, ... (ru)": "russianLower",
    "А, Б, .., Аа, Бб, ... (ru)": "russianUpper",
    "а, б, .., аа, бб, ... (ru)": "russianLower",
}


@dataclass(frozen=True)
class Level:
    """One level of a list. ``number``: the format of its number, "" for none. ``shown``: how many levels' numbers it shows.
    ``pattern``: the label with the numbers' places, ``%1%.%2%``; it goes before prefix, suffix and ``shown``."""

    number: str = ""
    start: int = 1
    prefix: str = ""
    suffix: str = ""
    shown: int = 1
    pattern: str | None = None
    bullet: str | None = None
    doubled: bool = False
    after: str = " "
    font: str = ""


@dataclass
class ListStyle:
    """The levels of a list, from 1."""

    name: str
    levels: dict[int, Level] = field(default_factory=dict)

    def set_suffix(self, level: int, follows: str) -> None:
        """What stands between a label and its paragraph: "listtab", "space" or "nothing"."""
        if level in self.levels:
            self.levels[level] = replace(self.levels[level], after="" if follows == "nothing" else " ")

    def set_font(self, level: int, font: str) -> None:
        """The font of a label."""
        if level in self.levels and font:
            self.levels[level] = replace(self.levels[level], font=font.strip("'\""))


def read_level(style: ListStyle, tag: str, values: dict[str, str]) -> int:
    """Add the level that an element defines to ``style``; return its number, 0 if it is none."""
    level = number_of(values.get("text:level"), 0)
    if not 0 < level <= _LEVELS:
        return 0
    bullet = None
    if tag.endswith("bullet"):
        bullet = values.get("text:bullet-char", "•")
    elif tag.endswith("image"):
        bullet = "•"
    pattern = values.get("style:num-list-format") or values.get("loext:num-list-format")
    style.levels[level] = Level(
        number=values.get("style:num-format", "") if bullet is None else "",
        start=number_of(values.get("text:start-value"), 1),
        prefix=values.get("style:num-prefix", ""),
        suffix=values.get("style:num-suffix", ""),
        shown=max(1, min(number_of(values.get("text:display-levels"), 1), level)),
        pattern=pattern,
        bullet=bullet,
        doubled=values.get("style:num-letter-sync") == "true",
    )
    return level


class Counters:
    """Where each list of a document has got to. Call ``label`` for every numbered paragraph, in order."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[int, int]] = {}

    def restart(self, key: str, level: int) -> None:
        """Let the next number of a level be its first."""
        counts = self._counts.get(key, {})
        for each in [i for i in counts if i >= level]:
            del counts[each]

    def label(self, key: str, style: ListStyle | None, level: int, start: int | None = None) -> str:
        """What stands before the next paragraph of a list at a level, with the space after it; "" for nothing.

        ``start``: the paragraph's own number.
        """
        level = max(1, min(level, _LEVELS))
        counts = self._counts.setdefault(key, {})
        levels = style.levels if style is not None else {}
        own = levels.get(level, Level(bullet="•") if style is None else Level())
        counts[level] = start if start is not None else counts[level] + 1 if level in counts else own.start
        for deeper in [i for i in counts if i > level]:
            del counts[deeper]
        if own.bullet is not None:
            return _bullet(own, level) + own.after
        for above in range(1, level):  # a list that begins at a deeper level
            counts.setdefault(above, levels[above].start if above in levels else 1)

        def number(index: int) -> str:
            found = levels.get(index, Level())
            return _number(counts[index], found) if index <= level and found.bullet is None else ""

        if not own.number and own.pattern is None:
            text = f"{own.prefix}{own.suffix}"
        elif own.pattern is not None:
            text = _PLACE.sub(lambda place: number(int(place[1])), own.pattern)
        else:
            numbers = filter(None, (number(i) for i in range(level - own.shown + 1, level + 1)))
            text = f"{own.prefix}{'.'.join(numbers)}{own.suffix}"
        return text.strip() + own.after if text.strip() else ""


def number_of(value: str | None, default: int) -> int:
    """An attribute as a number; ``default`` if it is none."""
    try:
        return max(-(1 << 31), min(int(value or ""), (1 << 31) - 1))
    except ValueError:
        return default


def _number(count: int, level: Level) -> str:
    kind = level.number
    if not kind:
        return ""
    if kind in ("a", "A"):
        if level.doubled:
            return shown(count, "lowerLetter" if kind == "a" else "upperLetter")
        return letters(count).lower() if kind == "a" else letters(count)
    return shown(count, _FORMATS.get(kind, "decimal"))


def _bullet(level: Level, index: int) -> str:
    text = "".join(symbol(level.font, ord(c)) for c in level.bullet or "").strip()
    if text in ("☐", "☑", "☒", "✓", "✗", "→"):
        return text
    return "  " * (index - 1) + "-"
