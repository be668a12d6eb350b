"""Separate a reply's citations from its text, and find the files and pages they refer to.

Jamba ends an answer with ``<citations>[2, 5]</citations>``: numbers of the documents in its prompt, ``[]`` when none of them
supports it. Other models write such sections less regularly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from jambacli.documents.pages import DocumentEntry, Source
from jambacli.engine.generate import Thought
from jambacli.text.markup import CITATIONS, CITATIONS_END

# Words allowed next to the numbers of a section; with any other word its numbers may mean something else.
_AROUND_NUMBERS = re.compile(r"\b(?:documents?|docs?|ids?|and)\b", re.IGNORECASE)
_LIST = re.compile(r"\s*\[[^\]]*\]?")


@dataclass
class Cited:
    """Splits a reply into the answer, which passes through, and its sections of citations, complete at its end.

    ``json``: the reply is a JSON document with a section after it. It comes in one piece, and what looks like a section
    within its strings is left there.
    """

    json: bool = False
    sections: list[str] = field(default_factory=list)

    @property
    def has_section(self) -> bool:
        """Whether the model wrote a section of citations at all."""
        return bool(self.sections)

    @property
    def numbers(self) -> list[int]:
        """All numbers in the sections, in order, including those of no document."""
        return [n for section in self.sections for n in _numbers(section)]

    def answer(self, pieces: Iterable[str]) -> Iterator[str]:
        """The pieces without the sections of citations; thoughts pass unchanged."""
        try:
            yield from self._whole_json(pieces) if self.json else self._text(pieces)
        finally:
            getattr(pieces, "close", lambda: None)()

    def cited(self, entries: Sequence[DocumentEntry]) -> list[int]:
        """The indices of the cited entries, each once, in order: cited by number, or by their whole title."""
        found: list[int] = []
        for section in self.sections:
            numbers = _numbers(section)
            found += [n for n in numbers if 0 <= n < len(entries)] if numbers else _titled(section, entries)
        return list(dict.fromkeys(found))

    def unknown(self, entries: Sequence[DocumentEntry]) -> list[int]:
        """The cited numbers of no entry, each once."""
        return list(dict.fromkeys(n for n in self.numbers if not 0 <= n < len(entries)))

    def sources(self, entries: Sequence[DocumentEntry]) -> list[Source]:
        """The places that the cited entries come from, each once, in order."""
        return places_of(self.cited(entries), entries)

    def _text(self, pieces: Iterable[str]) -> Iterator[str]:
        split = SectionSplitter(self.sections)
        try:
            for piece in pieces:
                if isinstance(piece, Thought):
                    yield piece
                elif said := split.push(piece):
                    yield said
            if rest := split.end():
                yield rest
        finally:
            split.close()

    def _whole_json(self, pieces: Iterable[str]) -> Iterator[str]:
        said = ""
        for piece in pieces:
            if isinstance(piece, Thought):
                yield piece
            else:
                said += piece
        said = said.strip()
        try:
            end = json.JSONDecoder().raw_decode(said)[1]
        except (ValueError, RecursionError):
            end = len(said)
        yield said[:end]
        section = said[end:].strip()
        if section.startswith(CITATIONS):
            self.sections.append(section[len(CITATIONS) :].partition(CITATIONS_END)[0])


class SectionSplitter:
    """Takes a reply piece by piece and gives its text without the sections of citations, which it adds to ``sections``."""

    def __init__(self, sections: list[str]) -> None:
        self.sections = sections
        self._held = self._blank = ""  # white space is held back: it is dropped before a section
        self._inside = False

    def push(self, piece: str) -> str:
        """The text that is certain with this piece."""
        said = []
        self._held += piece
        while (at := self._held.find(CITATIONS_END if self._inside else CITATIONS)) >= 0:
            before = self._held[:at]
            self._held = self._held[at + len(CITATIONS_END if self._inside else CITATIONS) :]
            if self._inside:
                self.sections.append(before)
            else:
                said.append((self._blank + before).rstrip())
            self._blank, self._inside = "", not self._inside
        if not self._inside:
            held = self._held
            may_begin = next(n for n in range(len(CITATIONS) - 1, -1, -1) if held.endswith(CITATIONS[:n]))
            text = self._blank + held[: len(held) - may_begin]
            self._held = held[len(held) - may_begin :]
            said.append(text.rstrip())
            self._blank = text[len(said[-1]) :]
        return "".join(said)

    def end(self) -> str:
        """The rest of the text, at the end of the reply."""
        if self._inside:  # never closed: the list is the section, the rest is text
            found = _LIST.match(self._held)
            cut = found.end() if found else 0
            self.sections.append(self._held[:cut])
            self._inside, self._held = False, self._held[cut:].rstrip()
        rest = self._blank + self._held
        return rest if rest.strip() or not self.sections else ""

    def close(self) -> None:
        """Keep the section in which a reply was cut off, if ``end`` was not called."""
        if self._inside:
            self.sections.append(self._held)


def places_of(ids: Iterable[int], entries: Sequence[DocumentEntry]) -> list[Source]:
    """The places that these entries come from, each once, in order."""
    return list(dict.fromkeys(s for n in ids for s in entries[n].sources))


def _numbers(section: str) -> list[int]:
    """The numbers of a section that holds only numbers; none when it has other words, such as "page 3"."""
    plain = _AROUND_NUMBERS.sub(" ", section)
    if re.search(r"[^\W\d_]", plain):
        return []
    # A number with more digits than any count of documents is cut off: it is the number of no document.
    return [int(n[:12]) for n in re.findall(r"(?<![\d.])-?\d+(?![\d.]*\.\d)", plain)]


def _titled(section: str, entries: Sequence[DocumentEntry]) -> list[int]:
    """The entries whose titles occur in the section, in that order."""
    places = ((re.search(rf"{re.escape(e.title)}(?!\w)", section), i) for i, e in enumerate(entries) if e.title)
    return [i for _, i in sorted((m.start(), i) for m, i in places if m)]
