"""``jamba chat`` from a pipe, sessions and the cache: what a script or a person does with them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.commands.cli_runner import jamba
from tests.engine.small import small_file


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
