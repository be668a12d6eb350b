"""Pieces of text with their page or line numbers, which every extractor yields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# The length of a part of a text without pages: about a page. Citations name a part, so it must not be long.
PART_CHARS = 4000
#: Maximum number of characters read from one file: about 16 million tokens, far more than any context.
MAX_TEXT = 64 << 20


@dataclass(frozen=True)
class DocumentPart:
    """Text of one file from ``first`` to ``last`` (pages, lines, sheets ..., counted from 1).

    ``label``: what the place is called beside its number, such as a sheet's name and rows, or a chapter's title.
    """

    text: str
    first: int
    last: int
    label: str = ""


#: A line's number, its text, and whether it continues the entry before it (a line that was too long for a part).
_Line = tuple[int, str, bool]


def parts_of_lines(lines: Iterable[tuple[int, str]], size: int = PART_CHARS) -> Iterator[DocumentPart]:
    """Numbered lines as pieces of at most ``size`` characters, cut at a blank line if one is near, else at a line end.

    A line longer than ``size`` is cut at a space, or within a word if it has none.
    """
    held: list[_Line] = []
    length = 0
    for number, line in lines:
        for i, text in enumerate(_cut(line, size)):
            if held and length + len(text) + 1 > size:
                cut = _blank(held)
                if piece := _piece(held[:cut]):
                    yield piece
                held = held[cut:]
                length = sum(len(line[1]) + 1 for line in held)
                if held and length + len(text) + 1 > size:
                    if piece := _piece(held):
                        yield piece
                    held, length = [], 0
            held.append((number, text, i > 0))
            length += len(text) + 1
    if piece := _piece(held):
        yield piece


def _cut(line: str, size: int) -> Iterator[str]:
    at = 0
    while len(line) - at > size:
        space = line.rfind(" ", at + size // 2, at + size)
        stop = space + 1 if space >= 0 else at + size
        yield line[at:stop]
        at = stop
    yield line[at:]


def _blank(held: list[_Line]) -> int:
    """The index to cut at: after the last blank line of the second half, else at the end."""
    for i in range(len(held) - 1, len(held) // 2, -1):
        if not held[i][1].strip():
            return i + 1
    return len(held)


def _piece(held: list[_Line]) -> DocumentPart | None:
    while held and not held[0][1].strip():
        held = held[1:]
    while held and not held[-1][1].strip():
        held = held[:-1]
    if not held:
        return None
    text = held[0][1]
    for _, line, continues in held[1:]:
        text += line if continues else "\n" + line
    return DocumentPart(text, held[0][0], held[-1][0])


def ranges(numbers: Iterable[int]) -> str:
    """``3, 7-9`` for 3, 7, 8, 9; at most ten ranges."""

    def runs() -> Iterator[str]:
        first = last = None
        for n in numbers:
            if last is not None and n == last + 1:
                last = n
                continue
            if first is not None:
                yield f"{first}-{last}" if last != first else f"{first}"
            first = last = n
        if first is not None:
            yield f"{first}-{last}" if last != first else f"{first}"

    shown = list(runs())
    return ", ".join(shown[:10]) + (", ..." if len(shown) > 10 else "")
