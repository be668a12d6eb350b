"""``jamba ask -i`` and ``jamba chat`` in a real (pseudo) terminal: what a person sees and types."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.document_files import pdf_bytes
from tests.support.scripted_chat import Terminal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")


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
    terminal.prompted()
    terminal.type("/think\r")
    terminal.see("thoughts are hidden")
    terminal.prompted()
    terminal.type("And then?\r")
    terminal.see("[thought for 1 tokens]")
    terminal.see("Two and")
    terminal.see("[stopped; the partial reply is kept]")
    terminal.see("read,")
    terminal.prompted()
    terminal.type("How many?\r")
    terminal.see("Seven.")
    terminal.see("page 7")
    figures = terminal.see(" written")
    reused, read = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:reused|read)", figures))
    assert reused > 500 and read < 60  # nothing of the document, nor of what was said before the interruption
    terminal.prompted()
    terminal.type("not this\x03")  # clears the line, however often
    terminal.prompted()
    terminal.type("\x03")
    terminal.prompted()
    terminal.type("/stats\r")
    assert "not this/stats" not in terminal.see("3 messages")
    terminal.prompted()
    terminal.type("\x04")
    terminal.see("[saved as chat-")
    assert terminal.leave() == 0
