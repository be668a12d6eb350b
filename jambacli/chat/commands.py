"""What can be done in a chat besides talking: regenerate, edit, undo, branch, attach, load; knows nothing of terminals.

Every action changes the turns of a Session and, where a reply follows, returns it as a stream. What is reused and what is
read again follows by itself from the session's one operation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jambacli import ui
from jambacli.chat.attachments import Papers
from jambacli.documents.load import read_documents
from jambacli.documents.reader import entries_of
from jambacli.engine.sequence import Reading, common_prefix, silent
from jambacli.errors import JambaError, UsageError
from jambacli.session import session_file
from jambacli.session.conversation import Conversation, Turn
from jambacli.session.session import Session
from jambacli.units import counted

if TYPE_CHECKING:
    from jambacli.api import Jamba

HELP = {
    "/help": "this list",
    "/regenerate": "another reply to the last message",
    "/edit [N] TEXT": "say the last (or Nth) message differently",
    "/undo": "take back the last message and its reply",
    "/continue": "go on with a reply that was cut off",
    "/branch NAME": "go on under another name; the present one stays as it is",
    "/branches": "the branches of this chat",
    "/system TEXT": "set the system message",
    "/file PATH": "attach a file, or a directory's, to the next message",
    "/save NAME": "keep this chat under a name",
    "/load NAME": "go on with another chat",
    "/think": "show or fold the model's thoughts",
    "/stats": "figures of the last reply and the context",
    "/clear": "start over, with the same system message",
    "/exit": "leave (Ctrl-D does too)",
}


# Tokens that --overflow keeps free for a reply of no stated length.
_ROOM = 512


@dataclass
class Outcome:
    """What an input led to: a reply to stream, or lines to show, or the end."""

    reply: Iterator[str] | None = None
    lines: list[str] = field(default_factory=list)
    leave: bool = False


class Chat:
    """A session and the commands on it. ``options`` are those of a new Session; ``generation`` those of a reply."""

    def __init__(
        self,
        model: Jamba,
        *,
        options: dict[str, Any],
        generation: dict[str, Any],
        name: str | None = None,
        overflow: bool = False,
        reading: Reading = silent,
        tell: Callable[[str], None] = ui.note,
    ) -> None:
        """``name``: resume the session of that name, or begin it. ``overflow``: drop the oldest turns at the limit.

        ``tell`` shows a line that belongs to no reply.
        """
        self.model = model
        self.tell = tell
        self.show_thoughts = True
        # Tokens of the context that still count after turns were taken back; None: all.
        self._standing: int | None = None
        self._options, self._generation = options, generation
        self._overflow = overflow
        self._reading = reading
        self.papers = Papers()
        self.session = self._open(name)
        self._count()  # a model without a template is refused now, not at the first message

    def handle(self, text: str) -> Outcome:
        """One input of the user: a message, or a command. Raises JambaError with nothing changed."""
        word, _, rest = text.strip().partition(" ")
        if not text.strip():
            return Outcome()
        if not word.startswith("/") or "/" in word[1:]:
            return self.say(text)
        actions: dict[str, Callable[[str], Outcome]] = {
            "/help": self._help,
            "/regenerate": self._regenerate,
            "/edit": self._edit,
            "/undo": self._undo,
            "/continue": self._continue,
            "/branch": self._branch,
            "/branches": self._branches,
            "/system": self._system,
            "/file": self._file,
            "/save": self._save,
            "/load": self._load,
            "/think": self._think,
            "/stats": self._stats,
            "/clear": self._clear,
            "/exit": lambda _: Outcome(leave=True),
            "/quit": lambda _: Outcome(leave=True),
        }
        action = actions.get(word)
        if action is None:
            raise UsageError(f"there is no command {word}; /help lists them (a message may start with a space)")
        return action(rest.strip())

    def say(self, text: str) -> Outcome:
        """A message, also one that begins like a command."""
        return Outcome(reply=self._reply(self._say(self.papers.worded(text))))

    def close(self) -> None:
        """Save what is being saved and release the session."""
        self.session.close()

    @property
    def used(self) -> int:
        """Tokens of the conversation in the context."""
        held = len(self.session.sequence.tokens)
        return held if self._standing is None else min(held, self._standing)

    @property
    def messages(self) -> int:
        """How many messages the user has sent."""
        return len(self._asked())

    @property
    def last(self) -> str:
        """The beginning of the user's last message."""
        return _short(self.message(self.messages))

    def message(self, number: int) -> str:
        """The user's message of that number, from 1. Raises UsageError where there is none."""
        asked = self._asked()
        if not 1 <= number <= len(asked):
            raise UsageError(f"there is no message {number} to edit; there are {len(asked)}")
        return self.papers.typed(self.session.conversation.turns[asked[number - 1]].content)

    def to_edit(self, text: str) -> int | None:
        """The number of the message that "/edit" or "/edit N" without a new text means, None for any other input."""
        word, _, rest = text.strip().partition(" ")
        number = int(rest) if rest.strip().isdigit() else 0 if rest.strip() else self.messages
        return number if word == "/edit" and 1 <= number <= self.messages else None

    def _asked(self) -> list[int]:
        """Which turns are the user's messages."""
        return [i for i, t in enumerate(self.session.conversation.turns) if t.role == "user"]

    def _open(self, name: str | None) -> Session:
        stored = self._options.get("store", True)
        name = name and session_file.check_name(name)
        if name is not None and session_file.exists(name):
            return Session(self.model, **{**self._options, "resume": name})
        if stored and not self._options.get("read_only"):
            return Session(self.model, **{**self._options, "name": name or session_file.generated_name()})
        if name is not None:
            raise session_file.not_there(name)
        return Session(self.model, **self._options)

    def _say(self, text: str) -> Iterator[str]:
        before = list(self.session.conversation.turns)
        try:
            yield from self._answered(before, lambda reserve: self._send(text, reserve), asked=False)
        finally:
            if self.session.conversation.turns != before:  # else what came with the message waits for the next
                self.papers.waiting = []

    def _send(self, text: str, reserve: int) -> Iterator[str]:
        turns = self.session.conversation.turns
        entries, knobs = self.papers.next(turns)
        documents = [e.as_document() for e in entries] or None
        given: dict[str, Any] = {**self._generation, "knobs": knobs, "reserve": reserve}
        pieces = self.session.send(text, documents=documents, reading=self._reading, **given)
        self.papers.went(turns[-1], entries)
        return pieces

    def _reply(self, pieces: Iterator[str]) -> Iterator[str]:
        """The pieces without citations; ``papers.places`` says afterwards what they name."""
        return self.papers.reply(pieces, self.session.conversation.turns)

    def _answer(self, before: list[Turn]) -> Iterator[str]:
        """A reply to turns that have been changed; ``before`` is what they were."""

        def start(reserve: int) -> Iterator[str]:
            return self.session.answer(reading=self._reading, reserve=reserve, **self._generation)

        return self._answered(before, start, asked=True)

    def _answered(self, before: list[Turn], start: Callable[[int], Iterator[str]], asked: bool) -> Iterator[str]:
        """The reply that ``start`` begins; where none comes, the turns are what they were ``before``.

        Where the context is full, the oldest turns go first, or the user is told what can be done. ``asked``: the message
        to answer is a turn already, which must stay.
        """
        from jambacli.model.state import ContextFullError

        conversation, ctx = self.session.conversation, self.session.sequence.ctx
        self._standing = None
        room = min(self._generation.get("max_tokens") or _ROOM, ctx // 8) if self._overflow else 0
        standing, dropped = list(conversation.turns), 0
        try:
            while True:
                try:
                    with contextlib.closing(start(room)) as pieces:  # type: ignore[type-var]
                        yield from pieces
                    return
                except ContextFullError as error:
                    conversation.turns[:] = standing
                    if not self._overflow:
                        raise JambaError(
                            f"{error}, take turns back with /undo, start over with /clear, "
                            "or run with --overflow to drop the oldest turns"
                        ) from error
                    gone = _drop_oldest(conversation, keep_last=asked)
                    if not gone and not room:
                        raise
                    # All that follows is read again, so make room for more than one turn at once.
                    room = ctx // 4 if gone else 0
                    standing, dropped = list(conversation.turns), dropped + gone
        except (JambaError, KeyboardInterrupt):
            turns = conversation.turns
            if not turns or turns[-1].role != "assistant" or any(turns[-1] is t for t in before):
                turns[:] = before
            raise
        finally:
            if dropped and conversation.turns != before:
                self.tell(f"[the context was full: the oldest {counted(dropped, 'turn')} went]")

    def _changed(self) -> None:
        """Turns were taken back: count what is left of the context, and save."""
        self.session.changed()
        self._count()

    def _count(self) -> None:
        """How much of the context still counts, where turns were taken back since the last reply."""
        conversation = self.session.conversation
        self._standing = None
        if self.session.taken_back:
            ids = conversation.render(add_generation_prompt=False).ids if conversation.turns else []
            self._standing = common_prefix(self.session.sequence.tokens, ids)

    def _help(self, _: str) -> Outcome:
        return Outcome(lines=[f"{name:<16} {what}" for name, what in HELP.items()])

    def _regenerate(self, _: str) -> Outcome:
        if not self._asked():
            raise UsageError("there is no message to answer again yet")
        seed = self._generation.get("seed")
        if seed is not None:  # the same seed would say the same again
            self._generation["seed"] = seed + 1
        return Outcome(reply=self._reply(self._answer(list(self.session.conversation.turns))))

    def _edit(self, rest: str) -> Outcome:
        turns, asked = self.session.conversation.turns, self._asked()
        first, _, more = rest.partition(" ")
        number = int(first) if first.isdigit() and more.strip() else len(asked)
        text = more.strip() if first.isdigit() and more.strip() else rest
        if not asked or not 1 <= number <= len(asked):
            raise UsageError(f"there is no message {number} to edit; there are {len(asked)}")
        if not text:
            raise UsageError("/edit needs the new text: /edit TEXT, or /edit N TEXT for the Nth message")
        at, before = asked[number - 1], list(turns)
        turns[at:] = [replace(turns[at], content=self.papers.worded(text))]
        return Outcome(reply=self._reply(self._answer(before)))

    def _undo(self, _: str) -> Outcome:
        turns, asked = self.session.conversation.turns, self._asked()
        if not asked:
            raise UsageError("there is nothing to take back")
        text = turns[asked[-1]].content
        del turns[asked[-1] :]
        self._changed()
        return Outcome(lines=[f"taken back: {_short(text)}"])

    def _continue(self, _: str) -> Outcome:
        return Outcome(reply=self._reply(self.session.extend(reading=self._reading, **self._generation)))

    def _branch(self, name: str) -> Outcome:
        if not name:
            raise UsageError("/branch needs a name")
        old = self.session.name
        self._save(name)
        return Outcome(lines=[f"now on {name}; {old} stays as it is"])

    def _branches(self, _: str) -> Outcome:
        family = session_file.family(self.session.name or "")
        return Outcome(lines=[("* " if n == self.session.name else "  ") + n for n in family])

    def _system(self, text: str) -> Outcome:
        turns = self.session.conversation.turns
        if turns and turns[0].role == "system":
            del turns[0]
        if text:
            self.session.conversation.set_system(text)
        self.session.commit()
        return Outcome(lines=["the system message is " + (f"now: {_short(text)}" if text else "gone")])

    def _file(self, path: str) -> Outcome:
        if not path:
            raise UsageError("/file needs a path")
        lines: list[str] = []
        documents = read_documents([path], problem=lines.append)
        entries = entries_of(documents)
        self.papers.waiting += entries
        count = sum(len(self.model.tokenizer.encode(e.text)) for e in entries)
        what = Path(path).name if len(documents) == 1 else f"{len(documents):,} files"
        lines += [r for d in documents for r in d.remarks]
        return Outcome(lines=[*lines, f"{what} ({count:,} tokens) goes with the next message"])

    def _save(self, name: str) -> Outcome:
        name = name and session_file.check_name(name)
        if name and name != self.session.name and session_file.exists(name):
            raise UsageError(f"there is a session {name!r} already; choose another name")
        self.session.save(name or None)
        return Outcome(lines=[f"saved as {self.session.name}"])

    def _load(self, name: str) -> Outcome:
        name = name and session_file.check_name(name)
        if not name or not session_file.exists(name):
            raise UsageError(
                f"there is no session {name!r}; there are: {', '.join(session_file.names()[:20]) or 'none yet'}"
            )
        if name == self.session.name:
            return Outcome(lines=[f"{name} is the chat you are in"])
        session = self._open(name)
        self.papers = Papers()
        self.session.close()
        self.session = session
        self._count()
        return Outcome(lines=[f"on {name}: {counted(self.messages, 'message')}, {counted(self.used, 'token')}"])

    def _think(self, _: str) -> Outcome:
        self.show_thoughts = not self.show_thoughts
        return Outcome(lines=["thoughts are " + ("shown" if self.show_thoughts else "folded")])

    def _stats(self, _: str) -> Outcome:
        s = self.session.stats
        lines = [f"context  {self.used:,} of {self.session.sequence.ctx:,} tokens, {self.messages} messages"]
        if s.prompt_tokens:
            lines.append(
                f"last     {s.prompt_tokens:,} tokens: {s.reused_tokens:,} reused, {s.prefilled_tokens:,} read; "
                f"{s.generated_tokens:,} written ({s.finish})"
            )
            lines.append(f"first    token after {s.first_token_seconds:.2f} s")
        if s.prefill_seconds:
            lines.append(f"reading  {s.prefilled_tokens / s.prefill_seconds:,.0f} tokens/s")
        if s.decode_seconds:
            lines.append(f"writing  {s.decoded_tokens / s.decode_seconds:,.1f} tokens/s")
        return Outcome(lines=lines)

    def _clear(self, _: str) -> Outcome:
        turns = self.session.conversation.turns
        turns[:] = [t for t in turns[:1] if t.role == "system"]
        self._changed()
        return Outcome(lines=["started over"])


def _drop_oldest(conversation: Conversation, keep_last: bool) -> int:
    """Drop the oldest exchange but the system message; how many turns went, 0 where there is none to drop.

    ``keep_last``: the last message of the user waits for its answer.
    """
    turns = conversation.turns
    first = 1 if turns and turns[0].role == "system" else 0
    following = [i for i in range(first + 1, len(turns)) if turns[i].role == "user"]
    stop = following[0] if following else first if keep_last else len(turns)
    del turns[first:stop]
    return stop - first


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
