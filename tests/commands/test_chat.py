"""``jamba chat`` from a pipe, sessions and the cache: what a script or a person does with them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli_runner import jamba
from tests.support.repository import REPO
from tests.support.small_models import small_file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_file(tmp_path_factory.mktemp("models"), "f32"))


def chat(
    model: str, *lines: str, session: str = "t", options: tuple[str, ...] = ()
) -> tuple[list[dict[str, int]], str, str]:
    """Run turns through a pipe: the figures of each reply, stdout and stderr."""
    arguments = ["chat", model, "--stats", "--temp", "0", "-n", "4", *options]
    arguments += ["--session", session] if session else []
    done = jamba(*arguments, stdin="".join(f"{line}\n" for line in lines).encode())
    err = done.stderr.decode()
    pattern = r"stats: prompt (\d+) reused (\d+) prefilled (\d+) generated (\d+)"
    figures = [
        dict(zip(("prompt", "reused", "prefilled", "generated"), map(int, m), strict=True))
        for m in re.findall(pattern, err)
    ]
    return figures, done.stdout.decode(errors="replace"), err


def test_turns_edits_and_regeneration_reuse_what_is_there(model: str) -> None:
    figures, _, _ = chat(
        model,
        "How many herons were counted at the lake?",
        "And who counted them?",
        "/regenerate",
        "/edit And who did not?",
    )
    first, second, again, edited = figures
    assert second["reused"] >= first["prompt"]
    assert again["prefilled"] <= 8
    assert edited["prefilled"] <= 40


def test_a_chat_goes_on_in_a_new_process(model: str) -> None:
    first, _, _ = chat(model, "How many herons were counted at the lake?")
    (second,), _, _ = chat(model, "And who counted them?")
    assert second["reused"] >= first[0]["prompt"]
    listed = json.loads(jamba("sessions", "list", "--json").stdout)
    assert [(s["name"], s["turns"]) for s in listed] == [("t", 2)]
    shown = json.loads(jamba("sessions", "show", "t", "--json").stdout)
    assert [t["role"] for t in shown["turns"]] == ["user", "assistant"] * 2


def test_branches_leave_the_original_alone(model: str) -> None:
    chat(model, "One.", "Two.", "/branch other", "Three.")
    assert len(json.loads(jamba("sessions", "show", "t", "--json").stdout)["turns"]) == 4
    assert len(json.loads(jamba("sessions", "show", "other", "--json").stdout)["turns"]) == 6
    _, _, err = chat(model, "/branches", session="other")
    assert "* other" in err and "  t" in err


def test_undo_and_clear(model: str) -> None:
    chat(model, "One.", "Two.", "/undo")
    assert len(json.loads(jamba("sessions", "show", "t", "--json").stdout)["turns"]) == 2
    chat(model, "/clear")
    assert json.loads(jamba("sessions", "show", "t", "--json").stdout)["turns"] == []


def test_the_context_limit_is_said_or_the_oldest_turns_go(model: str) -> None:
    long = "herons at the lake " * 6
    _, _, err = chat(model, long, long, long, long, session="full", options=("--ctx", "160"))
    assert "do not fit in the context" in err and "--overflow" in err
    figures, _, err = chat(model, long, long, long, long, session="drops", options=("--ctx", "160", "--overflow"))
    assert len(figures) == 4 and "error" not in err


def test_mistakes_in_a_chat_are_one_line_and_the_chat_goes_on(model: str) -> None:
    figures, _, err = chat(model, "/nonsense", "/load nobody", "/file /no/such/file", "/edit 9 x", "hello")
    assert err.count("error:") == 4 and len(figures) == 1


def test_hints_in_a_chat_are_about_the_chat(model: str) -> None:
    err = chat(model, "/file -", "/file nothing.txt", "/hist", "/load")[2]
    assert "there is no file -; name files, directories or globs" in err and "standard input" not in err
    assert "there is no command /hist; did you mean /history?" in err
    assert "/load needs the name of a saved session" in err


def test_files_are_attached(model: str, tmp_path: Path) -> None:
    file = tmp_path / "report.txt"
    file.write_text("Mira counted 42 herons.", encoding="utf-8")
    figures, _, err = chat(model, f"/file {file}", "Who?", "How many?")
    assert "goes with the next message" in err
    assert figures[1]["reused"] >= figures[0]["prompt"]
    jamba("cache", "clear", "--document", str(file))
    assert json.loads(jamba("cache", "stats", "--json").stdout)["prefixes"] == 0


def test_export_and_import_carry_the_state(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,), _, _ = chat(model, "How many herons were counted at the lake?")
    archive = tmp_path / "t.jamba-session"
    assert jamba("sessions", "export", "t", "-o", str(archive)).returncode == 0
    assert jamba("sessions", "export", "t", "-o", str(archive)).returncode == 1
    monkeypatch.setenv("JAMBA_HOME", str(tmp_path / "elsewhere"))
    assert jamba("sessions", "import", str(archive), "--name", "moved").returncode == 0
    (second,), _, _ = chat(model, "And who?", session="moved")
    assert second["reused"] >= first["prompt"]
    damaged = bytearray(archive.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    archive.write_bytes(damaged)
    refused = jamba("sessions", "import", str(archive), "--name", "again")
    assert refused.returncode == 1 and b"error:" in refused.stderr


def test_unnamed_chats_are_kept_until_cleaned(model: str) -> None:
    chat(model, "Hello.", session="")
    (only,) = json.loads(jamba("sessions", "list", "--json").stdout)
    assert only["name"].startswith("chat-")
    assert jamba("sessions", "rm", "--unnamed").returncode == 0
    assert json.loads(jamba("sessions", "list", "--json").stdout) == []


def shown(session: str) -> list[dict[str, str]]:
    turns: list[dict[str, str]] = json.loads(jamba("sessions", "show", session, "--json").stdout)["turns"]
    return turns


def test_what_was_taken_back_is_not_gone_on_with(model: str) -> None:
    figures, _, err = chat(model, "One.", "Two.", "/undo", "/continue", "/stats")
    assert err.count("error: there is no reply to continue") == 1
    # What is left counts, not what the model still holds.
    used = int(re.findall(r"context  (\d+) of", err)[-1])
    assert figures[0]["prompt"] <= used <= figures[0]["prompt"] + 8 < figures[1]["prompt"]
    assert [t["content"] for t in shown("t") if t["role"] == "user"] == ["One."]


def test_a_reply_that_cannot_be_made_changes_nothing(model: str) -> None:
    long = "herons at the lake " * 60
    _, _, err = chat(model, "One.", "Two.", f"/edit 1 {long}", options=("--ctx", "160"))
    assert "do not fit in the context of 160" in err
    assert [t["content"] for t in shown("t") if t["role"] == "user"] == ["One.", "Two."]
    assert len(shown("t")) == 4


def test_overflow_leaves_room_for_the_reply(model: str) -> None:
    long = "herons at the lake " * 6
    figures, _, err = chat(model, *[long] * 6, options=("--ctx", "200", "--overflow", "-n", "20"))
    assert len(figures) == 6 and "finish context" not in err
    assert "the context was full: the oldest" in err and "error" not in err
    assert [t["role"] for t in shown("t")][:1] == ["user"]


def test_regenerating_with_a_seed_says_something_else(model: str) -> None:
    options = ("--temp", "2", "--seed", "5", "-n", "30")
    chat(model, "One.", options=options)
    first = shown("t")[1]["content"]
    chat(model, "One.", "/regenerate", session="u", options=options)
    second = shown("u")[1]["content"]
    chat(model, "One.", "/regenerate", session="v", options=options)
    assert second != first and shown("v")[1]["content"] == second  # another reply, the same one every time


def test_a_damaged_session_file_hides_no_other(model: str, own_home: Path) -> None:
    chat(model, "Hello.", session="good")
    chat(model, "Hello.", session="broken")
    (own_home / "sessions" / "broken.json").write_bytes(b'{"version": 1, "turns": 7')
    done = jamba("sessions", "list", "--json")
    assert done.returncode == 0 and [s["name"] for s in json.loads(done.stdout)] == ["good"]
    assert done.stderr.count(b"broken.json") == 1
    refused = jamba("chat", model, "--session", "broken", stdin=b"")
    assert refused.returncode == 1 and b"broken.json: is damaged" in refused.stderr


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ctx", "many"),
        ("turns", [7]),
        ("turns", [{"role": "user", "content": 3}]),
        ("random_state", 5),
        ("prompt", "!"),
    ],
)
def test_a_forged_session_file_is_refused_in_one_line(model: str, own_home: Path, field: str, value: object) -> None:
    chat(model, "Hello.")
    path = own_home / "sessions" / "t.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), field: value}), "utf-8")
    done = jamba("chat", model, "--session", "t", stdin=b"Hello.\n")
    assert done.returncode == 1
    assert done.stderr.count(b"error:") == 1 and b"t.json: is damaged" in done.stderr and b"internal" not in done.stderr


def test_states_of_others_are_refused_by_name(model: str, tmp_path: Path) -> None:
    chat(model, "Hello.")
    other = str(small_file(tmp_path, "q8_0"))
    for arguments, told in (
        ((other,), b"'t' was made with small"),
        ((model, "--kv-type", "q8_0"), b"as f16, not q8_0"),
    ):
        done = jamba("chat", *arguments, "--session", "t", stdin=b"Hello.\n")
        assert done.returncode == 1 and told in done.stderr and done.stdout == b""


def test_damage_in_the_store_is_said_once_and_made_good(model: str, own_home: Path) -> None:
    (_, second), _, _ = chat(model, "One.", "Two.")
    for blob in (own_home / "prefixes" / "blobs").rglob("*"):
        if blob.is_file() and blob.stat().st_size > 4096:
            data = bytearray(blob.read_bytes())
            data[100] ^= 1
            blob.write_bytes(data)
    (third,), _, err = chat(model, "Three.")
    assert third["reused"] < second["prompt"] and third["generated"] > 0
    said = [line for line in err.splitlines() if "was damaged" in line]
    assert said and len(said) == len(set(said))
    (fourth,), _, err = chat(model, "Four.")
    assert "damaged" not in err and fourth["reused"] >= third["prompt"]


def test_no_store_leaves_nothing(model: str, own_home: Path) -> None:
    figures, _, _ = chat(model, "A secret.", "Another.", session="", options=("--no-store",))
    assert len(figures) == 2
    assert not (own_home / "prefixes").exists() and not list((own_home / "sessions").glob("*.json"))
    for path in own_home.rglob("*"):
        assert not path.is_file() or b"secret" not in path.read_bytes()


def test_a_chat_without_a_turn_leaves_no_trace(model: str, own_home: Path) -> None:
    chat(model, "/help", session="")
    assert list((own_home / "sessions").iterdir()) == []


@pytest.mark.parametrize("data", ["café\n".encode("latin-1"), "hello\n".encode("utf-16"), b"a\0b\n"])
def test_what_is_not_text_is_refused_as_run_refuses_it(model: str, data: bytes) -> None:
    done = jamba("chat", model, "--session", "t", "-n", "2", stdin=b"Hello.\n" + data)
    assert done.returncode == 1
    assert b"error: standard input is not" in done.stderr and b"line 2" in done.stderr


def test_a_file_with_spaces_as_a_terminal_pastes_it(model: str, tmp_path: Path) -> None:
    path = tmp_path / "a b.txt"
    path.write_text("Mira counted 42 herons.")
    done = jamba("chat", model, "-n", "2", stdin=f'/file "{path}"\n/file {path.as_uri()}\n'.encode())
    assert done.returncode == 0
    assert done.stderr.count(b"a b.txt (") == 2


def test_a_user_without_a_home_directory(tmp_path: Path) -> None:
    code = (
        "import os, pwd, sys\ndef none(uid): raise KeyError(uid)\npwd.getpwuid = none\n"
        "from jambacli.__main__ import main\nmain()\n"
    )
    left = {k: v for k, v in os.environ.items() if k not in ("HOME", "JAMBA_HOME", "XDG_CACHE_HOME")}
    environment = {**left, "PYTHONPATH": str(REPO)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )

    listed = run("list")
    assert listed.returncode == 1 and listed.stderr.count("\n") == 1
    assert "set JAMBA_HOME" in listed.stderr and "internal" not in listed.stderr
    assert run("show", str(small_file(tmp_path, "q8_0"))).returncode == 0
