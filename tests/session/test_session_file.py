"""Session files from elsewhere: damage and malice are one clear line, and cost nothing but that session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest

from jambacli.errors import BadFileError, UsageError
from jambacli.session import session_file
from tests.support.cli_runner import jamba


def session(name: str) -> session_file.SavedSession:
    now = time.time()
    return session_file.SavedSession(
        name, "small", "/small.gguf", "f" * 24, "f16", 512, now, now, turns=[{"role": "user", "content": "hello"}]
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"updated": 1e300}, "'updated' is not a time"),
        ({"created": float("nan")}, "'created' is not a time"),
        ({"updated": -5}, "'updated' is not a time"),
        ({"ctx": 0}, "'ctx'"),
        ({"turns": [{"role": 5}]}, "no role"),
        ({"prompt": "AAA="}, "damaged"),
    ],
)
def test_a_field_out_of_range_is_named(change: dict[str, object], problem: str) -> None:
    session_file.write(session("a"))
    path = session_file.session_path("a")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BadFileError, match=problem):
        session_file.read("a")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"{}", b"\xff\xfe", b"", b'{"version": 1}'])
def test_one_unreadable_session_does_not_hide_the_others(content: bytes) -> None:
    session_file.write(session("good"))
    session_file.session_path("bad").write_bytes(content)
    done = jamba("sessions", "list")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.decode().splitlines()] == ["good"]
    assert b"bad.json: is" in done.stderr
    shown = jamba("sessions", "show", "bad")
    assert (shown.returncode, shown.stderr.count(b"\n")) == (1, 1) and b"bad.json" in shown.stderr


def test_a_home_that_cannot_hold_sessions_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAMBA_HOME", str(tmp_path / "file"))
    for command in (["sessions", "list"], ["cache", "stats"]):
        done = jamba(*command)
        assert done.returncode == 1
        assert b"set JAMBA_HOME to a folder that can be written to" in done.stderr and done.stderr.count(b"\n") == 1


def test_words_from_elsewhere_do_not_command_the_terminal() -> None:
    evil = "sm\x1b[31mall\x9b2J\x07"
    foreign = session("a")
    foreign.model, foreign.turns = evil, [{"role": "user", "content": f"tab\there {evil}\nline"}]
    session_file.write(foreign)
    listed, shown = jamba("sessions", "list").stdout.decode(), jamba("sessions", "show", "a").stdout.decode()
    assert "\x1b" not in listed and "sm[31mall" in listed
    assert evil in shown  # into a pipe it is the text as it is
    failed = jamba("show", "no\x1b[2Jsuch.gguf")
    assert failed.returncode == 1 and b"no[2Jsuch.gguf" in failed.stderr and b"\x1b" not in failed.stderr
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        subprocess.run([sys.executable, "-m", "jambacli", "sessions", "show", "a"], stdout=theirs, check=True)
        os.close(theirs)
        seen = screen.read(10_000).decode()
    assert "tab\there sm[31mall2J" in seen and "\x1b" not in seen


@pytest.mark.parametrize("name", ["שיחה", "日本語", "Übung-2.neu", "é", "हिन्दी", "ที่นี่", "עִברִית"])
def test_names_are_of_any_script(name: str) -> None:
    session_file.write(session(name))
    assert session_file.names() == [name] and session_file.exists(unicodedata.normalize("NFD", name))
    (row,) = jamba("sessions", "list").stdout.decode().splitlines()
    assert row.startswith(name) and " 1 turn " in row


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a/b",
        "../x",
        "a b",
        ".a",
        "-a",
        "a\x1bb",
        "a\u202eb",
        "\u0301a",
        "a\u0301/b",
        "a\udcffb",
        "x" * 65,
        "\U00020000" * 60,
    ],
)
def test_a_name_that_is_none_is_refused_as_it_was_typed(name: str) -> None:
    with pytest.raises(UsageError, match="is not valid") as refused:
        session_file.check_name(name)
    assert repr(name[:80]) in str(refused.value)


def test_a_session_that_is_not_there_is_compared_with_those_that_are() -> None:
    for name in ("notes", "work"):
        session_file.write(session(name))
    for command in ("show", "rm"):
        assert (
            b"no session 'note'; did you mean notes? `jamba sessions list` shows"
            in jamba("sessions", command, "note").stderr
        )
        assert b"none yet" not in jamba("sessions", command, "zzz").stderr
