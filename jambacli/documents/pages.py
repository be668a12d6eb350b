"""Documents -> entries: the pages and parts that the model gets, each with the places it comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from jambacli.documents.load import Document


@dataclass(frozen=True)
class Source:
    """A place in a file: pages, lines or sheets ... (``unit``) ``first`` to ``last``; without a unit the whole file.

    ``label``: what the place is called beside its number.
    """

    file: str
    unit: str | None = None
    first: int = 0
    last: int = 0
    label: str = ""

    def __str__(self) -> str:
        if self.unit is None:
            return self.file
        span = f"{self.unit} {self.first}" if self.first == self.last else f"{self.unit}s {self.first}-{self.last}"
        return f"{self.file}, {span} ({self.label})" if self.label else f"{self.file}, {span}"

    def to_json(self) -> dict[str, Any]:
        """``{"file", "page": 3}``, ``{"file", "lines": [1, 80]}`` or ``{"file", "sheet": 2, "label": "Costs"}``."""
        if self.unit is None:
            return {"file": self.file}
        label = {"label": self.label} if self.label else {}
        if self.first == self.last:
            return {"file": self.file, self.unit: self.first, **label}
        return {"file": self.file, f"{self.unit}s": [self.first, self.last], **label}


@dataclass(frozen=True)
class DocumentEntry:
    """One of the documents in a prompt: a title, a text, and the places it comes from."""

    title: str
    text: str
    sources: tuple[Source, ...]

    def as_document(self) -> dict[str, str]:
        """The entry as the chat template's input."""
        return {"title": self.title, "text": self.text}


def entries_of(documents: Sequence[Document]) -> list[DocumentEntry]:
    """Every part of every document, in order.

    Titles contain the shortest ends of the paths that distinguish the files, so that the same files give the same tokens
    from any working directory.
    """
    names = _short_names([d.name for d in documents])
    entries = []
    for document, name in zip(documents, names, strict=True):
        for part in document.parts:
            where = document.where(part)
            source = (
                Source(document.name, document.unit, part.first, part.last, part.label)
                if where
                else Source(document.name)
            )
            entries.append(DocumentEntry(f"{name}, {where}" if where else name, part.text, (source,)))
    return entries


def _short_names(names: Sequence[str]) -> list[str]:
    """The shortest ends that distinguish the paths: file names, with parent folders where two are the same."""
    parts = [PurePath(name).parts or (name,) for name in names]
    taken = [1] * len(names)
    while True:
        short = ["/".join(p[-n:]) for p, n in zip(parts, taken, strict=True)]
        count = Counter(short)
        longer = [i for i, s in enumerate(short) if count[s] > 1 and taken[i] < len(parts[i])]
        if not longer:
            return short
        for i in longer:
            taken[i] += 1
