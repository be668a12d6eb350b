"""Where words end within a run of characters, raised digits, and accents set as characters of their own.

A PDF places characters; spaces between words may be missing or be drawn between the letters of one word.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

# A gap between two characters that is a space, in heights of a line, and that is none even where pdfium makes it one.
_SPACE, _NO_SPACE = 0.15, 0.05
# Between two characters of scripts that are written without spaces.
_WIDE_SPACE = 0.6
# Letters set apart have gaps of at most this.
_SET_APART = 0.5
#: Gaps smaller than this, in heights of a line, are not noted.
NOTED = 0.08

#: Digits and signs, raised.
_RAISED = str.maketrans("0123456789+-\u2212=()", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾")
_MARKS = frozenset("*∗†‡§¶")

#: Accents that are set over a letter as characters of their own, and the ones that combine with it.
ACCENTS = dict(
    zip("¨´`ˆ˜¯˘˙˚˝ˇ¸˛", "\u0308\u0301\u0300\u0302\u0303\u0304\u0306\u0307\u030a\u030b\u030c\u0327\u0328", strict=True)
)
_DOTLESS = {"ı": "i", "ȷ": "j"}


@dataclass
class Gap:
    """A gap before character ``at`` of a run: its width in heights of the line, and whether pdfium sees a space there."""

    at: int
    width: float
    space: bool


@dataclass
class Gaps:
    """The gaps of a run that may be spaces."""

    found: list[Gap] = field(default_factory=list)

    def note(self, at: int, width: float, space: bool) -> None:
        """A gap between two characters."""
        self.found.append(Gap(at, width, space))

    def spaced(self, text: str) -> str:
        """``text`` with a space in every gap that is one."""
        if not self.found:
            return text
        parts, start = [], 0
        for gap in self._spaces(text):
            parts.append(text[start : gap.at])
            start = gap.at
        return " ".join([*parts, text[start:]])

    def _spaces(self, text: str) -> list[Gap]:
        whole = _set_apart(text, self.found, 8)
        found: list[Gap] = []
        start, at, count = 0, 0, len(self.found)
        for word in text.split(" "):
            end, first = start + len(word), at
            while at < count and self.found[at].at <= end:
                at += 1
            if inside := self.found[first:at]:
                usual = _set_apart(word, inside, 3, start) or whole
                found += [gap for gap in inside if (gap.width > 1.6 * usual + 0.03 if usual else _is_space(text, gap))]
            start = end + 1
        return found


def _set_apart(text: str, gaps: list[Gap], least: int, start: int = 0) -> float:
    """The usual gap between letters that are set apart, 0 if they are not. ``start``: where ``text`` begins in its run."""
    if len(gaps) < least:
        return 0.0
    widths = [gap.width for gap in gaps if text[gap.at - start - 1].isalnum() and text[gap.at - start].isalnum()]
    if len(widths) < least or len(widths) < 0.6 * sum(a.isalnum() and b.isalnum() for a, b in pairwise(text)):
        return 0.0
    usual = median(widths)
    return usual if usual < _SET_APART else 0.0


def _is_space(text: str, gap: Gap) -> bool:
    if text[gap.at - 1] >= "\u2e80" and text[gap.at] >= "\u2e80":
        return gap.width > _WIDE_SPACE
    return gap.width > _SPACE or (gap.space and not 0 <= gap.width < _NO_SPACE)


def raised(text: str) -> str:
    """Digits and signs as superscripts: 10 and a raised 6 are no 106."""
    return text.translate(_RAISED)


def raised_mark(text: str) -> str | None:
    """A footnote's mark before its text, with the space after it; None if ``text`` is no mark."""
    if not 0 < len(text) <= 3:
        return None
    if text.isascii() and text.isdigit():
        return raised(text) + " "
    return text + " " if set(text) <= _MARKS or (len(text) == 1 and text.islower()) else None


def accented(letter: str, accent: str) -> str | None:
    """The letter with the accent over or under it; None if there is no such letter."""
    both = unicodedata.normalize("NFC", _DOTLESS.get(letter, letter) + ACCENTS[accent])
    return both if len(both) == 1 and letter.isalpha() else None
