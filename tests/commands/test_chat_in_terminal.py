"""`jamba chat` in a pseudo-terminal: completion, the editor, the clipboard, stops, resuming, and what is asked."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import pytest

from jambacli.session import session_file
from tests.support.saved_sessions import saved
from tests.support.scripted_chat import Terminal
from tests.support.small_models import small_file

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")

REPLY = "Seven **herons**."


def leave(terminal: Terminal) -> None:
    """Press Ctrl-D at the prompt; the session's name is told."""
    terminal.see(">>>")
    terminal.type("\x04")
    terminal.see("[saved as talk: jamba chat --session talk]")
    assert terminal.leave() == 0


def kept(name: str) -> list[str]:
    return [turn["content"] for turn in session_file.read(name).turns]


def test_a_chat_from_the_first_key_to_the_last(own_home: Path, tmp_path: Path) -> None:
    (tmp_path / "my notes.txt").write_text("Leila counted seven herons.")
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "%s, edited\\n\\n" "$(cat "$1")" > "$1"\n')
    editor.chmod(0o755)
    variables = {"EDITOR": str(editor), "VISUAL": ""}
    replies = [REPLY, "Ω\n\nTwo~ more", "Third."]
    terminal = Terminal(100, "chat", "--session", "talk", replies=replies, home=own_home, **variables)
    terminal.see("/help lists the commands")
    terminal.see(">>>")
    terminal.type("/hist\t")
    terminal.see("ory")  # drawn alone or with what was typed
    terminal.type("\r")
    terminal.see("there are no messages yet")
    terminal.see(">>>")
    terminal.type("/set te\t")
    terminal.see("mp")
    terminal.type(" 0.2\r")
    terminal.see("0.2 (set here)")
    terminal.see(">>>")
    terminal.type(f"/file {tmp_path}/my\t")
    terminal.see("notes.txt")
    terminal.type("\r")
    terminal.see("my notes.txt (")
    terminal.see("with the next message")
    terminal.see(">>>")
    terminal.type("How many?\r")
    terminal.see("Seven herons.")
    terminal.see(">>>")
    terminal.type("/copy\r")
    terminal.see("copied: 17 characters")
    assert b"\x1b]52;c;" + base64.b64encode(REPLY.encode()) + b"\x07" in terminal.raw
    terminal.see(">>>")
    terminal.type("Go on\r")
    terminal.see("Ω")
    terminal.type("\x03")  # the reply waits for it
    terminal.see("[stopped; the partial reply is kept]")
    terminal.see(">>>")
    terminal.type("not this\x03")
    terminal.see(">>>")
    terminal.type("\x03\x03")
    terminal.see(">>>")
    terminal.type("/e Begun\r")
    terminal.see("Begun, edited")
    terminal.type("\r")
    terminal.see("Third.")
    leave(terminal)
    user = kept("talk")[::2]
    assert user[0].endswith("How many?") and user[1:] == ["Go on", "Begun, edited"]
    assert kept("talk")[-1] == "Third."


def test_a_session_resumes_with_its_last_exchange_and_asks_before_it_drops_messages(
    own_home: Path, tmp_path: Path
) -> None:
    first = Terminal(80, "chat", "--session", "talk", "jamba:tiny", replies=[REPLY], home=own_home)
    first.see(">>>")
    first.type("How many?\r")
    first.see("Seven herons.")
    leave(first)
    other = small_file(tmp_path, "q8_0")
    terminal = Terminal(80, "chat", "--session", "talk", replies=[], home=own_home, JAMBA_MODEL=str(other))
    terminal.see("session talk goes on with")  # its own model, not the default
    terminal.see("continuing talk: 1 message,")
    terminal.see(">>> How many?")
    terminal.see("Seven herons.")
    for answer in ("n\r", "\r", "\x03"):
        terminal.see(">>>")
        terminal.type("/clear\r")
        terminal.see("drop 1 message of this saved chat? [y/N]")
        terminal.type(answer)
    terminal.see(">>>")
    assert len(kept("talk")) == 2
    terminal.type("/clear\r")
    terminal.see("[y/N]")
    terminal.type("y\r")
    terminal.see("started over; /undo brings 1 message back")
    terminal.see(">>>")
    terminal.type("/undo\r")
    terminal.see("undone: /clear")
    leave(terminal)
    assert kept("talk") == ["How many?", REPLY]


def test_another_model_than_the_sessions_is_asked_about(own_home: Path, tmp_path: Path) -> None:
    saved("talk", "How many?", "Seven.")
    other = str(small_file(tmp_path, "q8_0"))
    terminal = Terminal(80, "chat", other, "--session", "talk", replies=[], home=own_home)
    terminal.see("Go on with its text?")
    terminal.see("[y/N]")
    terminal.type("n\r")
    terminal.see("leave the model out to go on with its own")
    assert terminal.leave() == 1
    terminal = Terminal(80, "chat", other, "--session", "talk", replies=["Eight."], home=own_home)
    terminal.see("[y/N]")
    terminal.type("y\r")
    terminal.see("which reads its text again")
    terminal.see("Seven.")
    terminal.see(">>>")
    terminal.type("Really?\r")
    terminal.see("Eight.")
    leave(terminal)
    assert kept("talk") == ["How many?", "Seven.", "Really?", "Eight."]
    assert session_file.read("talk").model_path == other


def test_the_pager_has_what_is_taller_than_the_window_and_plain_is_plain(own_home: Path, tmp_path: Path) -> None:
    saved("talk", *(f"Message {i}." for i in range(60)))
    pager = tmp_path / "pager"
    pager.write_text(f'#!/bin/sh\ncat > "{tmp_path}/paged"\necho PAGED\n')
    pager.chmod(0o755)
    variables = {"JAMBA_PAGER": str(pager), "JAMBA_THEME": "plain"}
    other = str(small_file(tmp_path, "q8_0"))
    words = ["chat", other, "--session", "talk", "--yes", "--ctx", "4096"]
    terminal = Terminal(80, *words, replies=["**Bold** `code`"], home=own_home, **variables)
    terminal.see(">>>")
    terminal.see(">>>")
    terminal.type("/show\r")
    terminal.see("sampling")  # it fits
    terminal.see(">>>")
    terminal.type("/history\r")
    terminal.see("PAGED")
    terminal.see(">>>")
    assert (tmp_path / "paged").read_text().splitlines()[-1].strip() == "Message 59."
    assert "Message 21." not in terminal.shown()
    terminal.type("Hello\r")
    terminal.see("hm, let me see")
    assert b"\x1b[2;3m" not in terminal.raw
    terminal.see("Bold code")
    assert b"\x1b[1mBold" not in terminal.raw
    leave(terminal)


def test_a_setting_that_is_none_is_said(own_home: Path, tmp_path: Path) -> None:
    other = str(small_file(tmp_path, "q8_0"))
    terminal = Terminal(80, "chat", other, replies=[], home=own_home, JAMBA_THEME="pink")
    terminal.see("JAMBA_THEME='pink' is not one of")
    assert terminal.leave() != 0 and "Loading" not in terminal.shown()  # at once
