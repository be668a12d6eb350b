"""Finds a quote among the characters of a page, which are in the order of the file and not of reading."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

# Characters of a quote that are looked for; a line of a quote must have so many letters to count by itself.
_LONGEST, _LINE = 4000, 6
# The least share of a quote's letters that must be found, when its lines are found one by one.
_SHARE = 0.8


def matching(chars: Sequence[str], quote: str, *, whole: bool = False) -> list[tuple[int, int]]:
    """The ranges of ``chars`` that are the quote, whatever its spaces, hyphens and case: one, or one for each of its lines or
    parts of it where they do not follow each other (not with ``whole``); none if most of it is not there."""
    plain, places = _folded(chars)
    everything = _folded(quote[:_LONGEST])[0]
    if not everything:
        return []
    if (found := _find(plain, places, everything, 0)) is not None:
        return [found[:2]]
    if whole:
        return []
    ranges: list[tuple[int, int]] = []
    size = at = 0
    for line in _parts(quote[:_LONGEST]):
        wanted = _folded(line)[0]
        if len(wanted) < _LINE:
            size += len(wanted)
            continue
        one = _find(plain, places, wanted, at) or _find(plain, places, wanted, 0)
        if one is not None:
            ranges.append(one[:2])
            size, at = size + len(wanted), one[2]
    return ranges if ranges and size >= _SHARE * len(everything) else []


def _parts(quote: str) -> Iterator[str]:
    """The lines of a quote, or of a single line its runs of a few words."""
    lines = [line for line in quote.split("\n") if line.strip()]
    if len(lines) > 1:
        yield from lines
        return
    words = re.findall(r"\S+\s*", quote)
    for i in range(0, len(words), 4):
        yield "".join(words[i : i + 4])


def _find(plain: str, places: Sequence[int], wanted: str, start: int) -> tuple[int, int, int] | None:
    """The range of characters, and where the folded text goes on after it."""
    at = plain.find(wanted, start)
    return (places[at], places[at + len(wanted) - 1] + 1, at + len(wanted)) if at >= 0 else None


def _folded(chars: Sequence[str]) -> tuple[str, list[int]]:
    parts: list[str] = []
    places: list[int] = []
    for at, char in enumerate(chars):
        if char.isspace() or not char.isprintable() or char in "-\u2010\u2011\u2212":
            continue
        plain = char.lower() if char.isascii() else unicodedata.normalize("NFKD", char).casefold()
        plain = "".join(c for c in plain if not unicodedata.combining(c) and c not in "\u00b4\u00a8`^~")
        parts.append(plain)
        places += [at] * len(plain)
    return "".join(parts), places
