"""What every command has: -q, -v, --log and --debug before and behind it, short lines of help, JSON of results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from jambacli.cli import COMMANDS, make_app
from jambacli.commands.complete import TABLE
from tests.support.cli_runner import jamba
from tools import completion_table, man_page

SHARED = {"--quiet", "--verbose", "--log", "--debug"}
TINY = ("jamba:tiny", "The report", "--raw", "--temp", "0", "-n", "4", "--no-store")


def _commands(command: Any, path: str = "") -> list[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if not children:
        return [(path, command)]
    return [found for name in children for found in _commands(children[name], f"{path} {name}".strip())]


def test_every_command_has_the_options_of_all() -> None:
    found = _commands(typer.main.get_command(make_app()))
    assert len(found) > len(COMMANDS)
    for path, command in found:
        names = {name for p in command.params for name in p.opts}
        assert names >= SHARED, path
        shorts = [name for p in command.params for name in [*p.opts, *p.secondary_opts]]
        assert len(shorts) == len(set(shorts)), path


@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("words", [(), ("sessions",), ("cache",), ("config",), ("preset",), ("eval",)])
def test_no_line_of_help_is_cut(columns: int, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = jamba(*words, "--help").stdout.decode()
    assert "..." not in shown.partition("Commands:")[2]
    assert max(map(len, shown.splitlines())) <= columns
    if not words:  # each in one line
        listed = shown.partition("Commands:\n")[2].splitlines()
        assert len(listed) == len(COMMANDS)


@pytest.mark.parametrize("before", [True, False])
def test_log_and_verbose_work_on_both_sides(before: bool, tmp_path: Path) -> None:
    options = ("-v", "--log", str(tmp_path / "log.txt"))
    done = jamba(*options, "run", *TINY) if before else jamba("run", *TINY, *options)
    assert done.returncode == 0
    assert re.search(rb"^\d\d:\d\d:\d\d\.\d{3} jambacli\.\S+: prompt of ", done.stderr, re.M)
    log = (tmp_path / "log.txt").read_text()
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO jamba: jamba \d", log)
    assert "DEBUG jambacli.session.stats: prompt of " in log
    plain = jamba("run", *TINY)
    assert plain.stdout == done.stdout and b"prompt of" not in plain.stderr


def test_errors_are_in_the_log_with_where_they_arose(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    done = jamba("show", str(tmp_path / "no.gguf"), "--log", str(log))
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1
    assert "ERROR jamba: " in log.read_text() and "Traceback" in log.read_text()
    refused = jamba("list", "--log", str(tmp_path))
    assert (refused.returncode, refused.stderr.count(b"\n")) == (1, 1)
    assert refused.stderr.startswith(b"error: cannot write ")


def test_quiet_and_debug_behind_a_command() -> None:
    assert b"no models yet" in jamba("list").stderr
    assert b"no models yet" not in jamba("list", "-q").stderr
    assert b"no models yet" in jamba("list").stderr  # it holds for one command
    assert b"Traceback" in jamba("show", "nowhere.gguf", "--debug").stderr


def test_pieces_of_a_reply_come_as_lines_of_json() -> None:
    whole = json.loads(jamba("run", *TINY, "--json").stdout)
    lines = [json.loads(line) for line in jamba("run", *TINY, "--json-stream").stdout.splitlines()]
    assert "".join(line["text"] for line in lines[:-1]) == whole["text"]
    assert lines[-1]["done"] is True and lines[-1]["model"] == whole["model"]
    assert lines[-1]["generated_tokens"] == whole["generated_tokens"] == 4
    both = jamba("run", *TINY, "--json", "--json-stream")
    assert (both.returncode, b"--json and --json-stream exclude each other" in both.stderr) == (2, True)


def test_answers_about_documents_come_as_lines_of_json(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Leila Haddad counted 42 herons at Lake Tuz.")
    words = (str(tmp_path / "a.txt"), "Who counted?", "-m", "jamba:tiny", "--temp", "0", "-n", "6", "--no-store", "-q")
    lines = [json.loads(line) for line in jamba("ask", *words, "--json-stream").stdout.splitlines()]
    assert "".join(line["text"] for line in lines[:-1]).strip() == lines[-1]["answer"]
    assert lines[-1]["done"] is True and lines[-1]["document_tokens"] > 0


def test_results_are_json_too(tmp_path: Path) -> None:
    assert json.loads(jamba("pull", "jamba:tiny", "--json").stdout)["name"] == "jamba:tiny"
    assert json.loads(jamba("rm", "--unfinished", "--json").stdout) == {"removed": [], "bytes": 0}


def test_unknown_names_suggest_the_demo_model() -> None:
    for name in ("jamba:tny", "tiny"):
        done = jamba("run", name, "hello", "-n", "1")
        assert done.returncode == 1 and b"did you mean jamba:tiny" in done.stderr


def test_the_man_page_and_the_table_of_words_are_of_this_program() -> None:
    page = man_page.render()
    for name, (_, _) in COMMANDS.items():
        assert f".SS jamba {name}\n" in page
    assert TABLE.read_text() == completion_table.as_text()
    assert not any(line.startswith("'") for line in page.splitlines())
