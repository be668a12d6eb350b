"""``jamba ask -i`` and ``jamba chat`` in a real (pseudo) terminal: what a person sees and types."""

from __future__ import annotations

import contextlib
import os
import re
import select
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.document_files import pdf_bytes
from tests.support.repository import REPO

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")

# Runs jamba with a model that says what it is told to, "!" in its place being a Ctrl-C within a pass.
PROGRAM = """
import signal, sys
from jambacli.session import session
from jambacli.engine.generate import Thought
from jambacli.engine.sampling import Sampler
from jambacli.cli import main

replies, saying = eval(sys.argv.pop()), {}

def says(tokenizer, text):
    for i, part in enumerate(text.split("!")):
        if i:
            signal.raise_signal(signal.SIGINT)
        yield from tokenizer.encode(part, markers="all")
    yield min(tokenizer.stop_ids)

def scripted(sequence, sampler, tokenizer, **options):
    saying[sampler] = says(tokenizer, replies.pop(0))
    yield Thought("hm, let me see")
    yield from generate(sequence, sampler, tokenizer, **options)

generate, session.generate = session.generate, scripted
Sampler.sample = lambda sampler, logits: next(saying[sampler])
main()
"""


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, columns: int, *arguments: str, replies: list[str], home: Path) -> None:
        import fcntl
        import pty
        import termios

        self.pid, self.fd = pty.fork()
        if not self.pid:
            environment = {**os.environ, "TERM": "xterm", "JAMBA_HOME": str(home), "PYTHONPATH": str(REPO)}
            os.execve(sys.executable, [sys.executable, "-c", PROGRAM, *arguments, repr(replies)], environment)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.raw = b""
        self._seen = 0

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.fd, keys.encode())

    def see(self, text: str) -> str:
        """Wait until ``text`` appears after what was waited for before; what was shown up to it, without colours."""
        until = time.monotonic() + 240
        while time.monotonic() < until:
            shown = self.shown()
            at = shown.find(text, self._seen)
            if at >= 0:
                before, self._seen = shown[self._seen : at], at + len(text)
                return before
            if select.select([self.fd], [], [], 1)[0]:
                try:
                    data = os.read(self.fd, 65536)
                except OSError:
                    break
                self.raw += data
                if b"\x1b[6n" in data:  # where is the cursor?
                    os.write(self.fd, b"\x1b[1;1R")
        raise AssertionError(
            f"{text!r} did not appear after {self.shown()[: self._seen]!r}:\n{self.shown()[self._seen :]}"
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


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "r.pdf"
    path.write_bytes(pdf_bytes([f"Report {i}. Mira counted {i} herons at the lake. " * 6 for i in range(1, 31)]))
    return path


@pytest.fixture
def terminal(report: Path, own_home: Path) -> Iterator[Terminal]:
    replies = [
        "Mira **did**, in <b>.<citations>[2]</citations>",
        "One\n\nTwo and! more",
        "Seven.<citations>[6]</citations>",
    ]
    yield Terminal(60, "ask", str(report), "Who?", "-i", "--citations", "--stats", replies=replies, home=own_home)


def test_a_chat_about_a_file_in_a_terminal(terminal: Terminal, report: Path) -> None:
    terminal.see("/help lists the commands")
    terminal.see(">>> Who?")
    terminal.see("reading ")
    terminal.see("Reading ")
    terminal.see("hm, let me see")
    assert b"\x1b[2;3m" in terminal.raw  # thoughts are dim
    terminal.see("Mira did, in <b>.")
    assert "citations" not in terminal.see("Sources:")
    terminal.see("page 3")
    terminal.see(">>>")
    terminal.type("/think\r")
    terminal.see("thoughts are hidden")
    terminal.see(">>>")
    terminal.type("And then?\r")
    terminal.see("[thought for 1 tokens]")
    terminal.see("Two and")
    terminal.see("[stopped; the partial reply is kept]")
    terminal.see("read,")
    terminal.see(">>>")
    terminal.type("How many?\r")
    terminal.see("Seven.")
    terminal.see("page 7")
    figures = terminal.see(" written")
    reused, read = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:reused|read)", figures))
    assert reused > 500 and read < 60  # nothing of the document, nor of what was said before the interruption
    terminal.see(">>>")
    terminal.type("not this\x03")  # clears the line, however often
    terminal.see(">>>")
    terminal.type("\x03")
    terminal.see(">>>")
    terminal.type("/stats\r")
    assert "not this/stats" not in terminal.see("3 messages")
    terminal.see(">>>")
    terminal.type("\x04")
    terminal.see("[saved as chat-")
    assert terminal.leave() == 0
