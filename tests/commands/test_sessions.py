"""`jamba sessions`: what a list and a search show, new names, Markdown, and removal that asks first."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from jambacli.session import session_file
from jambacli.session.transcript import to_markdown
from tests.support.cli_runner import Done, jamba
from tests.support.saved_sessions import aged, saved
from tests.support.terminal import in_terminal

terminal = pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no pseudo-terminals on this platform")


def ok(*words: str) -> Done:
    done = jamba(*words)
    assert done.returncode == 0, done.stderr.decode()
    return done


def test_a_list_shows_what_a_session_is_about() -> None:
    saved("contract", "What is the notice period?\nPlease.", "A month.", documents=["d1", "d2"], prompt=[1] * 1234)
    (row,) = ok("sessions", "list").stdout.decode().splitlines()
    assert row.startswith("contract ") and row.endswith("small  2 documents  What is the notice period?")
    assert " 1 turn " in row and " 1,234 tokens " in row
    (told,) = json.loads(ok("sessions", "list", "--json").stdout)
    size = session_file.session_path("contract").stat().st_size
    assert (told["title"], told["documents"], told["bytes"]) == ("What is the notice period?", 2, size)
    assert (told["turns"], told["tokens"], told["kv_type"], told["model"]) == (1, 1234, "f16", "small")


@terminal
def test_on_a_terminal_the_first_line_is_below_the_figures() -> None:
    saved("a", "word " * 40 + "\x1b[31m")
    code, seen = in_terminal(["sessions", "list"], columns=60)
    figures, title = seen.splitlines()
    assert code == 0 and figures.startswith("a  ")
    assert title.startswith("    word word") and title.endswith("…") and len(title) < 60


def test_a_search_shows_where(own_home: Path) -> None:
    saved("birds", "Tell me of herons.", "Herons stand in cold water.", "Do herons fly?")
    saved("other", "Tea, please.")
    (row,) = ok("sessions", "search", "HERONS").stdout.decode().splitlines()
    assert row.startswith("birds ") and row.endswith("user: Tell me of herons. (and 2 more messages)")
    (told,) = json.loads(ok("sessions", "search", "cold", "water", "--json").stdout)
    assert (told["name"], told["role"], told["excerpt"], told["matches"]) == (
        "birds",
        "assistant",
        "Herons stand in cold water.",
        1,
    )
    nothing = ok("sessions", "search", "zebra")
    assert (nothing.stdout, nothing.stderr) == (b"", b"no session holds these words\n")


def test_names_are_changed_and_copied() -> None:
    saved("a", "hello")
    assert ok("sessions", "rename", "a", "b").stderr == b"renamed a to b\n"
    assert json.loads(ok("sessions", "copy", "b", "c", "--json").stdout) == {"copied": "b", "name": "c"}
    assert sorted(session_file.names()) == ["b", "c"]
    refused = jamba("sessions", "rename", "b", "c")
    assert (refused.returncode, refused.stderr) == (
        1,
        b"error: a session named 'c' already exists; choose another name\n",
    )


def test_a_session_becomes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved("notes", "Why?", "Because.")
    ok("sessions", "export", "notes", "--md")
    page = (tmp_path / "notes.md").read_text(encoding="utf-8")
    assert page.startswith("# notes\n\nsmall · 20") and page.endswith("## User\n\nWhy?\n\n## Assistant\n\nBecause.\n")
    assert ok("sessions", "export", "notes", "--md", "-o", "-").stdout.decode() == page
    again = jamba("sessions", "export", "notes", "--md")
    assert again.returncode == 1 and b"notes.md already exists; choose another name, or use --force" in again.stderr
    told = json.loads(ok("sessions", "export", "notes", "--md", "--force", "--json").stdout)
    assert told == {"file": "notes.md", "bytes": len(page.encode())}


def test_a_page_keeps_the_text_and_closes_what_it_leaves_open() -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Code?"},
        {"role": "assistant", "content": "```py\nprint(1)", "thoughts": "hm\n\nwell"},
        {"role": "assistant", "content": "````\n```\n````\n~~~ x\n~~~"},
    ]
    assert to_markdown(turns, title="T", model="M") == (
        "# T\n\nM\n\n## System\n\nBe brief.\n\n## User\n\nCode?\n\n"
        "## Assistant\n\n> hm\n>\n> well\n\n```py\nprint(1)\n```\n\n## Assistant\n\n````\n```\n````\n~~~ x\n~~~\n"
    )


def test_old_sessions_are_removed_and_no_others() -> None:
    for days, name in enumerate(["a", "b", "chat-20260101-000000-0001", "d"]):
        saved(name, "hello")
        aged(name, 86400 * days + 60)
    told = json.loads(ok("sessions", "rm", "--older-than", "1d", "--unnamed", "--json").stdout)
    assert told == {"removed": ["chat-20260101-000000-0001"]}
    assert ok("sessions", "rm", "a", "d", "--older-than", "2d").stderr == b"removed d\n"
    assert ok("sessions", "rm", "--older-than", "1d").stderr == b"removed b\n"
    assert session_file.names() == ["a"]
    assert ok("sessions", "rm", "--older-than", "1d").stderr == b"there are no such sessions\n"
    refused = jamba("sessions", "rm", "--older-than", "forever")
    assert refused.returncode == 2 and b"--older-than 'forever' is not a duration with its unit" in refused.stderr
    assert jamba("sessions", "rm").returncode == 2


def test_one_that_is_open_does_not_keep_the_others() -> None:
    for name in ("a", "b", "c"):
        saved(name, "hello")
        aged(name, 5000)
    with session_file.opened("b"):
        done = ok("sessions", "rm", "--older-than", "1h")
        assert b"warning: session 'b' is open in another process" in done.stderr
        assert session_file.names() == ["b"]
        named = jamba("sessions", "rm", "b")
        assert named.returncode == 1 and b"error: session 'b' is open" in named.stderr


@terminal
def test_removing_asks_on_a_terminal() -> None:
    saved("a", "hello")
    code, seen = in_terminal(["sessions", "rm", "a"], "n\n")
    assert (
        code == 1
        and "Remove 1 session (a)? [y/N]" in seen
        and seen.endswith("nothing was removed\n")
        and "error" not in seen
    )
    assert session_file.exists("a")
    code, seen = in_terminal(["sessions", "rm", "a"], "y\n")
    assert (code, session_file.exists("a")) == (0, False)
    saved("a", "hello")
    code, seen = in_terminal(["sessions", "rm", "a", "--yes"])
    assert (code, seen, session_file.exists("a")) == (0, "removed a\n", False)


def test_every_subcommand_says_what_is_wrong_with_a_damaged_session(own_home: Path, tmp_path: Path) -> None:
    saved("good", "Hello", "Hi")
    damaged = own_home / "sessions" / "broken.json"
    damaged.write_bytes(b'{"version": 1, "turns": 7')
    for words in (
        ("show",),
        ("copy", "new"),
        ("export", "-o", str(tmp_path / "out")),
        ("export", "--md"),
    ):
        done = jamba("sessions", words[0], "broken", *words[1:])
        assert done.returncode == 1 and done.stdout == b"", words
        assert done.stderr.count(b"\n") == 1 and b"broken.json: is damaged" in done.stderr, words
    assert not (tmp_path / "out").exists() and set(session_file.names()) == {"good", "broken"}
    for words in (("list",), ("search", "hello")):
        done = ok("sessions", *words)
        assert done.stdout.startswith(b"good ") and b"broken.json" in done.stderr
    assert ok("sessions", "rm", "broken").stderr == b"removed broken\n" and not damaged.exists()


@pytest.mark.parametrize(
    ("text", "left"),
    [("2h", ["a"]), ("90m", ["a"]), ("0.5d", ["a", "b"]), ("1d12h", ["a", "b"]), ("30", None), ("-1h", None)],
)
def test_times_that_sessions_are_older_than(text: str, left: list[str] | None) -> None:
    saved("a", "hello")
    saved("b", "hello")
    aged("b", 3 * 3600)
    done = jamba("sessions", "rm", f"--older-than={text}")
    if left is None:
        assert done.returncode == 2 and b"--older-than" in done.stderr
    assert sorted(session_file.names()) == (left or ["a", "b"])


@pytest.mark.skipif(os.name != "posix", reason="about the modes of files")
def test_sessions_are_their_users_own(own_home: Path) -> None:
    saved("a", "hello")
    with session_file.opened("a"):
        session_file.history_path()
        modes = {path.name: path.stat().st_mode & 0o777 for path in (own_home / "sessions").iterdir()}
    assert modes.keys() >= {"a.json", "a.lock", ".history"} and modes["a.json"] == modes[".history"] == 0o600
