"""The chat's terminal: a multi-line prompt with history, streamed Markdown, dimmed thoughts.

Finished blocks of Markdown (paragraphs, lists, code) are printed once; only the block being written is redrawn, so a long
answer never flickers or scrolls back.
"""

from __future__ import annotations

import contextlib
import re
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jambacli import ui
from jambacli.chat.commands import HELP, Chat
from jambacli.engine.generate import Thought
from jambacli.errors import JambaError
from jambacli.session.session_file import history_path, require_writable
from jambacli.units import counted, format_context

_REDRAW_SECONDS = 0.08


def blocks(text: str) -> tuple[list[str], str]:
    """Split Markdown into its finished blocks and the one still being written.

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


@contextlib.contextmanager
def _without_echo() -> Iterator[None]:
    """Echo no keys and no "^C" while a reply is drawn; typed text appears at the next prompt."""
    try:
        import termios
    except ImportError:  # not on this platform
        yield
        return
    try:
        before = termios.tcgetattr(0)
    except termios.error:
        yield
        return
    quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(0, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def markdown(text: str) -> Any:
    """Markdown ready to print. HTML is shown as text, where Markdown would hide it."""
    from markdown_it import MarkdownIt
    from rich.markdown import Markdown

    shown = Markdown("")
    shown.parsed = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"]).parse(text)
    return shown


class Screen:
    """Shows replies and notes on the terminal."""

    def __init__(self, option: Callable[[str], str] = str) -> None:
        """``option``: the name under which errors mention an option."""
        from rich.console import Console

        self._option = option
        self.console = Console(highlight=False)
        self._shown = False

    def reply(self, pieces: Iterable[str], show_thoughts: bool) -> bool:
        """Show a reply as it is generated. Ctrl-C ends it and keeps the partial reply; returns whether that happened."""
        self._shown = False
        try:
            with _without_echo():
                self._stream(iter(pieces), show_thoughts)
            return False
        except KeyboardInterrupt:
            self.note(
                "[stopped; the partial reply is kept]"
                if self._shown
                else "[stopped before a reply; press Up to edit your message]"
            )
            return True
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()

    def note(self, text: str) -> None:
        """A dimmed line; in a table of names and meanings, a long meaning is wrapped in its column."""
        column = re.match(r"\S.{0,18}?\s{2,}(?=\S)", text)
        indent = " " * column.end() if column and column.end() < self.console.width // 2 else ""
        lines = textwrap.wrap(text, self.console.width, subsequent_indent=indent, break_on_hyphens=False) or [""]
        for line in lines:
            self.console.print(line, style="dim", markup=False)

    def error(self, error: JambaError) -> None:
        """An error in one line."""
        self.console.print(f"error: {' '.join(error.worded(self._option).split())}", style="red", markup=False)

    def _stream(self, pieces: Iterator[str], show_thoughts: bool) -> None:
        from rich.live import Live

        thought_tokens = 0
        pending = ""
        drawn = 0.0
        with Live(console=self.console, auto_refresh=False, transient=True, vertical_overflow="crop") as live:
            try:
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
                    pending += ui.harmless(piece)
                    done, pending = blocks(pending)
                    for block in done:
                        live.update("")
                        live.console.print(self._rendered(block), "")
                    if done or time.monotonic() - drawn > _REDRAW_SECONDS:
                        live.update(self._rendered(self._tail(pending)), refresh=True)
                        drawn = time.monotonic()
            finally:  # the partial reply stays on the screen after an interruption too
                live.update("", refresh=True)
                if thought_tokens:
                    self._end_thoughts(live, show_thoughts, thought_tokens)
                if pending.strip():
                    live.console.print(self._rendered(pending), end="")

    def _rendered(self, text: str) -> Any:
        """A block of Markdown without the blank lines that lists and code have around them; one is printed between blocks."""
        from rich.segment import Segment, Segments

        lines = self.console.render_lines(markdown(text), pad=False)
        shown = [bool("".join(s.text for s in line).strip()) for line in lines]
        if not any(shown):
            return Segments([])
        lines = lines[shown.index(True) : len(lines) - shown[::-1].index(True)]
        return Segments([s for line in lines for s in (*line, Segment.line())])

    def _tail(self, text: str) -> str:
        """The last lines of an unfinished block: a live region cannot be taller than the terminal."""
        return "\n".join(text.split("\n")[-max(self.console.height - 4, 4) :])

    _thought_line = ""

    def _thought(self, live: Any, piece: str) -> None:
        from rich.text import Text

        self._thought_line += ui.harmless(piece)
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


def _can_keep(wanted: bool) -> bool:
    """Whether the history is wanted and can be written; where it cannot, the chat has said so."""
    if not wanted:
        return False
    try:
        require_writable()
        history_path()
    except JambaError:
        return False
    return True


def talk(
    chat: Chat,
    keep_history: bool,
    stats: bool = False,
    first: str | None = None,
    option: Callable[[str], str] = str,
) -> None:
    """The interactive chat: read and answer until /exit or Ctrl-D.

    ``stats``: show statistics after every reply. ``first``: a message that is sent at once. ``option``: the name under which
    errors mention an option.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.patch_stdout import patch_stdout

    screen = Screen(option)
    keys = KeyBindings()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _newline(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("enter")
    def _send(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\":  # a backslash at the end of a line continues the message
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    # The history is as private as the sessions.
    prompt: PromptSession[str] = PromptSession(
        history=FileHistory(str(history_path())) if _can_keep(keep_history) else InMemoryHistory(),
        completer=WordCompleter([name.split()[0] for name in HELP], sentence=True),
        complete_while_typing=False,
        key_bindings=keys,
        multiline=True,
        prompt_continuation="... ",
    )

    def ask(what: str, default: str = "") -> str:
        return prompt.prompt(what, default=default, bottom_toolbar=lambda: status_line(chat, screen.console.width))

    screen.note(f"{chat.model.name} - /help lists the commands, Alt-Enter inserts a new line, Ctrl-D exits")
    if turns := chat.messages:
        screen.note(
            f"continuing {chat.session.name}: {counted(turns, 'message')}, {counted(chat.used, 'token')}; "
            f"last: {chat.last}"
        )
    interrupted = False
    waiting = first
    while True:
        try:
            if waiting is None:
                with patch_stdout():
                    text = ask(">>> ")
                    number = chat.to_edit(text)
                    if number is not None:  # /edit without a text: offer the message itself to be changed
                        text = f"/edit {number} {ask('edit ', chat.message(number))}"
            else:
                screen.console.print(f">>> {waiting}", markup=False)
        except KeyboardInterrupt:
            if interrupted:
                return
            interrupted = True
            screen.note("[press Ctrl-C again to exit]")
            continue
        except EOFError:
            return
        interrupted = False
        try:
            outcome = chat.handle(text) if waiting is None else chat.say(waiting)
            waiting = None
            for line in outcome.lines:
                screen.note(line)
            if outcome.reply is not None:
                interrupted = screen.reply(outcome.reply, chat.show_thoughts)
                for line in closing_lines(chat):
                    screen.note(line)
                screen.note(f"[{figures(chat)}]" if stats else "")
            if outcome.leave:
                return
        except JambaError as error:
            waiting = None
            screen.error(error)


def closing_lines(chat: Chat) -> list[str]:
    """The lines under a reply: the places it cites, or a remark that it cites none; and why it was cut off, if it was."""
    places, remark, ending = chat.attachments.places, chat.attachments.remark, ending_line(chat)
    lines = ["Sources:", *(f"- {place}" for place in places)] if places else []
    if remark and chat.session.stats.finish == "stop":
        lines = [f"[{remark}]"]
    return [*lines, *([ending] if ending else [])]


def ending_line(chat: Chat) -> str:
    """Why the last reply was cut off; "" if the model ended it."""
    s, session = chat.session.stats, chat.session
    if s.finish == "length":
        return f"[cut off after {s.generated_tokens:,} tokens; /continue resumes it]"
    if s.finish == "context":
        return f"[the context of {session.sequence.ctx:,} tokens is full; /undo, /clear or chat --overflow make room]"
    if s.finish == "stop" and not s.generated_tokens:
        return "[the model has nothing to add]"
    return ""


def figures(chat: Chat) -> str:
    """The last reply's tokens and tokens per second."""
    return ", ".join(_figures(chat))


def _figures(chat: Chat) -> list[str]:
    s = chat.session.stats
    parts = [f"{s.reused_tokens:,} reused", f"{s.prefilled_tokens:,} read", f"{s.generated_tokens:,} written"]
    return [*parts, f"{s.decoded_tokens / s.decode_seconds:.1f} tokens/s"] if s.decode_seconds else parts


def status_line(chat: Chat, width: int = 200) -> str:
    """The line under the prompt, of at most ``width`` characters: the session, the context used, the last reply's statistics.

    If it does not fit, the least important parts are left out first.
    """
    session = chat.session
    name, numbers = session.name or "not stored", _figures(chat) if session.stats.prompt_tokens else []
    context = f"context {chat.used:,} of {format_context(session.sequence.ctx)}"
    while True:
        last = [f"last: {', '.join(numbers)}"] if numbers else []
        for parts in ([name, context, *last], [context, *last]):
            if len(line := " | ".join(parts)) <= width:
                return line
        if not numbers:
            return context[:width]
        numbers.pop()
