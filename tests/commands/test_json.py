"""Every command has --json: one object on standard output, and nothing else there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from jambacli.cli import make_app
from tests.support.cli_runner import jamba
from tests.support.saved_sessions import saved
from tests.support.small_models import small_file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_file(tmp_path_factory.mktemp("models"), "f32"))


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that is not a group, with its words."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield words, command
    for name, each in (inner or {}).items():
        yield from commands(each, (*words, name))


def printed(*words: str, stdin: bytes | None = None) -> Any:
    done = jamba(*words, "--json", stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def test_every_command_has_it() -> None:
    found = list(commands(typer.main.get_command(make_app())))
    assert len(found) > 30
    assert [words for words, command in found if not any("--json" in p.opts for p in command.params)] == []


def test_settings(own_home: Path) -> None:
    assert printed("config", "set", "temp", "0.5") == {
        "name": "temp",
        "value": 0.5,
        "file": str(own_home / "config.toml"),
    }
    assert printed("config", "get", "temp")["value"] == 0.5
    assert {row["name"]: row["source"] for row in printed("config")["settings"]}["temp"] == "file"
    assert printed("config", "list") == printed("config")
    assert printed("config", "unset", "temp")["removed"] is True
    assert printed("config", "unset", "temp")["removed"] is False
    assert printed("config", "path") == {"path": str(own_home / "config.toml"), "exists": True}


def test_presets() -> None:
    made = printed("preset", "save", "mine", "--system", "For {{ client }}.")
    assert made["name"] == "mine" and made["variables"] == {"client": None} and Path(made["path"]).is_file()
    assert printed("preset", "show", "mine")["variables"] == {"client": None}
    assert "mine" in [row["name"] for row in printed("preset", "list")]
    assert printed("preset", "rm", "mine") == {"removed": ["mine"]}


def test_what_is_stored(tmp_path: Path) -> None:
    saved("a", "Hello", "Hi")
    assert [row["name"] for row in printed("sessions", "list")] == ["a"]
    assert printed("sessions", "show", "a")["turns"][0]["content"] == "Hello"
    assert [row["name"] for row in printed("sessions", "search", "hello")] == ["a"]
    assert printed("sessions", "copy", "a", "b") == {"copied": "a", "name": "b"}
    assert printed("sessions", "rename", "b", "c") == {"renamed": "b", "name": "c"}
    page = tmp_path / "c.md"
    assert printed("sessions", "export", "c", "--md", "-o", str(page)) == {
        "file": str(page),
        "bytes": page.stat().st_size,
    }
    assert printed("sessions", "rm", "c") == {"removed": ["c"]}
    assert printed("cache", "stats")["total_bytes"] > 0
    assert printed("cache", "clear") == {"freed_bytes": 0}
    assert printed("list")["models"] == []
    assert printed("rm", "--unfinished") == {"removed": [], "bytes": 0}


def test_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert "_jamba" in printed("completion", "bash")["script"]
    made = printed("completion", "bash", "--install")
    assert Path(made["file"]).is_file() and made["read_by"] == str(tmp_path / ".bashrc")
    assert printed("completion", "bash", "--remove")["installed"] is False


def test_a_chat_in_a_pipe(model: str) -> None:
    words = ["chat", model, "--temp", "0", "-n", "4", "--session", "t"]
    done = jamba(*words, "--json", stdin=b"Hello\n/history\n/nope\n/exit\n")
    reply, history, wrong = map(json.loads, done.stdout.splitlines())
    assert reply["session"] == "t" and reply["generated_tokens"] <= 4 and history["lines"][0].endswith("Hello")
    assert "no command /nope" in wrong["error"] and done.returncode == 2
    rows = [json.loads(row) for row in jamba(*words, "--json-stream", stdin=b"/regenerate\n").stdout.splitlines()]
    assert rows[-1]["done"] is True and "".join(row["text"] for row in rows[:-1]) == reply["text"]


def test_figures_of_a_batch(model: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("Who?\nWhere?\n")
    words = ("batch", str(tmp_path / "prompts.txt"), "-m", model, "-n", "2")
    figures = printed(*words, "-o", str(tmp_path / "out.jsonl"))
    assert figures["requests"] == 2 and figures["failed"] == 0 and figures["file"] == str(tmp_path / "out.jsonl")
    refused = jamba(*words, "--json")
    assert refused.returncode == 2 and b"name a file for the answers with --output" in refused.stderr


def test_both_forms_at_once_are_refused(model: str) -> None:
    for words in (["run", model, "hi"], ["chat", model]):
        done = jamba(*words, "--json", "--json-stream")
        assert done.returncode == 2 and b"--json and --json-stream exclude each other" in done.stderr
    assert jamba("bench", model, "--json", "-o", "csv").returncode == 2
