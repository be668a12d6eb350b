"""A program in a pseudo-terminal, and what a terminal emulator (pyte) holds of it: the screen and its scrollback."""

from __future__ import annotations

import contextlib
import os
import select
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.repository import REPO

pyte = pytest.importorskip("pyte")


class _Screen(pyte.HistoryScreen):  # type: ignore[name-defined,misc]
    """pyte drops the rest of a text after a character without width, and the top of a screen that gets smaller."""

    def draw(self, data: str) -> None:
        for c in data:
            super().draw(c)

    def resize(self, lines: int | None = None, columns: int | None = None) -> None:
        gone = max(0, self.cursor.y + 1 - (lines or self.lines))
        for y in range(gone):
            self.history.top.append(self.buffer[y].copy())
        if gone:
            kept = {y - gone: self.buffer[y] for y in range(gone, self.lines) if y in self.buffer}
            self.buffer.clear()
            self.buffer.update(kept)
        self.cursor.y -= gone
        at = self.cursor.y
        self.lines = lines or self.lines
        hidden = {
            y: dict(row) for y, row in self.buffer.items()
        }  # of a narrower screen: the ends of rows are out of sight
        super().resize(self.lines, columns)
        for y, row in hidden.items():
            if y < self.lines:
                self.buffer[y].update(row)
        self.cursor.y = at


class Emulator:
    """A Python program in a terminal of its own."""

    def __init__(
        self, columns: int, lines: int, arguments: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        """``arguments``: those of the Python interpreter."""
        import pty

        self.screen = _Screen(columns, lines, history=100_000, ratio=0.5)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.pid, self.fd = pty.fork()
        if not self.pid:
            own = {"TERM": "xterm-256color", "PYTHONPATH": str(REPO), **(environment or {})}
            gone = ("COLUMNS", "LINES", "NO_COLOR")
            kept = {k: v for k, v in os.environ.items() if k not in gone}
            os.execve(sys.executable, [sys.executable, *arguments], {**kept, **own})
        self._size(columns, lines)

    def resize(self, columns: int, lines: int) -> None:
        """Give the terminal another size."""
        self.screen.resize(lines, columns)
        self._size(columns, lines)

    def _size(self, columns: int, lines: int) -> None:
        import fcntl
        import termios

        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.fd, keys.encode())

    @property
    def text(self) -> list[str]:
        """All lines: the scrollback, then the screen down to the cursor."""
        held = [_line(row, self.screen.columns) for row in self.screen.history.top]
        return held + [_line(self.screen.buffer[y], self.screen.columns) for y in range(self.screen.cursor.y + 1)]

    def wait(self, *texts: str, seconds: float = 120) -> list[str]:
        """Wait until a line holds each of the texts, in this order; returns all lines."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = iter(self.text)
            if all(any(text in line for line in found) for text in texts):
                return self.text
            if not self._read(1):
                break
        raise AssertionError("\n".join([f"{texts} did not appear:", *self.text]))

    def settle(self, path: Path) -> None:
        """Wait until the program has made a file, and take in all that it wrote before."""
        until = time.monotonic() + 120
        while not path.exists() and time.monotonic() < until:
            self._read(0.1)
        while select.select([self.fd], [], [], 0)[0] and self._read(0):
            pass

    def _read(self, seconds: float) -> bool:
        if select.select([self.fd], [], [], seconds)[0]:
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                return False
            self.raw += data
            self._stream.feed(data)
            if b"\x1b[6n" in data:  # where is the cursor?
                os.write(self.fd, f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R".encode())
        return True

    def leave(self) -> int:
        """The exit code, once it has ended."""
        with contextlib.suppress(OSError):
            while self._read(60):
                pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _line(row: Any, columns: int) -> str:
    from wcwidth import wcwidth

    text, x = "", 0
    while x < max(columns, max(row, default=0) + 1):
        data = row[x].data if x in row else " "  # rows of a screen that got smaller have no default
        text += data
        x += 2 if data and wcwidth(data[0]) == 2 else 1
    return text.rstrip()
