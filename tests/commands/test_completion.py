"""Completion: what may come next, and in real shells that the words arrive as they are and nothing of a name is executed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jambacli.commands.complete import Words, complete, quoted_for_bash, split_line
from jambacli.commands.completion import SCRIPTS, Shell
from tests.support.cli_runner import jamba
from tests.support.repository import REPO

HOSTILE = "$(touch executed)"


def _texts(before: str, current: str) -> list[str]:
    return [word for word, _ in complete(before.split(), current).words]


def test_commands_options_and_names_come_next(own_home: Path) -> None:
    (own_home / "sessions").mkdir(parents=True)
    for name in ("plans", "holiday", HOSTILE, "new\nline"):
        (own_home / "sessions" / f"{name}.json").touch()
    assert _texts("", "sum") == ["summarize"]
    assert _texts("sessions", "li") == ["list"]
    assert _texts("--log run -q", "sum") == ["summarize"]
    assert {"--top-k", "--top-p"} <= set(_texts("run", "--top-"))
    assert _texts("run --temp 0", "jamba:") == ["jamba:tiny"]
    assert "jamba:3b" in _texts("pull", "jamba:")
    assert sorted(_texts("chat --session", "")) == [HOSTILE, "holiday", "plans"]
    assert _texts("run", "--preset=con") == ["--preset=contracts"]
    assert _texts("quantize a.gguf --type", "q4_k") == ["q4_k_s", "q4_k_m", "q4_k_x"]
    assert _texts("config set theme", "d") == ["dark"]
    assert _texts("config set precise", "") == ["on", "off"]
    assert complete(["ask"], "rep") == Words(files=True)
    assert complete(["run", "--system"], "@le") == Words(files=True, head="@")
    assert complete(["run", "--schema=x"], "") == complete(["run"], "")
    assert complete(["run", "--", "--top"], "--to").words == []
    assert complete(["nothing"], "x").words == []


def test_a_damaged_store_ends_no_tab(own_home: Path) -> None:
    own_home.parent.mkdir(exist_ok=True)
    own_home.touch()
    assert _texts("chat -s", "") == []
    assert _texts("", "ru") == ["run"]


@pytest.mark.parametrize(
    ("line", "words", "quote"),
    [
        ("jamba show ", ["jamba", "show", ""], ""),
        ("jamba 'a b", ["jamba", "a b"], "'"),
        (r"jamba a\ b\$c", ["jamba", "a b$c"], ""),
        (r'jamba "a \" $x" d', ["jamba", 'a " $x', "d"], ""),
        ("jamba ''", ["jamba", ""], ""),
        ("jamba x\\", ["jamba", "x\\"], ""),
    ],
)
def test_lines_are_read_as_bash_reads_them(line: str, words: list[str], quote: str) -> None:
    found, _, opened = split_line(line)
    assert (found, opened) == (words, quote)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize("word", ["plain", "two words", HOSTILE, "a'b\"c`d`", "x;y&z|*?[a]{b}~#\\", "é שלום"])
@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_quoted_words_are_themselves_in_bash(word: str, quote: str) -> None:
    written = quoted_for_bash(word, quote)
    if written is None:
        assert quote and quote in word
        return
    done = subprocess.run(["bash", "-c", f"printf %s {quote}{written}{quote}"], capture_output=True, check=True)
    assert done.stdout.decode() == word


def test_nothing_slow_is_imported_for_a_tab() -> None:
    code = (
        "import sys\nsys.argv = ['jamba', '__complete', 'zsh', 'show', '--', '']\nfrom jambacli.__main__ import main\nmain()\n"
        "slow = {'torch', 'numpy', 'typer', 'rich', 'click', 'huggingface_hub'} & sys.modules.keys()\nassert not slow, slow"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"jamba:tiny\tthe demo model\n" in done.stdout


@pytest.mark.parametrize("shell", list(Shell))
def test_it_is_installed_once_and_removed(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    start = tmp_path / f".{shell}rc"
    start.write_text("alias ll='ls -l'")
    assert jamba("completion", shell).stdout.decode() == SCRIPTS[shell]
    for _ in range(2):
        assert jamba("completion", shell, "--install").returncode == 0
    scripts = [p for p in tmp_path.rglob("*") if p.is_file() and p != start]
    assert [p.read_text() for p in scripts] == [SCRIPTS[shell]]
    assert start.read_text().count("completion of jamba") == (0 if shell is Shell.fish else 1)
    assert start.read_text().startswith("alias ll='ls -l'")
    assert jamba("completion", shell, "--remove").returncode == 0
    assert not scripts[0].exists() and start.read_text().rstrip("\n") == "alias ll='ls -l'"


class _Terminal:
    """A shell in a pseudo-terminal, whose `jamba` completes, but otherwise prints its arguments."""

    def __init__(self, shell: Shell, home: Path) -> None:
        import pexpect

        self.folder = self._folder = home / "work"
        self._folder.mkdir()
        (self._folder / "my file.txt").touch()
        (self._folder / "sub dir").mkdir()
        (self._folder / "sub dir" / "deep.txt").touch()
        folder = home / "bin"
        folder.mkdir()
        program = folder / "jamba"
        program.write_text(
            f'#!/bin/sh\nif [ "$1" = __complete ]; then exec "{sys.executable}" -m jambacli "$@"; fi\n'
            "printf '<%s>' \"$@\"\necho .\n"
        )
        program.chmod(0o755)
        script = home / "script"
        script.write_text(SCRIPTS[shell])
        start = {
            Shell.bash: ["--norc", "--noprofile", "-i"],
            Shell.zsh: ["-f", "-i"],
            Shell.fish: ["--no-config", "-i"],
        }[shell]
        places = [str(folder), os.environ["PATH"]]
        python_path = [str(REPO), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PATH": os.pathsep.join(places),
            "PYTHONPATH": os.pathsep.join(filter(None, python_path)),
            "HOME": str(home),
            "TERM": "xterm",
            "LC_ALL": "C.UTF-8",
            "fish_features": "no-query-term",
        }
        self._child: Any = pexpect.spawn(
            shell, start, cwd=str(self._folder), env=environment, encoding="utf-8", timeout=60, dimensions=(24, 200)
        )
        prompt = {
            Shell.bash: "PS1='READY''> '; bind 'set bell-style none'; bind 'set show-all-if-ambiguous on'",
            Shell.zsh: "PS1='READY''> '; unsetopt beep; zstyle ':completion:*' list-prompt ''; autoload -Uz compinit; "
            f"compinit -u -d '{home}/dump'",
            Shell.fish: "function fish_prompt; echo -n 'READY''> '; end; set -g fish_autosuggestion_enabled 0",
        }[shell]
        self._line(prompt)
        self._line(f". '{script}'")

    def _line(self, text: str) -> None:
        self._child.send(f"{text}\r")
        self._child.expect("READY> ")

    def completed(self, typed: str) -> str:
        """The arguments that jamba is given when ``typed`` is followed by Tab and Return."""
        self._child.send(f"{typed}\t")
        self._child.send("\r")
        self._child.expect(r"(<[^\r\n]*>)\.")
        found = str(self._child.match[1])
        self._child.expect("READY> ")
        return found

    @property
    def executed(self) -> bool:
        """Whether a name was executed."""
        return any((folder / "executed").exists() for folder in (self._folder, self._folder.parent))

    def close(self) -> None:
        self._child.close(force=True)


@pytest.fixture(params=list(Shell))
def terminal(request: pytest.FixtureRequest, tmp_path: Path, own_home: Path) -> Iterator[_Terminal]:
    pytest.importorskip("pexpect", reason="pexpect drives the shells")
    if shutil.which(request.param) is None:
        pytest.skip(f"there is no {request.param}")
    (own_home / "sessions").mkdir(parents=True)
    for name in ("plans", HOSTILE, "new\nline"):
        (own_home / "sessions" / f"{name}.json").touch()
    home = tmp_path / "user"
    home.mkdir()
    shell = _Terminal(request.param, home)
    yield shell
    shell.close()


def test_real_shells_complete_what_jamba_says(terminal: _Terminal) -> None:
    assert terminal.completed("jamba summ") == "<summarize>"
    assert terminal.completed("jamba run --max-t") == "<run><--max-tokens>"
    assert terminal.completed("jamba show jamba:t") == "<show><jamba:tiny>"
    assert terminal.completed("jamba chat --session pl") == "<chat><--session><plans>"
    assert terminal.completed("jamba run --preset=con") == "<run><--preset=contracts>"
    assert terminal.completed("jamba ask my") == "<ask><my file.txt>"
    assert terminal.completed("jamba ask sub\\ dir/de") == "<ask><sub dir/deep.txt>"
    assert terminal.completed("jamba run --schema my") == "<run><--schema><my file.txt>"
    assert terminal.completed("jamba run --schema=my") == "<run><--schema=my file.txt>"
    assert terminal.completed("jamba ask ~/wo").replace("/>", ">") == f"<ask><{terminal.folder}>"
    assert terminal.completed("jamba sessions show \\$") == f"<sessions><show><{HOSTILE}>"
    assert not terminal.executed
