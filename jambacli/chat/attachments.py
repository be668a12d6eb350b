"""The documents of a chat: which go with the next message, and which of them a reply's citations mean.

A chat about files keeps them: taken back or started over, its next first message brings them along again. Knows nothing of
models, sessions or terminals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jambacli.documents.citation_check import ground
from jambacli.documents.citations import Cited, places_of
from jambacli.documents.reader import Entry
from jambacli.engine.generate import Thought
from jambacli.session.conversation import Turn


@dataclass
class Papers:
    """``waiting``: documents for the next message. ``lasting``, ``knobs``: those of a chat about files, and the template's
    modes, for its first message. ``suffix``: what every message ends with. ``cite``: a reply without citations is
    remarked on.
    """

    waiting: list[Entry] = field(default_factory=list)
    lasting: Sequence[Entry] = ()
    knobs: Mapping[str, Any] | None = None
    suffix: str = ""
    cite: bool = False
    _given: dict[str, list[Entry]] = field(default_factory=dict)
    _cited: Cited | None = None
    _meant: list[Entry] = field(default_factory=list)
    _said: str = ""

    def next(self, turns: Sequence[Turn]) -> tuple[list[Entry], Mapping[str, Any] | None]:
        """What goes with a message after ``turns``: documents and modes."""
        first = not any(t.role == "user" for t in turns)
        return [*(self.lasting if first else ()), *self.waiting], self.knobs if first else None

    def went(self, turn: Turn, entries: Sequence[Entry]) -> None:
        """The documents were put before ``turn``, a message that is part of the conversation now."""
        if entries:
            self._given[_block(turn)] = list(entries)

    def worded(self, text: str) -> str:
        """A message as it is put to the model."""
        return text if not self.suffix or text.endswith(self.suffix) else text + self.suffix

    def typed(self, text: str) -> str:
        """A message as the user typed it."""
        return text.removesuffix(self.suffix) if self.suffix else text

    def reply(self, pieces: Iterable[str], turns: Sequence[Turn]) -> Iterator[str]:
        """A reply without its citations; ``places`` are known when it has ended. ``turns`` are looked at then."""
        self._cited, self._meant, self._said = Cited(), [], ""
        answer = self._cited.answer(pieces)
        try:
            for piece in answer:
                if not isinstance(piece, Thought):
                    self._said += piece
                yield piece
        finally:
            getattr(answer, "close", lambda: None)()
            # Numbers count from the documents that were given last.
            blocks = (self._given.get(_block(t)) for t in reversed(turns) if t.role == "user")
            self._meant = next((b for b in blocks if b), [])

    @property
    def places(self) -> list[str]:
        """What the last reply cites: files with pages; numbers where the documents came in another process."""
        if self._cited is None:
            return []
        if not self._meant:
            return [f"document {n}" for n in dict.fromkeys(self._cited.numbers) if n >= 0]
        checked = ground(self._said, self._cited.cited(self._meant), self._meant)
        by = " (where its words stand)" if checked.moved else ""
        return [f"{s}{by}" for s in places_of(checked.ids, self._meant)]

    @property
    def remark(self) -> str:
        """What to say of a last reply that should cite something and does not; "" otherwise."""
        return "the model named no documents" if self.cite and self._cited is not None and not self.places else ""


def _block(turn: Turn) -> str:
    """What stands before a message in the prompt: the same documents are the same text."""
    return turn.plain or (turn.pinned[1] if turn.pinned else "")
