"""Messages -> the token ids of a whole conversation, stable from turn to turn; knows nothing of models or disks.

A template renders every turn from scratch, and some move or drop what they rendered before: documents wander to the
last user message, thoughts disappear. Here a conversation keeps its past where the model can reuse it:

- an assistant turn keeps the ids that were generated; they are spliced in where its text was rendered,
- documents and modes stay, as the system block they were rendered as, before the user message that introduced them,
- thoughts are kept apart (``reasoning_content``), so a template that drops them drops nothing before them.

The places where two renderings can part (before a user's text, after the documents, after the assistant's header) come
back as ``boundaries``: that is where checkpoints belong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from jambacli.errors import JambaError
from jambacli.text.template import FENCE_CLOSE, FENCE_OPEN, ChatTemplate
from jambacli.text.tokenizer import Tokenizer

THINK, THINK_END = "<think>", "</think>"
# Characters of a message that are enough to see whether its beginning runs into the header before it.
_LOOK_AHEAD = 64
# Checkpoints at the ends of documents are at least so many tokens apart; an end is known by so many characters.
_DOCUMENT_STEP, _TAIL = 512, 64
# Characters of a document's number and title, about.
_AROUND = 60


@dataclass
class Turn:
    """One message. ``ids`` are an assistant's generated ids (visible part; ``thought_ids`` the part before it)."""

    role: str
    content: str
    ids: list[int] | None = None
    thoughts: str | None = None
    thought_ids: list[int] | None = None
    #: What documents and modes put before this user message: (characters before its content, the text).
    pinned: tuple[int, str] | None = None
    #: Documents as plain text at the beginning of this user message, where the template has no place for them.
    plain: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def message(self) -> dict[str, Any]:
        """The template's view of this turn."""
        message: dict[str, Any] = {"role": self.role, "content": self.content, **self.extra}
        return message if self.thoughts is None else {**message, "reasoning_content": self.thoughts}

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` reads."""
        return {k: v for k, v in asdict(self).items() if v not in (None, {})}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Turn:
        """The turn in a JSON object whose fields have been checked."""
        pinned = value.get("pinned")
        return Turn(**{**value, "pinned": (int(pinned[0]), str(pinned[1])) if pinned else None})


@dataclass(frozen=True)
class Rendered:
    """A conversation as ids, and the positions where checkpoints are worth having.

    ``documents_end``: the position after the last documents in it, 0 where there are none.
    """

    ids: list[int]
    boundaries: list[int]
    documents_end: int = 0


class Conversation:
    """The turns of one chat and their stable rendering."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, system: str | None = None) -> None:
        self.template = template
        self.tokenizer = tokenizer
        self.turns: list[Turn] = [Turn("system", system)] if system else []
        self.variables: dict[str, Any] = {}
        self._tails: list[tuple[int, str]] = []  # characters of each document read, and its last ones
        self._latest: tuple[str, list[Turn], Rendered] | None = None

    def set_system(self, text: str) -> None:
        """Put a system message first."""
        self.turns.insert(0, Turn("system", text))

    def add_user(
        self,
        text: str,
        documents: Sequence[Mapping[str, Any]] | None = None,
        knobs: Mapping[str, Any] | None = None,
    ) -> None:
        """Append a user message; documents and knobs (the template's modes) are pinned before it.

        Documents that the template has no place for go into the message, before its text; such knobs are left out.
        """
        turn = Turn("user", text)
        self.turns.append(turn)
        self._tails += [
            (_AROUND + len(str(d.get("text", ""))), str(d.get("text", ""))[-_TAIL:]) for d in documents or ()
        ]
        if documents and self._pin(documents, None) is None:
            turn.plain, documents = plain_documents(documents), None
        if documents or knobs:
            turn.pinned = self._pin(documents, knobs)

    def clear(self) -> None:
        """Forget every turn."""
        self.turns.clear()
        self._tails.clear()

    def takes(self, **knobs: Any) -> bool:
        """Whether the template has a mode for these knobs: renders something for them before a user message."""
        probe = Conversation(self.template, self.tokenizer)
        probe.turns.append(Turn("user", "?"))
        with_them = probe._pin(None, {"is_set": True, **knobs})
        return with_them is not None and with_them != probe._pin(None, {"is_set": True})

    def add_assistant(self, ids: Sequence[int], thinking: bool = False) -> Turn:
        """Append a reply by the ids that were generated (without the stop token), thoughts split off.

        ``thinking``: the generation prompt had opened the thoughts already.
        """
        ids = list(ids)
        tokenizer = self.tokenizer
        begin, end = thought_marks(tokenizer)
        thoughts: str | None = None
        thought_ids: list[int] | None = None
        if end is not None and (thinking or end in ids):
            cut = ids.index(end) if end in ids else len(ids)
            thought_ids, ids = ids[:cut], ids[cut + 1 :]
            if thought_ids[:1] == [begin]:
                thought_ids = thought_ids[1:]
            thoughts = tokenizer.decode(thought_ids, markers=True).strip("\n")
            # The template writes the line breaks around thoughts itself.
            while ids and tokenizer.decode(ids[:1]) and not tokenizer.decode(ids[:1]).strip("\n"):
                ids = ids[1:]
        text = tokenizer.decode(ids, markers=True)
        turn = Turn("assistant", text[1:] if text.startswith(" ") else text, ids, thoughts, thought_ids)
        self.turns.append(turn)
        return turn

    def render(self, add_generation_prompt: bool = True) -> Rendered:
        """The ids of the whole conversation. Raises JambaError when the template cannot place a turn."""
        text = self._text(add_generation_prompt)
        for i, turn in enumerate(self.turns):
            if turn.pinned:
                before, block = turn.pinned
                at = text.find(_fence(i))
                if at < before:
                    raise JambaError("the chat template left out the message that introduced the documents")
                text = text[: at - before] + block + text[at - before :]
        if self._latest is None or self._latest[:2] != (text, self.turns):
            self._latest = text, [replace(t) for t in self.turns], self._splice(text)
        return self._latest[2]

    def _text(self, add_generation_prompt: bool = True, **options: Any) -> str:
        """A rendering in which every turn's content stands between fences with its number."""
        messages = []
        for i, turn in enumerate(self.turns):
            message = self.template.protect_message(turn.message())
            message["content"] = f"{_fence(i)}{message['content']}{FENCE_CLOSE}"
            if turn.plain:
                message["content"] = (
                    f"{_fence(i, 'd')}{self.template.protect(turn.plain)}{FENCE_CLOSE}{message['content']}"
                )
            if "reasoning_content" in message:
                message["reasoning_content"] = f"{_fence(i, 't')}{message['reasoning_content']}{FENCE_CLOSE}"
            messages.append(message)
        return self.template.render(
            messages, add_generation_prompt=add_generation_prompt, **{**self.variables, **options}
        )

    def _pin(
        self, documents: Sequence[Mapping[str, Any]] | None, knobs: Mapping[str, Any] | None
    ) -> tuple[int, str] | None:
        """What documents and knobs add to the rendering of the last user message, and how far before its text."""
        options: dict[str, Any] = {"documents": self.template.protect(documents)} if documents else {}
        if knobs:
            options["knobs"] = self.template.protect(knobs)
        bare, full = self._text(), self._text(**options)
        at = bare.find(_fence(len(self.turns) - 1))
        added = len(full) - len(bare)
        if added <= 0 or at < 0:
            return None
        shared = next((i for i in range(at) if bare[i] != full[i]), at)
        if full[shared + added :] != bare[shared:]:
            return None  # not a pure insertion: such a template takes its documents elsewhere
        return at - shared, full[shared : shared + added]

    def _splice(self, text: str) -> Rendered:
        """Encode a fenced rendering, the kept ids in place of the assistant's text."""
        ids: list[int] = []
        boundaries: list[int] = []
        documents_end = 0
        encode = self.template.encode_text
        pieces = text.split(FENCE_OPEN)
        # pieces: text, "c3", content CLOSE text, "t4", thoughts CLOSE text, ...
        plain = pieces[0]
        for label, rest in zip(pieces[1::2], pieces[2::2], strict=True):
            content, _, following = rest.partition(FENCE_CLOSE)
            turn = self.turns[int(label[1:])]
            kept = turn.thought_ids if label[0] == "t" else turn.ids
            if kept is None:
                # A user's text: encoded together with what surrounds it, as one rendering would be.
                if turn.role == "user":
                    head = self._up_to_marker(plain)
                    ids += encode(head, start=not ids)
                    plain = plain[len(head) :]
                    boundaries.append(len(ids) + self._steady(plain, content))
                plain += content + following
                if label[0] == "d":  # a seam in the tokens, so that another question begins after the same ones
                    ids += encode(plain, start=not ids)
                    documents_end, plain = len(ids), ""
                    boundaries.append(documents_end)
                continue
            ids += encode(self._header(plain), start=not ids)
            boundaries.append(len(ids))
            ids += kept
            boundaries.append(len(ids))
            plain = following
        ids += encode(plain, start=not ids)
        inner, end = self._inner_boundaries(ids)
        documents_end = max(documents_end, end)
        boundaries += [*inner, *self._document_ends(ids[:documents_end]), len(ids)]
        return Rendered(ids, sorted({b for b in boundaries if 0 < b <= len(ids)}), documents_end)

    def _up_to_marker(self, text: str) -> str:
        """``text`` up to and with its last marker: tokens before there do not depend on what follows."""
        pattern = self.tokenizer.marker_pattern("all")
        ends = (
            [m.end() for m in pattern.finditer(text) if self.tokenizer.marker_id(m[0]) is not None] if pattern else []
        )
        return text[: ends[-1]] if ends else ""

    def _steady(self, text: str, following: str) -> int:
        """How many tokens of ``text`` stay the same before almost any other ``following``: its own count, or 0 where they
        run together with this one."""
        encode = self.template.encode_text
        alone, together = encode(text, start=False), encode(text + following[:_LOOK_AHEAD], start=False)
        return len(alone) if together[: len(alone)] == alone else 0

    def _header(self, text: str) -> str:
        """What was rendered before a reply, without the space history puts there and a generation prompt does not."""
        head = self._up_to_marker(text)
        return head if head and not text[len(head) :].strip(" ") else text

    def _inner_boundaries(self, ids: Sequence[int]) -> tuple[list[int], int]:
        """Right after documents (modes follow there) and right before thoughts begin (history drops them); and where the
        last documents end."""
        after, before = self.tokenizer.marker_id("</documents>"), self.tokenizer.marker_id(THINK)
        found = [i + 1 for i, t in enumerate(ids) if t == after] if after is not None else []
        thoughts = [i for i, t in enumerate(ids) if t == before] if before is not None else []
        return found + thoughts, max(found, default=0)

    def _document_ends(self, ids: Sequence[int]) -> list[int]:
        """Where documents end, no closer than a twenty-fourth of the whole: others may follow the same first ones.

        An end is the place nearest to where its share of the characters would put it that reads like it.
        """
        step = max(_DOCUMENT_STEP, len(ids) // 24)
        total = sum(size for size, _ in self._tails)
        data = np.asarray(ids, dtype=np.int64)
        found: list[int] = []
        used = 0
        for size, tail in self._tails:
            used += size
            expected = len(ids) * used // total
            if expected - (found[-1] if found else 0) < step:
                continue
            # Without its outer tokens, which may have run together with what stands around the text.
            core = self.tokenizer.encode(tail)[2:-2]
            starts = np.flatnonzero(data == core[0]) if core else np.empty(0, dtype=np.int64)
            nearest = starts[np.argsort(np.abs(starts + len(core) - expected), kind="stable")][:64].tolist()
            start = next((i for i in nearest if ids[i : i + len(core)] == core), None)
            if start is not None and start + len(core) > (found[-1] if found else 0):
                found.append(start + len(core))
        return found


def thought_marks(tokenizer: Tokenizer) -> tuple[int | None, int | None]:
    """The tokens that begin and end a thought, None where the vocabulary has none."""
    return tokenizer.marker_id(THINK), tokenizer.marker_id(THINK_END)


def ends_in_thought(tokenizer: Tokenizer, ids: Sequence[int], reply: int = 0) -> bool:
    """Whether the text after ``ids``, whose last ``reply`` tokens are a reply, is a thought."""
    begin, end = thought_marks(tokenizer)
    marks = {begin: True, end: False}
    # A prompt opens thoughts at its very end (a line break may follow); earlier turns' thoughts do not count.
    recent = ids[len(ids) - reply - 4 :]
    return next((marks[t] for t in reversed(recent) if t in marks), False)


def plain_documents(documents: Sequence[Mapping[str, Any]]) -> str:
    """Documents as the text that Jamba's own template makes of them, for templates and models without one."""
    parts = ["# Documents\n\nYou can use the following documents for reference:"]
    for i, document in enumerate(documents):
        title = f"\nTitle: {document['title']}" if document.get("title") else ""
        parts.append(f"\n\n## Document ID: {i}{title}\nText: {document.get('text', '')}")
    return "".join(parts) + "\n\n"


def render_plain(tokenizer: Tokenizer, text: str, documents: Sequence[Mapping[str, Any]] | None = None) -> Rendered:
    """``text`` as it is, its markers single tokens, for a model without a template; documents, all text, before it."""
    ids: list[int] = []
    if documents:
        ids = tokenizer.encode(plain_documents(documents))
    end = len(ids)
    ids += tokenizer.encode(text, markers="all")
    if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        ids.insert(0, tokenizer.bos_id)
        end += end > 0
    return Rendered(ids, sorted({end, len(ids)} - {0}), end)


def _fence(index: int, kind: str = "c") -> str:
    """The mark before turn ``index``'s content ("c") or thoughts ("t")."""
    return f"{FENCE_OPEN}{kind}{index}{FENCE_OPEN}"
