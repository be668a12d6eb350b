"""A chat's session and its replies: messages sent, answered, stopped; sessions opened, and gone on with under other models.

Every message and command changes the turns of a Session and, if a reply follows, returns it as a stream. The session decides
which tokens it can reuse and which it must prefill again.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from jambacli.chat.attachments import Attachments
from jambacli.engine.options import GenerationOptions
from jambacli.engine.prefixes import common_prefix
from jambacli.errors import JambaError, UsageError
from jambacli.interrupts import Stop
from jambacli.progress import Progress, no_progress
from jambacli.session import session_file
from jambacli.session.conversation import Conversation, Turn
from jambacli.session.options import SessionOptions
from jambacli.session.session import Session
from jambacli.units import counted

if TYPE_CHECKING:
    from jambacli.engine.loaded_model import LoadedModel
    from jambacli.session.functions import Tool
    from jambacli.text.tool_calls import ToolCall

logger = logging.getLogger(__name__)

# Tokens that ``overflow`` keeps free for a reply without a limit of its own.
_ROOM = 512


@dataclass
class Outcome:
    """The result of an input: a reply to stream, lines to show, a text for the clipboard, or the end of the chat."""

    reply: Iterator[str] | None = None
    lines: list[str] = field(default_factory=list)
    copied: str | None = None
    leave: bool = False


class ChatSession:
    """A session, its replies and its documents; the commands are those of ``Chat``."""

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
        load: Callable[[str], LoadedModel] | None = None,
    ) -> None:
        """``options``: for every session that is opened; ``system`` and ``reread`` for the first one and for new ones.
        ``generation``: for every reply. ``name``: resume the session of that name, or start it. ``overflow``: drop the oldest
        turns when the context is full. ``tools``: functions that the model may call; ``approve`` is asked before each call.
        ``load``: loads another model by its name or path.
        """
        self.model = model
        self.show_thoughts = True
        # Tokens of the remaining turns after an undo; None: all tokens in the sequence count.
        self._standing: int | None = None
        self._options, self._generation = options or SessionOptions(), generation or GenerationOptions()
        self._overflow = overflow
        self._progress = progress
        self._tools, self._approve = tools, approve
        self._load_model = load
        self._stopping = Stop()
        #: Turns to go back to: what dropped them, they, and the turns after that, without a reply.
        self._dropped: list[tuple[str, list[Turn], list[Turn]]] = []
        self.attachments = Attachments()
        self.session = self._open(name, self._options)
        self._count()  # raises for a model without a chat template

    def say(self, text: str) -> Outcome:
        """Send a message, even one that begins like a command."""
        self._stopping = Stop()
        return Outcome(reply=self._reply(self._say(self.attachments.with_suffix(text))))

    def stop(self) -> None:
        """End the reply in progress; see ``Session.stop``."""
        self._stopping.ask()
        self.session.stop()

    @property
    def stopped(self) -> bool:
        """Whether the last reply was stopped before it ended."""
        return self.session.stats.finish == "interrupted"

    def close(self) -> None:
        """Wait for pending writes and close the session."""
        self.session.close()

    @property
    def used(self) -> int:
        """How many tokens of the context the conversation takes."""
        held = len(self.session.sequence.tokens)
        return held if self._standing is None else min(held, self._standing)

    @property
    def continuing(self) -> str:
        """The line that tells which session goes on. A text that is to be read again has no tokens yet."""
        read = f", {counted(self.used, 'token')}" if self.used else ""
        return f"continuing {self.session.name}: {counted(self.messages, 'message')}{read}"

    @property
    def messages(self) -> int:
        """The number of the user's messages."""
        return len(self._asked())

    @property
    def last(self) -> str:
        """The beginning of the user's last message."""
        return short(self.message(self.messages))

    @property
    def last_exchange(self) -> tuple[str, str]:
        """The user's last message and the reply to it, "" without one."""
        turns, at = self.session.conversation.turns, self._asked()[-1]
        replies = [t.content for t in turns[at + 1 :] if t.role == "assistant"]
        return self.message(self.messages), "".join(replies[-1:])

    @property
    def saved(self) -> bool:
        """Whether the chat is a saved session."""
        name = self.session.name
        return name is not None and session_file.exists(name)

    def message(self, number: int) -> str:
        """The user's message of that number, from 1. Raises UsageError when there is none."""
        asked = self._asked()
        if not 1 <= number <= len(asked):
            raise no_message(number, len(asked))
        return self.attachments.without_suffix(self.session.conversation.turns[asked[number - 1]].content)

    def to_edit(self, text: str) -> int | None:
        """The number of the message to edit for "/edit" or "/edit N" without a text, None for any other input."""
        word, _, rest = text.strip().partition(" ")
        number = int(rest) if rest.strip().isdigit() else 0 if rest.strip() else self.messages
        return number if word == "/edit" and 1 <= number <= self.messages else None

    def _asked(self) -> list[int]:
        """The indices of the user's turns."""
        return [i for i, t in enumerate(self.session.conversation.turns) if t.role == "user"]

    def _open(self, name: str | None, options: SessionOptions | None = None) -> Session:
        """Open the session of that name. ``options``: by default those of the chat, but the system message of the session."""
        session = self._opened(name, options or replace(self._options, system=None, reread=False))
        try:
            session.use_tools(self._tools, approve=self._approve)
        except BaseException:
            session.close()
            raise
        return session

    def _opened(self, name: str | None, options: SessionOptions) -> Session:
        name = name and session_file.check_name(name)
        if name is not None and session_file.exists(name):
            return Session(self.model, replace(options, resume=name))
        if options.store and not options.read_only:
            if name is None:
                try:
                    session_file.require_writable()
                except JambaError as error:
                    logger.warning("%s; this chat is not saved", error)
                    return Session(self.model, replace(options, store=False))
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
        counted_before, self._standing = self._standing, None
        room = min(self._generation.max_tokens or _ROOM, ctx // 8) if self._overflow else 0
        standing, dropped = list(conversation.turns), 0
        try:
            while True:
                try:
                    with contextlib.closing(start(room)) as pieces:  # type: ignore[type-var]
                        if self._stopping.asked:  # before there was a reply to stop
                            self.session.stop()
                        yield from pieces
                    return
                except ContextFullError as error:
                    conversation.turns[:] = standing
                    if not self._overflow:
                        files = "take files back with /file none, " if self.attachments.waiting else ""
                        raise JambaError(
                            error.problem,
                            remedy=f"{files}use a larger {{ctx}}, remove turns with /undo, start over with /clear, or run "
                            "with {overflow} to drop the oldest turns",
                        ) from error
                    gone = _drop_oldest(conversation, keep_last=asked)
                    if not gone and not room:
                        raise
                    # Everything after the dropped turns is prefilled again, so make room for more than one turn at once.
                    room = ctx // 4 if gone else 0
                    standing, dropped = list(conversation.turns), dropped + gone
        finally:
            turns = conversation.turns
            if not turns or turns[-1].role not in ("assistant", "tool") or any(turns[-1] is t for t in before):
                turns[:] = before
                self._standing = counted_before
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


def no_message(number: int, there: int) -> UsageError:
    """The error for a number that is no message's."""
    return UsageError(f"there is no message {number}; this chat has {counted(there, 'message')} of yours")


def short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
