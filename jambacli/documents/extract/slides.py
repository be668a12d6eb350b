"""A slide's text as the pieces of a document, and what was left out of a presentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from jambacli.documents.extract.pieces import DocumentPart, parts_of_lines
from jambacli.units import counted

_TITLE = 80


class LeftOut(Protocol):
    """How many shapes of each kind were left out."""

    pictures: int
    objects: int
    media: int
    hidden: int


@dataclass
class SlidesLeft:
    """What was left out of a presentation, for the remarks. ``hidden``, ``missing``: the numbers of slides."""

    hidden: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    shapes: int = 0
    pictures: int = 0
    objects: int = 0
    media: int = 0
    more: list[str] = field(default_factory=list)

    def add(self, found: LeftOut) -> None:
        """Count what was left out of a slide."""
        self.pictures += found.pictures
        self.objects += found.objects
        self.media += found.media
        self.shapes += found.hidden

    def remarks(self) -> list[str]:
        """A line for each kind of thing."""

        def said(number: int, noun: str, what: str) -> None:
            if number:
                lines.append(f"{counted(number, noun)} {'was' if number == 1 else 'were'} {what}")

        lines: list[str] = []
        said(len(self.hidden), "hidden slide", f"left out: {_numbers(self.hidden)}")
        said(len(self.missing), "slide", f"not found in the file: {_numbers(self.missing)}")
        said(self.shapes, "hidden shape", "left out")
        said(self.pictures, "picture", "left out; text in them is not read")
        said(self.media, "video or sound", "left out")
        said(self.objects, "embedded object", "left out")
        return lines + self.more


def _numbers(numbers: Sequence[int]) -> str:
    return ", ".join(str(n) for n in numbers[:12]) + (", ..." if len(numbers) > 12 else "")


@dataclass
class Slide:
    """One slide. ``number``: counted from 1, hidden ones included. ``lines``: its shapes in reading order."""

    number: int
    title: str = ""
    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)

    def parts(self) -> Iterator[DocumentPart]:
        """The slide's text, in several parts if it is long; none if there is no text."""
        lines = list(self.lines)
        if self.notes:
            lines += ["", f"Notes: {self.notes[0].strip()}", *self.notes[1:]]
        lines += [f"[Comment: {text}]" for text in self.comments]
        title = self.title if len(self.title) <= _TITLE else f"{self.title[: _TITLE - 3]}..."
        for part in parts_of_lines(enumerate(lines, 1)):
            yield DocumentPart(part.text, self.number, self.number, title)
