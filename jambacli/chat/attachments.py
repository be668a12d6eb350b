"""The documents attached to a chat: which go with the next message, and which a reply's citations refer to.

A chat about files keeps them: after its first message is undone, or the chat is cleared, they are attached to the next
message again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jambacli.documents.citation_check import check_citations
from jambacli.documents.citations import Cited, places_of
from jambacli.documents.pages import DocumentEntry
from jambacli.engine.generate import Thought
from jambacli.session.conversation import Turn


@dataclass
class Attachments:
    """Documents of a chat.

    ``waiting``: documents for the next message. ``lasting`` and ``knobs``: the documents of a chat about files, and the
    template's modes, which go with its first message. ``suffix``: text at the end of every message. ``cite``: whether
    replies should cite documents, see ``remark``.
    """

    waiting: list[DocumentEntry] = field(default_factory=list)
    lasting: Sequence[DocumentEntry] = ()
    knobs: Mapping[str, Any] | None = None
    suffix: str = ""
    cite: bool = False
    _sent: dict[str, list[DocumentEntry]] = field(default_factory=dict)
    _cited: Cited | None = None
    _numbered: list[DocumentEntry] = field(default_factory=list)
    _answer: str = ""

    def for_next(self, turns: Sequence[Turn]) -> tuple[list[DocumentEntry], Mapping[str, Any] | None]:
        """The documents and modes that go with a message after ``turns``."""
        first = not any(t.role == "user" for t in turns)
        return [*(self.lasting if first else ()), *self.waiting], self.knobs if first else None

    def sent(self, turn: Turn, entries: Sequence[DocumentEntry]) -> None:
        """Record that these documents come before ``turn``, a message of the conversation."""
        if entries:
            self._sent[_block(turn)] = list(entries)

    def with_suffix(self, text: str) -> str:
        """A message as the model gets it."""
        return text if not self.suffix or text.endswith(self.suffix) else text + self.suffix

    def without_suffix(self, text: str) -> str:
        """A message as the user typed it."""
        return text.removesuffix(self.suffix) if self.suffix else text

    def reply(self, pieces: Iterable[str], turns: Sequence[Turn]) -> Iterator[str]:
        """A reply without its citations; ``places`` are known at its end, from ``turns`` as they are then."""
        self._cited, self._numbered, self._answer = Cited(), [], ""
        answer = self._cited.answer(pieces)
        try:
            for piece in answer:
                if not isinstance(piece, Thought):
                    self._answer += piece
                yield piece
        finally:
            getattr(answer, "close", lambda: None)()
            # Citations count the documents that were sent last.
            blocks = (self._sent.get(_block(t)) for t in reversed(turns) if t.role == "user")
            self._numbered = next((b for b in blocks if b), [])

    @property
    def places(self) -> list[str]:
        """The files and pages that the last reply cites; numbers for documents that another process sent."""
        if self._cited is None:
            return []
        if not self._numbered:
            return [f"document {n}" for n in dict.fromkeys(self._cited.numbers) if n >= 0]
        checked = check_citations(self._answer, self._cited.cited(self._numbered), self._numbered)
        by = " (where the answer's words occur)" if checked.replaced else ""
        return [f"{s}{by}" for s in places_of(checked.ids, self._numbered)]

    @property
    def remark(self) -> str:
        """A remark if the last reply should cite documents and does not, else ""."""
        return "the model cited no documents" if self.cite and self._cited is not None and not self.places else ""


def _block(turn: Turn) -> str:
    """The documents of a message as text in the prompt: equal for the same documents."""
    return turn.plain or (turn.pinned[1] if turn.pinned else "")
