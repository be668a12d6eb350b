"""The chat's terminal: a multi-line prompt with history, Markdown that streams, dimmed thoughts; knows no models.

Finished blocks of Markdown (paragraphs, lists, code) are printed for good as they end; only the block being written is
redrawn, so a long answer never flickers or scrolls back.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

from jambacli.engine.chat import HELP, Chat
from jambacli.engine.generate import Thought
from jambacli.engine.saved import sessions_folder
from jambacli.errors import JambaError
from jambacli.units import format_context

_REDRAW_SECONDS = 0.08


def blocks(text: str) -> tuple[list[str], str]:
    """Split Markdown into the blocks that are finished and the one still being written.

    A blank line ends a block, but not inside a code fence.
    """
    done: list[str] = []
    current: list[str] = []
    fence = ""
    lines = text.split("\n")
    for i, line in enumerate(lines):
        last = i == len(lines) - 1
        mark = re.match(r" {0,3}(`{3,}|~{3,})", line)
        if mark and not fence:
            fence = mark[1]
        elif mark and fence and line.strip().startswith(fence) and not line.strip().strip(fence[0]):
            fence = ""
        if not line.strip() and not fence and not last:
            if any(part.strip() for part in current):
                done.append("\n".join(current))
            current = []
        else:
            current.append(line)
    return done, "\n".join(current)


class Screen:
    """Shows replies and notes on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(highlight=False)
        self._shown = False

    def reply(self, pieces: Iterable[str], show_thoughts: bool) -> bool:
        """Show a reply as it comes. Ctrl-C ends it and keeps what was said; whether that happened."""
        self._shown = False
        try:
            self._stream(iter(pieces), show_thoughts)
            return False
        except KeyboardInterrupt:
            self.note(
                "[stopped; what was said is kept]"
                if self._shown
                else "[stopped before a reply; arrow up brings the message back]"
            )
            return True
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()

    def note(self, text: str) -> None:
        """A dimmed line."""
        self.console.print(text, style="dim", markup=False)

    def error(self, error: Exception) -> None:
        """What went wrong, in one line."""
        self.console.print(f"error: {' '.join(str(error).split())}", style="red", markup=False)

    def _stream(self, pieces: Iterator[str], show_thoughts: bool) -> None:
        from rich.live import Live
        from rich.markdown import Markdown

        thought_tokens = 0
        pending = ""
        drawn = 0.0
        with Live(console=self.console, auto_refresh=False, transient=True, vertical_overflow="crop") as live:
            for piece in pieces:
                self._shown = True
                if isinstance(piece, Thought):
                    thought_tokens += 1
                    if show_thoughts:
                        self._thought(live, piece)
                    else:
                        live.update(
                            f"[dim]thinking ... {thought_tokens} tokens (/think shows them)[/dim]", refresh=True
                        )
                    continue
                if thought_tokens:
                    self._end_thoughts(live, show_thoughts, thought_tokens)
                    thought_tokens = 0
                pending += piece
                done, pending = blocks(pending)
                for block in done:
                    live.update("")
                    live.console.print(Markdown(block), "")
                if done or time.monotonic() - drawn > _REDRAW_SECONDS:
                    live.update(Markdown(self._tail(pending)), refresh=True)
                    drawn = time.monotonic()
            live.update("", refresh=True)
            if thought_tokens:
                self._end_thoughts(live, show_thoughts, thought_tokens)
        if pending.strip():
            self.console.print(Markdown(pending))

    def _tail(self, text: str) -> str:
        """The last screenful of an unfinished block: a live region cannot be taller than the terminal."""
        return "\n".join(text.split("\n")[-max(self.console.height - 4, 4) :])

    _thought_line = ""

    def _thought(self, live: Any, piece: str) -> None:
        from rich.text import Text

        self._thought_line += piece
        *lines, self._thought_line = self._thought_line.split("\n")
        for line in lines:
            live.console.print(Text(line, style="dim italic"))
        live.update(Text(self._thought_line, style="dim italic"), refresh=True)

    def _end_thoughts(self, live: Any, shown: bool, tokens: int) -> None:
        from rich.text import Text

        live.update("", refresh=True)
        if shown and self._thought_line.strip():
            live.console.print(Text(self._thought_line, style="dim italic"))
        if not shown:
            live.console.print(Text(f"[thought for {tokens} tokens]", style="dim italic"))
        self._thought_line = ""


def talk(chat: Chat, keep_history: bool, stats: bool = False) -> None:
    """The interactive chat: read, answer, until /exit or Ctrl-D. ``stats``: a line of figures after every reply."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.patch_stdout import patch_stdout

    screen = Screen()
    keys = KeyBindings()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _newline(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("enter")
    def _send(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\":  # a backslash at the end goes on in the next line
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    # What was typed is as private as the sessions: it lies in their folder, which is the user's alone.
    prompt: PromptSession[str] = PromptSession(
        history=FileHistory(str(sessions_folder() / ".history")) if keep_history else InMemoryHistory(),
        completer=WordCompleter([name.split()[0] for name in HELP], sentence=True),
        complete_while_typing=False,
        key_bindings=keys,
        multiline=True,
        prompt_continuation="... ",
    )
    screen.note(f"{chat.model.name} - /help lists the commands, Alt-Enter begins a new line, Ctrl-D leaves")
    if turns := chat.messages:
        screen.note(f"going on with {chat.session.name}: {turns} messages, {chat.used:,} tokens; last: {chat.last}")
    interrupted = False
    while True:
        try:
            with patch_stdout():
                text = prompt.prompt(">>> ", bottom_toolbar=lambda: status_line(chat))
                number = chat.to_edit(text)
                if number is not None:  # /edit without a text: the message itself comes up to be changed
                    again = prompt.prompt(
                        "edit ", default=chat.message(number), bottom_toolbar=lambda: status_line(chat)
                    )
                    text = f"/edit {number} {again}"
        except KeyboardInterrupt:
            if interrupted:
                return
            interrupted = True
            screen.note("[Ctrl-C again leaves]")
            continue
        except EOFError:
            return
        interrupted = False
        try:
            outcome = chat.handle(text)
            for line in outcome.lines:
                screen.note(line)
            if outcome.reply is not None:
                interrupted = screen.reply(outcome.reply, chat.show_thoughts)
                if ending := ending_line(chat):
                    screen.note(ending)
                screen.note(f"[{figures(chat)}]" if stats else "")
            if outcome.leave:
                return
        except JambaError as error:
            screen.error(error)


def ending_line(chat: Chat) -> str:
    """What to say of a reply that did not end by itself, nothing of one that did."""
    s, session = chat.session.stats, chat.session
    if s.finish == "length":
        return f"[cut off after {s.generated_tokens:,} tokens; /continue goes on]"
    if s.finish == "context":
        return f"[the context of {session.sequence.ctx:,} tokens is full; /undo, /clear or chat --overflow make room]"
    return ""


def figures(chat: Chat) -> str:
    """What the last reply cost, in tokens and tokens a second."""
    s = chat.session.stats
    text = f"{s.reused_tokens:,} reused, {s.prefilled_tokens:,} read, {s.generated_tokens:,} written"
    return text + (f", {s.decoded_tokens / s.decode_seconds:.1f} tokens/s" if s.decode_seconds else "")


def status_line(chat: Chat) -> str:
    """Session, context used, what the last reply cost: the line under the prompt."""
    s, session = chat.session.stats, chat.session
    parts = [session.name or "not stored", f"context {chat.used:,} of {format_context(session.sequence.ctx)}"]
    if s.prompt_tokens:
        parts.append(f"last: {figures(chat)}")
    return " | ".join(parts)
