"""A chat's messages and commands: regenerate, edit, undo, branch, attach, load.

Every command changes the turns of a Session and, if a reply follows, returns it as a stream. The session decides which
tokens it can reuse and which it must prefill again.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jambacli.chat.attachments import Attachments
from jambacli.documents.given_texts import text_or_file
from jambacli.documents.load import read_documents
from jambacli.documents.pages import entries_of
from jambacli.documents.paths import expand, typed_paths
from jambacli.engine.options import GenerationOptions
from jambacli.engine.sequence import common_prefix
from jambacli.errors import JambaError, UsageError
from jambacli.progress import Progress, no_progress
from jambacli.session import session_file
from jambacli.session.conversation import Conversation, Turn
from jambacli.session.options import SessionOptions
from jambacli.session.session import Session
from jambacli.session.thinking import can_think
from jambacli.units import counted

if TYPE_CHECKING:
    from jambacli.engine.loaded_model import LoadedModel
    from jambacli.session.functions import Tool
    from jambacli.text.tool_calls import ToolCall

logger = logging.getLogger(__name__)

HELP = {
    "/help": "show this list",
    "/regenerate": "generate another reply to the last message",
    "/edit [N] TEXT": "change the last (or Nth) message",
    "/undo": "undo the last message and its reply",
    "/continue": "resume a reply that was cut off",
    "/branch NAME": "continue under another name; the current chat is unchanged",
    "/branches": "list the branches of this chat",
    "/system TEXT": "set the system message; @FILE reads it from a file",
    "/file PATH ...": "attach files or directories to the next message",
    "/save NAME": "save this chat as NAME",
    "/load NAME": "resume another chat",
    "/think [on|off]": "let the model think or not; alone: show or hide its thoughts",
    "/stats": "statistics of the last reply and the context",
    "/clear": "start over with the same system message",
    "/exit": "exit (or press Ctrl-D)",
}


# Tokens that ``overflow`` keeps free for a reply without a limit of its own.
_ROOM = 512


@dataclass
class Outcome:
    """The result of an input: a reply to stream, lines to show, or the end of the chat."""

    reply: Iterator[str] | None = None
    lines: list[str] = field(default_factory=list)
    leave: bool = False


class Chat:
    """A session and the commands on it."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        options: SessionOptions | None = None,
        generation: GenerationOptions | None = None,
        name: str | None = None,
        overflow: bool = False,
        progress: Progress = no_progress,
        tools: Sequence[Tool] = (),
        approve: Callable[[ToolCall], bool] | None = None,
    ) -> None:
        """``options``: for every session that is opened. ``generation``: for every reply. ``name``: resume the session of that
        name, or start it. ``overflow``: drop the oldest turns when the context is full. ``tools``: functions that the model
        may call; ``approve`` is asked before each call.
        """
        self.model = model
        self.show_thoughts = True
        # Tokens of the remaining turns after an undo; None: all tokens in the sequence count.
        self._standing: int | None = None
        self._options, self._generation = options or SessionOptions(), generation or GenerationOptions()
        self._overflow = overflow
        self._progress = progress
        self._tools, self._approve = tools, approve
        self.attachments = Attachments()
        self.session = self._open(name)
        self._count()  # raises for a model without a chat template

    def handle(self, text: str) -> Outcome:
        """Handle one input: a message or a command. When it raises JambaError, nothing has changed."""
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
            raise UsageError(
                f"there is no command {word}; /help lists the commands (begin a message with a space to send it)"
            )
        return action(rest.strip())

    def say(self, text: str) -> Outcome:
        """Send a message, even one that begins like a command."""
        return Outcome(reply=self._reply(self._say(self.attachments.with_suffix(text))))

    def close(self) -> None:
        """Wait for pending writes and close the session."""
        self.session.close()

    @property
    def used(self) -> int:
        """How many tokens of the context the conversation takes."""
        held = len(self.session.sequence.tokens)
        return held if self._standing is None else min(held, self._standing)

    @property
    def messages(self) -> int:
        """The number of the user's messages."""
        return len(self._asked())

    @property
    def last(self) -> str:
        """The beginning of the user's last message."""
        return _short(self.message(self.messages))

    def message(self, number: int) -> str:
        """The user's message of that number, from 1. Raises UsageError when there is none."""
        asked = self._asked()
        if not 1 <= number <= len(asked):
            raise UsageError(f"there is no message {number} to edit; there are {len(asked)}")
        return self.attachments.without_suffix(self.session.conversation.turns[asked[number - 1]].content)

    def to_edit(self, text: str) -> int | None:
        """The number of the message to edit for "/edit" or "/edit N" without a text, None for any other input."""
        word, _, rest = text.strip().partition(" ")
        number = int(rest) if rest.strip().isdigit() else 0 if rest.strip() else self.messages
        return number if word == "/edit" and 1 <= number <= self.messages else None

    def _asked(self) -> list[int]:
        """The indices of the user's turns."""
        return [i for i, t in enumerate(self.session.conversation.turns) if t.role == "user"]

    def _open(self, name: str | None) -> Session:
        session = self._opened(name)
        try:
            session.use_tools(self._tools, approve=self._approve)
        except BaseException:
            session.close()
            raise
        return session

    def _opened(self, name: str | None) -> Session:
        options = self._options
        name = name and session_file.check_name(name)
        if name is not None and session_file.exists(name):
            return Session(self.model, replace(options, resume=name))
        if options.store and not options.read_only:
            return Session(self.model, replace(options, name=name or session_file.generated_name()))
        if name is not None:
            raise session_file.not_there(name)
        return Session(self.model, options)

    def _say(self, text: str) -> Iterator[str]:
        before = list(self.session.conversation.turns)
        try:
            yield from self._answered(before, lambda reserve: self._send(text, reserve), asked=False)
        finally:
            if self.session.conversation.turns != before:  # else the documents wait for the next message
                self.attachments.waiting = []

    def _send(self, text: str, reserve: int) -> Iterator[str]:
        turns = self.session.conversation.turns
        entries, knobs = self.attachments.for_next(turns)
        documents = [e.as_document() for e in entries] or None
        pieces = self.session.send(
            text,
            documents=documents,
            knobs=knobs,
            reserve=reserve,
            progress=self._progress,
            options=self._generation,
        )
        self.attachments.sent(turns[-1], entries)
        return pieces

    def _reply(self, pieces: Iterator[str]) -> Iterator[str]:
        """The pieces without citations; afterwards ``attachments.places`` has the cited places."""
        return self.attachments.reply(pieces, self.session.conversation.turns)

    def _answer(self, before: list[Turn]) -> Iterator[str]:
        """A reply to turns that have been changed; ``before``: the turns before that."""

        def start(reserve: int) -> Iterator[str]:
            return self.session.answer(reserve=reserve, progress=self._progress, options=self._generation)

        return self._answered(before, start, asked=True)

    def _answered(self, before: list[Turn], start: Callable[[int], Iterator[str]], asked: bool) -> Iterator[str]:
        """Stream the reply that ``start(reserve)`` generates; restore the turns to ``before`` if there is none.

        If the context is full, drop the oldest turns or raise an error that lists the choices. ``asked``: the message to answer
        is already a turn and must be kept.
        """
        from jambacli.model.state import ContextFullError

        conversation, ctx = self.session.conversation, self.session.sequence.ctx
        self._standing = None
        room = min(self._generation.max_tokens or _ROOM, ctx // 8) if self._overflow else 0
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
                            error.problem,
                            remedy="use a larger {ctx}, remove turns with /undo, start over with /clear, or run with "
                            "{overflow} to drop the oldest turns",
                        ) from error
                    gone = _drop_oldest(conversation, keep_last=asked)
                    if not gone and not room:
                        raise
                    # Everything after the dropped turns is prefilled again, so make room for more than one turn at once.
                    room = ctx // 4 if gone else 0
                    standing, dropped = list(conversation.turns), dropped + gone
        except (JambaError, KeyboardInterrupt):
            turns = conversation.turns
            if not turns or turns[-1].role != "assistant" or any(turns[-1] is t for t in before):
                turns[:] = before
            raise
        finally:
            if dropped and conversation.turns != before:
                logger.info("[the context was full: the oldest %s dropped]", counted(dropped, "turn"))

    def _changed(self) -> None:
        """Save the session after turns were undone, and count the tokens that remain in the context."""
        self.session.changed()
        self._count()

    def _count(self) -> None:
        """Count the tokens of the remaining turns if turns were undone since the last reply."""
        conversation = self.session.conversation
        self._standing = None
        if self.session.taken_back:
            ids = conversation.render(add_generation_prompt=False).ids if conversation.turns else []
            self._standing = common_prefix(self.session.sequence.tokens, ids)

    def _help(self, _: str) -> Outcome:
        return Outcome(lines=[f"{name:<16} {what}" for name, what in HELP.items()])

    def _regenerate(self, _: str) -> Outcome:
        if not self._asked():
            raise UsageError("there is no message to answer yet")
        seed = self._generation.seed
        if seed is not None:  # the same seed would give the same reply
            self._generation = replace(self._generation, seed=seed + 1)
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
        turns[at:] = [replace(turns[at], content=self.attachments.with_suffix(text))]
        return Outcome(reply=self._reply(self._answer(before)))

    def _undo(self, _: str) -> Outcome:
        turns, asked = self.session.conversation.turns, self._asked()
        if not asked:
            raise UsageError("there is nothing to undo")
        text = turns[asked[-1]].content
        del turns[asked[-1] :]
        self._changed()
        return Outcome(lines=[f"undone: {_short(text)}"])

    def _continue(self, _: str) -> Outcome:
        return Outcome(reply=self._reply(self.session.extend(progress=self._progress, options=self._generation)))

    def _branch(self, name: str) -> Outcome:
        if not name:
            raise UsageError("/branch needs a name")
        old = self.session.name
        self._save(name)
        return Outcome(lines=[f"continuing as {name}; {old} is unchanged"])

    def _branches(self, _: str) -> Outcome:
        family = session_file.family(self.session.name or "")
        return Outcome(lines=[("* " if n == self.session.name else "  ") + n for n in family])

    def _system(self, text: str) -> Outcome:
        text = text_or_file(text, "system")
        turns = self.session.conversation.turns
        if turns and turns[0].role == "system":
            del turns[0]
        if text:
            self.session.conversation.set_system(text)
        self.session.commit()
        return Outcome(lines=["the system message is " + (f"now: {_short(text)}" if text else "removed")])

    def _file(self, path: str) -> Outcome:
        if not path:
            raise UsageError("/file needs a path")
        lines: list[str] = []
        paths = typed_paths(path)
        sources = expand(paths)
        store = self._options.store
        documents = read_documents(sources, problem=lines.append, store=store, progress=self._progress)
        entries = entries_of(documents)
        self.attachments.waiting += entries
        count = sum(len(self.model.tokenizer.encode(e.text)) for e in entries)
        what = Path(paths[0]).name if len(documents) == 1 else f"{len(documents):,} files"
        lines += [r for d in documents for r in d.remarks]
        lines += [f"left out: {left_out}"] if (left_out := sources.left_out_text()) else []
        return Outcome(lines=[*lines, f"{what} ({count:,} tokens) goes with the next message"])

    def _save(self, name: str) -> Outcome:
        name = name and session_file.check_name(name)
        if name and name != self.session.name and session_file.exists(name):
            raise UsageError(f"a session named {name!r} already exists; choose another name")
        self.session.save(name or None)
        return Outcome(lines=[f"saved as {self.session.name}"])

    def _load(self, name: str) -> Outcome:
        name = name and session_file.check_name(name)
        if not name or not session_file.exists(name):
            raise UsageError(
                f"there is no session {name!r}; the saved sessions are: {', '.join(session_file.names()[:20]) or 'none yet'}"
            )
        if name == self.session.name:
            return Outcome(lines=[f"{name} is the current chat"])
        session = self._open(name)
        self.attachments = Attachments()
        self.session.close()
        self.session = session
        self._count()
        return Outcome(lines=[f"continuing {name}: {counted(self.messages, 'message')}, {counted(self.used, 'token')}"])

    def _think(self, switch: str) -> Outcome:
        if switch:
            return self._switch_thoughts(switch.lower())
        self.show_thoughts = not self.show_thoughts
        return Outcome(lines=["thoughts are " + ("shown" if self.show_thoughts else "hidden")])

    def _switch_thoughts(self, switch: str) -> Outcome:
        if switch not in ("on", "off"):
            raise UsageError("/think takes on or off, or nothing, to show or hide the thoughts")
        able = can_think(self.model.template, self.model.tokenizer)
        if switch == "on" and not able:
            raise UsageError(f"the chat template of {self.model.name} has no thoughts to switch on")
        self._generation = replace(self._generation, think=switch == "on")
        if not able:
            return Outcome(lines=[f"{self.model.name} does not think; there is nothing to switch off"])
        return Outcome(lines=["the model thinks first" if switch == "on" else "the model answers without thinking"])

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
    """Drop the oldest exchange, but not the system message; returns how many turns were dropped.

    ``keep_last``: the user's last message has no reply yet and must be kept.
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
