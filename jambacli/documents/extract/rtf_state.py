"""What is known while an RTF document is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from jambacli.documents.extract.paragraph_lines import Box
from jambacli.documents.extract.rows import Cell, Line

# What becomes of the text of a group: it is shown, left out, kept for later (a field's code), that of a shape or picture (left
# out, but for texts in it), of the table of fonts, of a formula, or of a pair of which the second is read.
SHOWN, SKIPPED, KEPT, SHAPE, FONTS, MATH, PAIR = range(7)


class State(NamedTuple):
    """The properties that a group restores at its end."""

    mode: int = SHOWN
    skip: int = 1  # how many bytes stand for a \u for programs without Unicode
    font: int = -1
    complex_font: int = -1
    complex: bool = False
    hidden: bool = False
    deleted: bool = False
    shift: str = ""
    struck: bool = False
    depth: int = 0  # of nested tables; 0 outside of any
    level: int = 0  # of the list


#: A stretch of text, how it is raised, and whether it is struck through.
Word = tuple[str, str, bool]


@dataclass
class RtfFont:
    """``codec``: "" for the document's own."""

    name: str = ""
    charset: int = 1
    codec: str = ""


@dataclass
class RtfField:
    """``said``: how much had been said before it. ``kind``: 1 for a check box, 2 for a list."""

    said: int
    code: list[str] = field(default_factory=list)
    kind: int = -1
    result: int | None = None
    default: int | None = None
    entries: list[str] = field(default_factory=list)


@dataclass
class RtfFrame:
    """A stream of paragraphs: the body, or what is in a note, a header, a text box. ``tables``: for each depth the complete
    cells of the row and the one that is being read."""

    lines: list[Line] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    after: list[Line] = field(default_factory=list)
    tables: list[tuple[list[Cell], Cell]] = field(default_factory=list)
    label: str = ""
    lost: bool = False


@dataclass
class RtfLeft:
    """What was left out of a document, for the remarks."""

    deletions: int = 0
    hidden_words: int = 0
    pictures: int = 0
    objects: int = 0
    symbols: int = 0
    rest: int = 0
    unfinished: bool = False


@dataclass
class RtfSection:
    """``begin``: the index of its first line. ``parts``: (control word, lines) of headers and footers."""

    begin: int = 0
    first_page: bool = False
    parts: list[tuple[str, list[str]]] = field(default_factory=list)
