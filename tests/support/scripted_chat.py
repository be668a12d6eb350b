"""A chat in a terminal of its own, with a model that says what it is told to."""

from __future__ import annotations

import contextlib
import os
import re
import select
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.repository import REPO

#: What a prompt writes once it takes keys: bracketed paste is on.
PROMPT = b"\x1b[?2004h"

# Runs jamba with a model that says what it is told to, "!" in its place being a Ctrl-C within a pass, "~"
# the wait for a signal.
PROGRAM = """
import os, re, select, signal, sys
from jambacli.session import session
from jambacli.engine.generate import Thought
from jambacli.engine.sampling import Sampler
from jambacli.cli import main

replies, saying = eval(sys.argv.pop()), {}
came, told = os.pipe()
os.set_blocking(told, False)
os.set_blocking(came, False)

def says(tokenizer, text):
    for part in re.split("([!~])", text):
        if part == "!":
            signal.raise_signal(signal.SIGINT)
        elif part == "~":
            select.select([came], [], [], 120)
        else:
            yield from tokenizer.encode(part, markers="all")
    yield min(tokenizer.stop_ids)

def scripted(sequence, sampler, tokenizer, **options):
    signal.set_wakeup_fd(told)  # again for each reply: every prompt ends with none
    while select.select([came], [], [], 0)[0]:
        os.read(came, 4096)
    saying[sampler] = says(tokenizer, replies.pop(0))
    yield Thought("hm, let me see")
    yield from generate(sequence, sampler, tokenizer, **options)

generate, session.generate = session.generate, scripted
Sampler.sample = lambda sampler, logits: next(saying[sampler])
main()
"""


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, columns: int, *arguments: str, replies: list[str], home: Path, **environment: str) -> None:
        """``replies``: what the model says, in turn. ``environment``: variables beside those of this process."""
        import fcntl
        import pty
        import termios

        self.pid, self.fd = pty.fork()
        if not self.pid:
            own = {"TERM": "xterm", "JAMBA_HOME": str(home), "PYTHONPATH": str(REPO), **environment}
            words = [sys.executable, "-c", PROGRAM, *arguments, repr(replies)]
            os.execve(sys.executable, words, {**os.environ, **own})
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.raw = b""
        self._seen = self._prompts = 0

    def type(self, keys: str) -> None:
        """Press keys."""
        self._prompts = self.raw.count(PROMPT)
        os.write(self.fd, keys.encode())

    def prompted(self) -> None:
        """Wait until a prompt newer than the last ``type`` takes keys: Enter before it is a line break in the next."""
        self._wait(lambda: self.raw.count(PROMPT) > self._prompts, "another prompt")

    def see(self, text: str) -> str:
        """Wait until ``text`` appears after what was waited for before; what was shown up to it, without colours."""
        found: list[str] = []

        def there() -> bool:
            shown = self.shown()
            at = shown.find(text, self._seen)
            if at >= 0:
                found.append(shown[self._seen : at])
                self._seen = at + len(text)
            return at >= 0

        self._wait(there, repr(text))
        return found[0]

    def _wait(self, there: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + 240
        while time.monotonic() < until:
            if there():
                return
            if select.select([self.fd], [], [], 1)[0]:
                try:
                    data = os.read(self.fd, 65536)
                except OSError:
                    break
                self.raw += data
                if b"\x1b[6n" in data:  # where is the cursor?
                    os.write(self.fd, b"\x1b[1;1R")
        raise AssertionError(
            f"{what} did not appear after {self.shown()[: self._seen]!r}:\n{self.shown()[self._seen :]}"
        )

    def shown(self) -> str:
        """All that was written, without what moves the cursor and colours."""
        whole = re.sub(rb"\x1b[^A-Za-z]*$", b"", self.raw)  # an end cut off in mid-sequence comes with the next read
        return re.sub(rb"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>])", b"", whole).decode(errors="replace")

    def leave(self) -> int:
        """The exit code, once it has ended."""
        with contextlib.suppress(OSError):
            while os.read(self.fd, 65536):
                pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
