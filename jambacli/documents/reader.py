"""Documents first, then a question or an instruction: what goes to the model, and the places its documents come from.

Every page (or part of a text) is one of the model's documents, titled with its file and page, whether citations are asked
for or not: the same files are the same tokens, so a second question, with or without citations, reads only itself. Knows
nothing of files, consoles or of how a long text is divided into passes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from jambacli.documents.load import Document
from jambacli.engine.generate import CITATIONS, CITATIONS_END
from jambacli.engine.sequence import Reading, silent
from jambacli.session.conversation import render_plain
from jambacli.session.session import Session

if TYPE_CHECKING:
    from jambacli.api import Jamba

#: Tokens kept free for a reply of no stated length, where the context is large enough.
REPLY = 1024


@dataclass(frozen=True)
class Source:
    """Where something stands: a file and its pages, lines or paragraphs ``first`` to ``last``; the whole file without."""

    file: str
    unit: str | None = None
    first: int = 0
    last: int = 0

    def __str__(self) -> str:
        if self.unit is None:
            return self.file
        span = f"{self.unit} {self.first}" if self.first == self.last else f"{self.unit}s {self.first}-{self.last}"
        return f"{self.file}, {span}"

    def to_json(self) -> dict[str, Any]:
        """``{"file", "page": 3}`` or ``{"file", "lines": [1, 80]}``."""
        if self.unit is None:
            return {"file": self.file}
        if self.first == self.last:
            return {"file": self.file, self.unit: self.first}
        return {"file": self.file, f"{self.unit}s": [self.first, self.last]}


@dataclass(frozen=True)
class Entry:
    """One of the model's documents: a title, a text, and the places it comes from."""

    title: str
    text: str
    sources: tuple[Source, ...]

    def as_document(self) -> dict[str, str]:
        """The template's view."""
        return {"title": self.title, "text": self.text}


@dataclass(frozen=True)
class Task:
    """What to do with the documents. ``schema``: the reply is JSON of that schema. ``citations``: it names documents, in a
    section after the text or the JSON (see ``engine.citations``)."""

    text: str
    citations: bool = False
    schema: Mapping[str, Any] | None = None


def entries_of(documents: Sequence[Document]) -> list[Entry]:
    """Every part of every document, in order.

    Titles carry as little of the files' paths as tells them apart: named from elsewhere, they are the same tokens.
    """
    names = _short_names([d.name for d in documents])
    entries = []
    for document, name in zip(documents, names, strict=True):
        for part in document.parts:
            where = document.where(part)
            source = Source(document.name, document.unit, part.first, part.last) if where else Source(document.name)
            entries.append(Entry(f"{name}, {where}" if where else name, part.text, (source,)))
    return entries


def _short_names(names: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that are all different: file names, with folders before them where two are the same."""
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


class Reader:
    """Puts documents and a task before a model, in a session of its own, and streams the reply."""

    def __init__(
        self,
        model: Jamba,
        *,
        options: Mapping[str, Any] | None = None,
        generation: Mapping[str, Any] | None = None,
        reading: Reading = silent,
    ) -> None:
        """``options`` are those of a Session, ``generation`` those of a reply (``max_tokens``, ``temperature`` ...)."""
        self.model = model
        self.options = dict(options or {})
        self.generation = dict(generation or {})
        self.reading = reading
        self.ctx = int(self.options.get("ctx") or model.config.context_length)
        self.session: Session | None = None

    def reserve(self, max_tokens: int | None = None) -> int:
        """Tokens to keep free for the reply."""
        return min(max_tokens or self.generation.get("max_tokens") or REPLY, max(1, self.ctx // 4))

    def prompt(self, entries: Sequence[Entry], task: Task) -> list[int]:
        """The tokens of the whole prompt; ``stream`` then does not tokenize it again."""
        session = self._opened()
        documents = [e.as_document() for e in entries]
        if self.model.template is None:
            text = f"{self.instruction(task)}\n\nAnswer:"
            return render_plain(self.model.tokenizer, text, documents).ids
        self._forget(session)
        session.conversation.add_user(self.instruction(task), documents, self.knobs(task))
        return session.conversation.render().ids

    def stream(self, entries: Sequence[Entry], task: Task, **generation: Any) -> Iterator[str]:
        """The reply in pieces, thoughts as ``Thought``; what the citations say is part of it (see ``engine.citations``)."""
        session = self._opened()
        documents = [e.as_document() for e in entries]
        given = {**self.generation, "reading": self.reading, **generation}
        if task.schema is not None:
            given["schema"] = task.schema
            given["cite"] = len(entries) if task.citations else None
        if self.model.template is None:
            return session.complete(f"{self.instruction(task)}\n\nAnswer:", documents=documents, **given)
        self._forget(session)
        return session.send(self.instruction(task), documents=documents, knobs=self.knobs(task), **given)

    def knobs(self, task: Task) -> dict[str, Any] | None:
        """The template's own modes for the task, None where it has none."""
        if self.model.template is None:
            return None
        knobs: dict[str, Any] = {}
        if task.citations and self._takes("citation_mode", "fast"):
            knobs["citation_mode"] = "fast"
        if task.schema is not None and self._takes("response_format", "json_object"):
            knobs["response_format"] = "json_object"
        return {"is_set": True, **knobs} if knobs else None

    def instruction(self, task: Task) -> str:
        """What is said after the documents: the task, and in words what the template has no mode for."""
        text = task.text
        if task.schema is not None:
            text += f"\n\nReply in JSON that follows this schema: {json.dumps(task.schema, ensure_ascii=False)}"
        if task.citations and not self._takes("citation_mode", "fast"):
            what = "answer" if task.schema is None else "JSON"
            text += (
                f"\n\nAfter the {what}, list the IDs of the documents it is based on, like this: "
                f"{CITATIONS}[2, 5]{CITATIONS_END}"
            )
        return text

    def close(self) -> None:
        """Wait until what was read is stored."""
        if self.session is not None:
            self.session.close()
            self.session = None

    @staticmethod
    def _forget(session: Session) -> None:
        session.conversation.clear()
        if session.sequence.persistence is not None:
            session.sequence.persistence.documents = []

    def _opened(self) -> Session:
        if self.session is None:
            self.session = Session(self.model, **self.options)
        return self.session

    def _takes(self, knob: str, value: str) -> bool:
        template = self.model.template
        if template is None:
            return False
        known: dict[str, bool] = self.__dict__.setdefault("_modes", {})
        if knob not in known:
            conversation = self._opened().conversation
            known[knob] = conversation.takes(**{knob: value})
        return known[knob]
