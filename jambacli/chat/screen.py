"""The screen of a chat: replies as they are written, notes and errors.

Finished rows of a reply go to the terminal's scrollback once and for all. The rows after them are live: they are redrawn as
text comes, so there are few of them, mostly one. Nothing else moves the cursor up.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jambacli import ui
from jambacli.chat.markdown import CODE_THEME, Page, plain
from jambacli.engine.generate import Thought
from jambacli.errors import JambaError, UsageError
from jambacli.interrupts import interrupts_stop

if TYPE_CHECKING:
    from jambacli.chat.markdown import Row

_REDRAW_SECONDS = 0.08
_THOUGHT, _PLAIN = "\x1b[2;3m", "\x1b[0m"
# Styles that cannot be read on a light background, changed.
_LIGHT = {"markdown.code": "bold blue", "markdown.code_block": "blue", "markdown.block_quote": "dark_magenta"}


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


class LiveRows:
    """The last rows on the screen, which are redrawn; the cursor is at the end of the last one."""

    def __init__(self, console: Any) -> None:
        self._console = console
        self.rows: list[Row] = []

    def show(self, finished: list[Row], live: list[Row]) -> None:
        """Write ``finished`` rows in the place of the live ones, for good, and the new live ones after them."""
        live = live[-max(self._console.height - 1, 1) :]
        if not finished and live == self.rows:
            return
        same = 0
        if not finished:
            while same < min(len(live), len(self.rows)) - 1 and live[same] == self.rows[same]:
                same += 1
        up = len(self.rows) - 1 - same
        # tmux keeps a copy of what "J" clears from the first row of the window on.
        text = "\r" + (f"\x1b[{up}A\x1b[J" if up > 0 else "\x1b[K") if self.rows else ""
        text += "".join(f"{self._styled(row)}\n" for row in finished)
        # Rows that are wider than the terminal thinks they are must not wrap: they could not be found again.
        text += "\x1b[?7l" + "\n".join(self._styled(row) for row in live[same:]) + "\x1b[?7h" if live else ""
        self.rows = live
        self._write(text)

    def keep(self) -> None:
        """Leave the live rows where they are, for good."""
        if self.rows:
            self.rows = []
            self._write("\n")

    def _styled(self, row: Row) -> str:
        system = self._console._color_system
        return "".join(s.style.render(s.text, color_system=system) if s.style else s.text for s in row)

    def _write(self, text: str) -> None:
        if text:
            self._console.file.write(text)
            self._console.file.flush()


class Screen:
    """Shows replies and notes on the terminal."""

    def __init__(self, option: Callable[[str], str] = str, theme: str = "auto", pager: str | None = None) -> None:
        """``option``: the name under which errors mention an option. ``theme``: auto, dark, light (for a light background) or
        plain (no colours and styles). ``pager``: a command that shows texts taller than the window."""
        from rich.console import Console
        from rich.theme import Theme

        self._option, self._pager = option, pager
        light, self._plain = theme == "light", theme == "plain"
        self._code_theme = "ansi_light" if light else CODE_THEME
        self.console = Console(
            highlight=False,
            color_system=None if self._plain else "auto",
            theme=Theme(_LIGHT if light else {}),
        )
        self._shown = False

    def reply(
        self, pieces: Iterable[str], show_thoughts: bool, stop: Callable[[], None], stopped: Callable[[], bool]
    ) -> bool:
        """Show a reply as it is generated. Ctrl-C ends it with ``stop`` and keeps the partial reply; returns whether that
        happened, which ``stopped`` knows. A second Ctrl-C raises KeyboardInterrupt."""
        self._shown = False
        try:
            with _without_echo(), interrupts_stop(stop) as came:
                self._stream(iter(pieces), show_thoughts)
        finally:
            getattr(pieces, "close", lambda: None)()
        if not (came.asked and stopped()):
            return False
        self.note(
            "[stopped; the partial reply is kept]"
            if self._shown
            else "[stopped before a reply; press Up to edit your message]"
        )
        return True

    def markdown(self, text: str) -> None:
        """Show Markdown that is complete; of one that is taller than the window, the end."""
        page, live = Page(self.console, self._code_theme), LiveRows(self.console)
        page.push(ui.harmless(text))
        rows, most = page.take(self.console.width, end=True), max(self.console.height - 6, 3)
        if len(rows) > most:
            self.note("...")
        live.show(rows[-most:], [])

    def notes(self, texts: Sequence[str]) -> None:
        """Notes; in the pager, if there is one, where they are taller than the window. Raises UsageError if it does not run."""
        lines = [line for text in texts for line in self._wrapped(text)]
        if self._pager is not None and len(lines) >= self.console.height:
            _page("\n".join([*lines, ""]), self._pager)
            return
        for line in lines:
            self.console.print(line, style="dim", markup=False)

    def note(self, text: str) -> None:
        """A dimmed line; in a table of names and meanings, a long meaning is wrapped in its column."""
        for line in self._wrapped(text):
            self.console.print(line, style="dim", markup=False)

    def _wrapped(self, text: str) -> list[str]:
        column = re.match(r"\S.{0,18}?\s{2,}(?=\S)", text)
        indent = " " * column.end() if column and column.end() < self.console.width // 2 else ""
        return textwrap.wrap(text, self.console.width, subsequent_indent=indent, break_on_hyphens=False) or [""]

    def error(self, error: JambaError) -> None:
        """An error in one line."""
        self.console.print(f"error: {' '.join(error.worded(self._option).split())}", style="red", markup=False)

    def _stream(self, pieces: Iterator[str], show_thoughts: bool) -> None:
        page, live = Page(self.console, self._code_theme), LiveRows(self.console)
        width, due = self.console.width, 0.0
        thoughts = _Thoughts(live, show_thoughts, styled=not self._plain)
        try:
            for piece in pieces:
                self._shown = True
                if isinstance(piece, Thought):
                    thoughts.push(ui.harmless(piece))
                    continue
                thoughts.end()
                page.push(ui.harmless(piece))
                if (began := time.monotonic()) >= due:
                    width = self._fitted(page, live, width)
                    live.show(page.take(width), page.live(width))
                    drawn = time.monotonic()  # drawing takes at most a tenth of the time
                    due = drawn + max(_REDRAW_SECONDS, 9 * (drawn - began))
        finally:  # the partial reply stays on the screen after an interruption too
            thoughts.end()
            live.show(page.take(self._fitted(page, live, width), end=True), [])

    def _fitted(self, page: Page, live: LiveRows, width: int) -> int:
        """The terminal's width. Where it has become narrower than a live row, terminals differ in whether the row takes two
        now, and where it has become too low, rows are out of reach: they stay as they are, and the text goes on below."""
        from rich.cells import cell_len

        now, rows = self.console.width, live.rows
        if (now < width and any(cell_len(plain(row)) > now for row in rows)) or len(rows) > self.console.height:
            page.freeze(live.rows)
            live.keep()
        return now


def _page(text: str, command: str) -> None:
    """Show a text in a pager, which has the Ctrl-C to itself."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        environment = {"LESS": "FRX", **os.environ}
        subprocess.run(shlex.split(command), input=text.encode("utf-8", "replace"), check=False, env=environment)
    except (OSError, ValueError, IndexError) as error:
        raise UsageError(f"the pager {command!r} does not run: {error}", remedy="jamba config set pager off") from error
    finally:
        signal.signal(signal.SIGINT, before)


class _Thoughts:
    """Thoughts as they come, dimmed, or how many tokens they have."""

    def __init__(self, live: LiveRows, shown: bool, styled: bool) -> None:
        self._live, self._shown, self._styled = live, shown, styled
        self._tokens = 0
        self._at_start = True

    def push(self, piece: str) -> None:
        from rich.segment import Segment
        from rich.style import Style

        self._tokens += 1
        if self._shown:
            self._live._write(f"{_THOUGHT}{piece}{_PLAIN}" if self._styled else piece)
            self._at_start = piece.endswith("\n") if piece else self._at_start
        else:
            text = f"thinking ... {self._tokens} tokens (/think shows them)"
            self._live.show([], [[Segment(text, Style(dim=True))]])

    def end(self) -> None:
        from rich.segment import Segment
        from rich.style import Style

        if not self._tokens:
            return
        if not self._shown:
            text = f"[thought for {self._tokens} tokens]"
            self._live.show([[Segment(text, Style(dim=True, italic=True))]], [])
        elif not self._at_start:
            self._live._write("\n")
        self._tokens, self._at_start = 0, True
