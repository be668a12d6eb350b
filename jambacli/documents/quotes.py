"""Where an answer's sentences stand in the documents that it cites: for each the sentence there that has its words.

A model cites pages. A person wants to see the very sentence, and no sentence at all where none has the answer's words.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jambacli.documents.extract.words_match import matching
from jambacli.documents.pages import DocumentEntry

# A sentence supports another if it has this share of the weight of its words, and this many of them; where the model cites
# nothing, more of both.
_SHARE, _WORDS = 0.5, 2
_SHARE_UNCITED, _WORDS_UNCITED = 0.75, 3
# Sentences of an answer that are looked up, and of a document; characters of one: longer ones are cut.
_MOST, _MOST_THERE, _LONGEST = 400, 200_000, 600
_BREAK = re.compile(
    r"(?<=[.!?…])[\"'”’»)\]]*\s+(?=[\"'“‘«(\[]*[^\s\W_]|[-*•])|\n\s*\n|\n(?=\s*(?:[-*•|#>]|\d+[.)]\s))|(?<=[。！？])"
)
_QUOTED = re.compile(r"[“\"„«]([^“”\"„«»\n]{8,400})[”\"“»]")


@dataclass(frozen=True)
class Mark:
    """What a part of an answer is based on.

    ``start``, ``end``: its characters. ``entry``: the index of the document. ``place``: the characters of the document's text
    that say it, None if none do. ``stated``: whether the model cited the document, not only the words.
    """

    start: int
    end: int
    entry: int
    place: tuple[int, int] | None
    stated: bool = True


def marks_of(answer: str, cited: Sequence[int], entries: Sequence[DocumentEntry]) -> list[Mark]:
    """The marks of an answer that cites ``entries`` by these indices, in the order of the answer.

    Each sentence gets the sentence that fits best. A cited document without any gets one mark without a place, at the answer's
    end. Of an answer without citations the sentences are marked whose words are all but certain to be from one place.
    """
    stated = bool(cited)
    among = list(cited) if stated else list(range(len(entries)))
    there = _Sentences([entries[i].text for i in among])
    marks: list[Mark] = []
    for start, end in _spans(answer, _MOST):
        found = there.best(
            answer[start:end], _SHARE if stated else _SHARE_UNCITED, _WORDS if stated else _WORDS_UNCITED
        )
        if found is not None:
            marks.append(Mark(start, end, among[found[0]], found[1:], stated))
    if stated:
        shown = {mark.entry for mark in marks}
        end = len(answer.rstrip())
        marks += [Mark(end, end, i, None) for i in among if i not in shown]
    return marks


def find_quote(text: str, quote: str) -> tuple[int, int] | None:
    """The characters of ``text`` that are ``quote``, whatever its spaces, hyphens and case; None if they are nowhere."""
    return next(iter(matching(text, quote, whole=True)), None)


class _Sentences:
    """The sentences of texts by their words."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._where: list[tuple[int, int, int]] = []
        self._having: dict[str, list[int]] = {}
        counts: Counter[str] = Counter()
        for i, text in enumerate(texts):
            for start, end in _spans(text, _MOST_THERE - len(self._where)):
                words = _words(text[start:end])
                for word in words:
                    self._having.setdefault(word, []).append(len(self._where))
                counts.update(words)
                self._where.append((i, start, end))
        total = len(self._where)
        self._weights = {word: math.log((1 + total) / n) for word, n in counts.items()}

    def best(self, said: str, share: float, least: int) -> tuple[int, int, int] | None:
        """The text and the characters of the sentence that has most of ``said``, None if none has enough."""
        for match in _QUOTED.finditer(said):  # a verbatim quote is where it is, or nowhere
            for i, text in enumerate(self._texts):
                if (found := find_quote(text, match[1])) is not None:
                    return i, *found
        words = _words(said)
        usual = math.log(1 + len(self._where))
        total = sum(self._weights.get(word, usual) for word in words)
        scores: Counter[int] = Counter()
        for word in words:
            for at in self._having.get(word, ()):
                scores[at] += self._weights[word]  # type: ignore[assignment]
        if not scores or not total:
            return None
        highest = max(scores.values())
        # Of equally good ones the shortest: it says the least besides.
        at = min(
            (i for i, s in scores.items() if s >= highest - 1e-9), key=lambda i: self._where[i][2] - self._where[i][1]
        )
        i, start, end = self._where[at]
        shared = words & _words(self._texts[i][start:end])
        if highest < share * total or len(shared) < min(least, len(words)):
            return None
        return i, start, end


def _spans(text: str, most: int) -> Iterator[tuple[int, int]]:
    """The sentences, list items and table rows of a text, without the space around them."""
    count, start = 0, 0
    ends = [(m.start(), m.end()) for m in _BREAK.finditer(text)] + [(len(text), len(text))]
    for end, following in ends:
        for first in range(start, end, _LONGEST):
            piece = text[first : min(end, first + _LONGEST)]
            lead = len(piece) - len(piece.lstrip())
            if stripped := piece.strip():
                if count >= most:
                    return
                count += 1
                yield first + lead, first + lead + len(stripped)
        start = following


def _words(text: str) -> set[str]:
    """The words of three letters or more and all numbers, and single letters of scripts without spaces."""
    found = set()
    for word in re.findall(r"\w+", text.casefold()):
        if len(word) > 2 or word.isdigit():
            found.add(word)
        if word[0] >= "\u2e80":
            found |= set(word)
    return found
