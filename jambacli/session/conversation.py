"""Turn messages into the token ids of a conversation, so that each turn's ids begin with those of the turn before.

A template renders every turn from scratch, and some move or drop earlier text: documents move to the last
user message, thoughts disappear. A conversation keeps its past tokens reusable:

- an assistant turn keeps the ids that were generated; they replace its rendered text,
- documents and modes stay before the user message that introduced them, in the system block they were rendered as,
- thoughts are kept apart (``reasoning_content``), so that a template that drops them drops nothing before them.

``boundaries`` are the positions where two renderings can diverge (before a user's text, after the documents, after the
assistant's header): checkpoints belong there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from jambacli.errors import JambaError
from jambacli.text.markup import THINK, THINK_END
from jambacli.text.template import FENCE_CLOSE, FENCE_OPEN, ChatTemplate
from jambacli.text.tokenizer import Tokenizer

# Characters of a message that show whether its first token merges with the header before it.
_LOOK_AHEAD = 64
# Minimum tokens between checkpoints at the ends of documents; the number of characters that identify such an end.
_DOCUMENT_STEP, _TAIL = 512, 64
# Characters of a document's number and title, approximately.
_AROUND = 60


@dataclass
class Turn:
    """One message; the field names are keys of the session file. ``ids`` are the visible part of an assistant's generated
    ids, tool calls included; ``thought_ids`` the part before it, with the mark that ends the thoughts. ``extra``: more fields
    of the template's message, such as the tool calls of a message that was not generated here.
    """

    role: str
    content: str
    ids: list[int] | None = None
    thoughts: str | None = None
    thought_ids: list[int] | None = None
    #: Documents and modes rendered before this user message: (characters before its content, the text).
    pinned: tuple[int, str] | None = None
    #: Documents as plain text at the start of this user message, for a template without a place for them.
    plain: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def message(self) -> dict[str, Any]:
        """The turn as the template's input."""
        message: dict[str, Any] = {"role": self.role, "content": self.content, **self.extra}
        return message if self.thoughts is None else {**message, "reasoning_content": self.thoughts}

    def to_json(self) -> dict[str, Any]:
        """The turn as a JSON object, read back by ``from_json``."""
        return {k: v for k, v in asdict(self).items() if v not in (None, {})}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Turn:
        """The turn in a JSON object, whose fields have been checked already."""
        pinned = value.get("pinned")
        return Turn(**{**value, "pinned": (int(pinned[0]), str(pinned[1])) if pinned else None})


@dataclass(frozen=True)
class Rendered:
    """A conversation as token ids, with the positions at which to take checkpoints.

    ``documents_end``: the position after the last documents, 0 without documents.
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
        self._tails: list[tuple[int, str]] = []  # per document its length in characters and its last ones
        self._latest: tuple[str, list[Turn], Rendered] | None = None
        # The last rendering without options: adding a message needs it too, and rendering takes a call to another process.
        self._latest_text: tuple[str, str] | None = None

    def set_system(self, text: str) -> None:
        """Insert a system message at the beginning."""
        self.turns.insert(0, Turn("system", text))

    def add_user(
        self,
        text: str,
        documents: Sequence[Mapping[str, Any]] | None = None,
        knobs: Mapping[str, Any] | None = None,
    ) -> None:
        """Append a user message; ``documents`` and ``knobs`` (the template's variable ``knobs``: its modes) stay before it.

        Documents that the template does not render go into the message, before its text; such knobs are left out.
        """
        turn = Turn("user", text)
        self.turns.append(turn)
        self._tails += [
            (_AROUND + len(str(d.get("text", ""))), str(d.get("text", ""))[-_TAIL:]) for d in documents or ()
        ]
        if documents:
            turn.pinned = self._pin(documents, None)
            if turn.pinned is None:
                turn.plain, documents = plain_documents(documents), None
        if knobs:
            turn.pinned = self._pin(documents, knobs)

    def clear(self) -> None:
        """Remove all turns."""
        self.turns.clear()
        self._tails.clear()

    def takes(self, **knobs: Any) -> bool:
        """Whether the template has a mode for these knobs, that is renders something for them before a user message."""
        probe = Conversation(self.template, self.tokenizer)
        probe.turns.append(Turn("user", "?"))
        with_them = probe._pin(None, {"is_set": True, **knobs})
        return with_them is not None and with_them != probe._pin(None, {"is_set": True})

    def add_assistant(self, ids: Sequence[int], thinking: bool = False) -> Turn:
        """Append a reply by its generated ids (without the stop token); thoughts are split off.

        ``thinking``: the generation prompt had already opened the thoughts.
        """
        ids = list(ids)
        tokenizer = self.tokenizer
        begin, end = thought_marks(tokenizer)
        thoughts: str | None = None
        thought_ids: list[int] | None = None
        if end is not None and (thinking or end in ids):
            ended = end in ids
            cut = ids.index(end) if ended else len(ids)
            thought_ids, ids = ids[:cut], ids[cut + 1 :]
            if thought_ids[:1] == [begin]:
                thought_ids = thought_ids[1:]
            thoughts = tokenizer.decode(thought_ids, markers=True).strip("\n")
            thought_ids += [end] if ended else []
            # The template writes the line breaks around thoughts.
            while ids and tokenizer.decode(ids[:1]) and not tokenizer.decode(ids[:1]).strip("\n"):
                thought_ids.append(ids[0])
                ids = ids[1:]
        text = tokenizer.decode(ids, markers=True)
        turn = Turn("assistant", text[1:] if text.startswith(" ") else text, ids, thoughts, thought_ids)
        self.turns.append(turn)
        return turn

    def render(self, add_generation_prompt: bool = True) -> Rendered:
        """The ids of the whole conversation. Raises JambaError when the template does not render a turn."""
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
        """A rendering with fences around every turn's content, which carry the turn's number."""
        messages = []
        for i, turn in enumerate(self.turns):
            message = self.template.protect_message(turn.message())
            # A template may write a line break between a text and calls, so calls alone have no fence.
            if message["content"] or not message.get("tool_calls"):
                message["content"] = f"{_fence(i)}{message['content']}{FENCE_CLOSE}"
            if turn.plain:
                message["content"] = (
                    f"{_fence(i, 'd')}{self.template.protect(turn.plain)}{FENCE_CLOSE}{message['content']}"
                )
            if "reasoning_content" in message:
                message["reasoning_content"] = f"{_fence(i, 't')}{message['reasoning_content']}{FENCE_CLOSE}"
            messages.append(message)
        if options:
            return self.template.render(
                messages, add_generation_prompt=add_generation_prompt, **{**self.variables, **options}
            )
        key = repr((messages, add_generation_prompt, self.variables))
        if self._latest_text is None or self._latest_text[0] != key:
            text = self.template.render(messages, add_generation_prompt=add_generation_prompt, **self.variables)
            self._latest_text = key, text
        return self._latest_text[1]

    def _pin(
        self, documents: Sequence[Mapping[str, Any]] | None, knobs: Mapping[str, Any] | None
    ) -> tuple[int, str] | None:
        """What documents and knobs add to the rendering of the last user message: (characters before its text, the addition).

        None when the template does not render them by inserting text before the message.
        """
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
            return None  # the template renders them in another place
        return at - shared, full[shared : shared + added]

    def _splice(self, text: str) -> Rendered:
        """Encode a fenced rendering, with the kept ids in place of the assistant's text."""
        ids: list[int] = []
        boundaries: list[int] = []
        documents_end = 0
        thought_end, thoughts_closed = thought_marks(self.tokenizer)[1], False
        encode = self.template.encode_text
        pieces = text.split(FENCE_OPEN)
        # pieces: text, "c3", content CLOSE text, "t4", thoughts CLOSE text, ...
        plain = pieces[0]
        for label, rest in zip(pieces[1::2], pieces[2::2], strict=True):
            content, _, following = rest.partition(FENCE_CLOSE)
            turn = self.turns[int(label[1:])]
            kept = turn.thought_ids if label[0] == "t" else turn.ids
            if kept is None:
                # A user's text is encoded together with the text around it, as in a plain rendering.
                if turn.role == "user":
                    head = self._up_to_marker(plain)
                    ids += encode(head, start=not ids)
                    plain = plain[len(head) :]
                    boundaries.append(len(ids) + self._steady(plain, content))
                plain += content + following
                if label[0] == "d":  # tokens end here, so that another question follows the same ones
                    ids += encode(plain, start=not ids)
                    documents_end, plain = len(ids), ""
                    boundaries.append(documents_end)
                continue
            # The mark between thoughts and answer is among the kept thoughts, with the line breaks that were generated.
            if not (thoughts_closed and plain.strip() == THINK_END):
                ids += encode(self._header(plain), start=not ids)
            boundaries.append(len(ids))
            thoughts_closed = label[0] == "t" and thought_end in kept
            ids += kept
            boundaries.append(len(ids))
            plain = following
        ids += encode(plain, start=not ids)
        inner, end = self._inner_boundaries(ids)
        documents_end = max(documents_end, end)
        boundaries += [*inner, *self._document_ends(ids[:documents_end]), len(ids)]
        return Rendered(ids, sorted({b for b in boundaries if 0 < b <= len(ids)}), documents_end)

    def _up_to_marker(self, text: str) -> str:
        """``text`` up to the end of its last marker: tokens before that do not depend on what follows."""
        pattern = self.tokenizer.marker_pattern("all")
        ends = (
            [m.end() for m in pattern.finditer(text) if self.tokenizer.marker_id(m[0]) is not None] if pattern else []
        )
        return text[: ends[-1]] if ends else ""

    def _steady(self, text: str, following: str) -> int:
        """How many tokens of ``text`` are the same before almost any text: all of them, or 0 if they merge with the tokens of
        ``following``."""
        encode = self.template.encode_text
        alone, together = encode(text, start=False), encode(text + following[:_LOOK_AHEAD], start=False)
        return len(alone) if together[: len(alone)] == alone else 0

    def _header(self, text: str) -> str:
        """The text before a reply, without the space that history has and a generation prompt lacks."""
        head = self._up_to_marker(text)
        return head if head and not text[len(head) :].strip(" ") else text

    def _inner_boundaries(self, ids: Sequence[int]) -> tuple[list[int], int]:
        """The positions after documents (where modes follow) and before thoughts (which history drops), and the end of the
        last documents."""
        after, before = self.tokenizer.marker_id("</documents>"), self.tokenizer.marker_id(THINK)
        found = [i + 1 for i, t in enumerate(ids) if t == after] if after is not None else []
        thoughts = [i for i, t in enumerate(ids) if t == before] if before is not None else []
        return found + thoughts, max(found, default=0)

    def _document_ends(self, ids: Sequence[int]) -> list[int]:
        """Positions at which documents end, at least a twenty-fourth of the whole apart: other documents may follow there.

        An end is where its last characters occur, nearest to the position expected from its share of the characters.
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
            # Without its outer tokens, which may have merged with the text around it.
            core = self.tokenizer.encode(tail)[2:-2]
            starts = np.flatnonzero(data == core[0]) if core else np.empty(0, dtype=np.int64)
            nearest = starts[np.argsort(np.abs(starts + len(core) - expected), kind="stable")][:64].tolist()
            start = next((i for i in nearest if ids[i : i + len(core)] == core), None)
            if start is not None and start + len(core) > (found[-1] if found else 0):
                found.append(start + len(core))
        return found


def thought_marks(tokenizer: Tokenizer) -> tuple[int | None, int | None]:
    """The tokens that begin and end a thought, None for those that the vocabulary lacks."""
    return tokenizer.marker_id(THINK), tokenizer.marker_id(THINK_END)


def ends_in_thought(tokenizer: Tokenizer, ids: Sequence[int], reply: int = 0) -> bool:
    """Whether text after ``ids`` is a thought; the last ``reply`` tokens are the reply so far."""
    begin, end = thought_marks(tokenizer)
    marks = {begin: True, end: False}
    # A prompt opens thoughts at its very end, perhaps before a line break; thoughts of earlier turns do not count.
    recent = ids[len(ids) - reply - 4 :]
    return next((marks[t] for t in reversed(recent) if t in marks), False)


def plain_documents(documents: Sequence[Mapping[str, Any]]) -> str:
    """Documents as Jamba's own template renders them, for templates that do not and for models without a template."""
    parts = ["# Documents\n\nYou can use the following documents for reference:"]
    for i, document in enumerate(documents):
        title = f"\nTitle: {document['title']}" if document.get("title") else ""
        parts.append(f"\n\n## Document ID: {i}{title}\nText: {document.get('text', '')}")
    return "".join(parts) + "\n\n"


def render_plain(tokenizer: Tokenizer, text: str, documents: Sequence[Mapping[str, Any]] | None = None) -> Rendered:
    """``text`` without a template, its markers as single tokens; documents come before it as plain text."""
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
    """The fence before turn ``index``'s content ("c"), thoughts ("t") or documents ("d")."""
    return f"{FENCE_OPEN}{kind}{index}{FENCE_OPEN}"
