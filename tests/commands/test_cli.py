"""The command as a whole: streams that are closed or narrow, numbers out of range, where outputs go, a home that is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.support import jamba_gguf
from tests.support.cli_runner import jamba
from tests.support.repository import REPO
from tests.support.small_models import small_file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_file(tmp_path_factory.mktemp("models"), "q8_0"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to quantize."""
    shape = jamba_gguf.Shape(layers=2, hidden=256, ffn=256, experts=1, attention=(1,), vocab=64)
    return jamba_gguf.write(tmp_path_factory.mktemp("plain") / "m.gguf", shape)


@pytest.mark.parametrize(("closed", "told"), [("<&-", True), ("2>&-", True), (">&-", False), ("<&- >&- 2>&-", False)])
def test_closed_streams_are_no_reason_to_fail(model: str, closed: str, told: bool) -> None:
    line = f'exec "{sys.executable}" -m jambacli show "{model}" {closed}'
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert bool(done.stdout) == told


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full on this platform")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_notes_that_cannot_be_written_cost_no_answer(
    model: str, unbuffered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with Path("/dev/full").open("wb") as full:
        for words in (["run", "hello", "-n", "3", "--temp", "0", "--stats"], ["show", "nowhere.gguf"]):
            done = subprocess.run(
                [sys.executable, "-m", "jambacli", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=full,
                check=False,
            )
            as_ever = jamba(*words)
            assert as_ever.stderr  # else this shows nothing
            assert (done.returncode, done.stdout) == (as_ever.returncode, as_ever.stdout)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_json_in_any_encoding(model: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    arguments = ["run", model, "שלום 🙂 é", "--raw", "--json", "--temp", "0", "-n", "40"]
    done = subprocess.run(
        [sys.executable, "-m", "jambacli", *arguments], capture_output=True, check=True, stdin=subprocess.DEVNULL
    )
    text = json.loads(done.stdout.decode(encoding))["text"]
    assert text == json.loads(jamba(*arguments).stdout)["text"]
    assert not text.isascii()  # else this shows nothing


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full on this platform")
def test_an_output_that_takes_nothing_is_said_in_words(model: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "jambacli", "show", model], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert done.stderr == b"error: cannot read or write: No space left on device\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "MODEL", "hi", "--seed", "-2"], "--seed"),
        (["run", "MODEL", "hi", "--threads", "100000"], "--threads 100000 exceeds the maximum of 1,024"),
        (["quantize", "PLAIN", "out.gguf", "--threads", "100000"], "--threads"),
        (["quantize", "PLAIN", "out.gguf", "--device", "meta"], "--device 'meta' is not a device"),
    ],
)
def test_numbers_and_devices_out_of_range_are_usage_errors(
    model: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = jamba(*[{"MODEL": model, "PLAIN": str(plain)}.get(a, a) for a in arguments])
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ") and words in done.stderr.decode()
    assert not (tmp_path / "out.gguf").exists()


def test_types_may_be_written_as_others_write_them(plain: Path, tmp_path: Path) -> None:
    assert jamba("show", str(plain), "--kv-type", "Q8_0").returncode == 0
    refused = jamba("run", str(plain), "hi", "--kv-type", "Q9", "--no-store")
    assert b"--kv-type 'q9' is not one of" in refused.stderr
    converted = jamba("convert", str(tmp_path), "--type", "BF16")
    assert (converted.returncode, b"no config.json" in converted.stderr) == (1, True)


def test_quantize_takes_a_directory_and_tells_programs_what_it_made(plain: Path, tmp_path: Path) -> None:
    done = jamba("quantize", str(plain), str(tmp_path), "--type", "q8_0", "--json")
    told = json.loads(done.stdout)
    made = tmp_path / "m-Q8_0.gguf"
    assert told["files"] == [str(made)] and told["bytes"] == made.stat().st_size
    again = jamba("quantize", str(plain), str(tmp_path), "--type", "q8_0")
    assert (again.returncode, again.stderr.count(b"\n")) == (1, 1)
    assert b"m-Q8_0.gguf already exists; choose another name, or use --force" in again.stderr


def test_parts_are_not_quantized_over_themselves(plain: Path, tmp_path: Path) -> None:
    made = jamba("quantize", str(plain), str(tmp_path / "m.gguf"), "--type", "f16", "--split-max-size", "200k")
    assert made.returncode == 0
    parts = {path: path.read_bytes() for path in tmp_path.glob("*.gguf")}
    first = next(path for path in parts if "-00001-of-" in path.name)
    done = jamba("quantize", str(first), str(tmp_path / "m.gguf"), "--type", "q8_0", "--keep-split", "--force")
    assert done.returncode == 2 and b"is the input; choose another name" in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.glob("*.gguf")} == parts


def test_a_home_that_cannot_be_written_to_costs_the_memory_not_the_answer(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("run", model, "hello", "--temp", "0", "-n", "5")
    expected = jamba(*options).stdout
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAMBA_HOME", str(tmp_path / "file"))
    done = jamba(*options)
    assert (done.returncode, done.stdout) == (0, expected)
    assert done.stderr.count(b"\n") == 1 and b"nothing will be stored on disk" in done.stderr
    named = jamba("chat", model, "--session", "mine", "-n", "5", stdin=b"hello")
    assert named.returncode == 1 and b"cannot keep sessions under" in named.stderr


def test_ctrl_c_while_the_program_is_still_loading_shows_no_traceback(tmp_path: Path) -> None:
    # A typer that takes for ever to import, interrupted as by Ctrl-C.
    (tmp_path / "typer.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    (tmp_path / "run.py").write_text("import sys\nfrom jambacli.__main__ import main\nsys.exit(main())\n")
    done = subprocess.run([sys.executable, str(tmp_path / "run.py"), "list"], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"interrupted\n")


def test_a_librarys_warning_is_one_line_without_its_place(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from jambacli.gguf import summary

    found = summary.summarize

    def summarize(path: Path) -> summary.Summary:
        warnings.warn("iq3_s is decoded by the gguf package,\nslowly", stacklevel=1)
        return found(path)

    monkeypatch.setattr(summary, "summarize", summarize)
    done = jamba("show", model, "--json")
    assert done.stderr == b"warning: iq3_s is decoded by the gguf package, slowly\n" and json.loads(done.stdout)


@pytest.mark.parametrize(
    "command",
    [
        ["run", "hello", "-n", "1"],
        ["chat", "-n", "1"],
        ["ask", __file__, "Who?", "-n", "1", "--ctx", "16k"],
        ["quantize", "MODEL", "OUT", "--type", "q4_k_m", "--allow-requantize"],
        ["pull", "jamba:tiny"],
        ["eval", "perplexity", "-n", "8"],
        ["list"],
        ["show"],
        ["cache", "clear"],
    ],
    ids=lambda words: words[0],
)
def test_quiet_may_stand_before_and_behind_a_command(model: str, tmp_path: Path, command: list[str]) -> None:
    def said(*words: str) -> bytes:
        named = {"MODEL": model, "OUT": str(tmp_path / f"{len(list(tmp_path.iterdir()))}.gguf")}
        done = jamba(*[named.get(word, word) for word in words], stdin=b"hello\n" if "chat" in words else None)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert said(*command) != b""
    assert said("-q", *command) == said(*command, "-q") == said(*command, "--quiet") == b""


@pytest.mark.parametrize(
    ("words", "wrong", "group"),
    [
        (["nosuch"], "'nosuch'", ""),
        (["shw", "x.gguf"], "'show'", ""),
        (["-q"], "Missing command", ""),
        (["show", "--nosuch"], "--nosuch", " show"),
        (["pull"], "Missing argument", " pull"),
        (["--quiet", "eval", "k"], "'k'", " eval"),
    ],
)
def test_a_wrong_command_line_is_one_line_that_names_the_help(words: list[str], wrong: str, group: str) -> None:
    done = jamba(*words)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    said = done.stderr.decode()
    assert wrong in said and said.endswith(f" (see jamba{group} --help)\n"), said


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["show", "--model", "x"], ""),
        (["chat", "--sesion", "x"], " (Possible options: --session)"),
        (["run", "--temperature", "0"], " (Possible options: --temp)"),
    ],
)
def test_only_options_that_may_be_meant_are_offered(words: list[str], offered: str) -> None:
    said = jamba(*words).stderr.decode()
    assert said == f"error: No such option: {words[1]}{offered} (see jamba {words[0]} --help)\n"


@pytest.mark.parametrize("words", [["run", "hello"], ["chat"], ["bench"]])
def test_the_model_may_be_an_option(words: list[str]) -> None:
    done = jamba(*words, "-m", "jamba:nosuch")
    assert done.returncode == 1 and done.stderr.startswith(b"error: unknown model 'jamba:nosuch'")


@pytest.mark.parametrize("command", ["run", "chat", "bench", "serve"])
def test_argument_and_option_name_the_same_model(command: str) -> None:
    done = jamba(command, "jamba:tiny", "--model", "jamba:3b")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"error: --model 'jamba:3b' contradicts the argument jamba:tiny: name one model\n"


@pytest.mark.parametrize(
    "words",
    [
        ("pull", "FILE.gguf"),
        ("show", "FILE.gguf"),
        ("quantize", "FILE.gguf"),
        ("ask", "FILE", "Who?"),
        ("convert", "FILE"),
    ],
)
def test_the_home_of_a_user_that_is_none_holds_no_file(words: tuple[str, ...]) -> None:
    done = jamba(*(word.replace("FILE", "~no-such-user/x") for word in words))
    assert done.returncode in (1, 2) and done.stderr.count(b"\n") == 1
    said = done.stderr.decode()
    assert "~no-such-user/x" in said and "internal" not in said, said


@pytest.mark.parametrize("columns", ["0", "3", "abc", "-5", "²", ""])
def test_a_width_that_is_none_is_ignored(model: str, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    done = jamba("show", model)
    assert done.returncode == 0 and done.stdout.startswith(b"small q8_0\n") and done.stderr == b""


def _in_shell(line: str, folder: Path, **variables: str | None) -> subprocess.CompletedProcess[str]:
    """A line of sh in ``folder``, with ``$JAMBA``; variables that are None are unset."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "JAMBA": f"{sys.executable} -m jambacli"}
    environment = {k: v for k, v in {**environment, **variables}.items() if v is not None}
    return subprocess.run(["sh", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.name == "nt", reason="a current directory cannot be deleted there")
def test_a_deleted_current_directory_is_named(model: str, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    done = _in_shell(f"cd gone && rmdir ../gone && $JAMBA run '{model}' hi -n 1", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: the current directory has been deleted; change to another one first (cd)\n"


def test_an_empty_home_is_that_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwd = pytest.importorskip("pwd")
    from jambacli.cli import _ready_environment
    from jambacli.files import jamba_home

    for name in ("JAMBA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "")
    _ready_environment()
    assert str(jamba_home()).startswith(pwd.getpwuid(os.getuid()).pw_dir)
    monkeypatch.setenv("JAMBA_HOME", " ")
    assert str(jamba_home()).strip() != ""


def test_a_home_that_is_a_file_is_said_where_models_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("JAMBA_HOME", str(tmp_path / "file"))
    assert f"{tmp_path / 'file'} is not a folder, so it holds no models" in jamba("list").stderr.decode()


@pytest.mark.parametrize(
    "variables",
    [
        {"TERM": None, "NO_COLOR": "1"},
        {"TERM": "dumb", "COLUMNS": "0"},
        {"TERM": ""},
        {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "xx_YY.none"},
    ],
)
def test_any_terminal_and_locale_shows_a_model(model: str, tmp_path: Path, variables: dict[str, str | None]) -> None:
    done = _in_shell(f"$JAMBA show '{model}'", tmp_path, **variables)
    assert (
        (done.returncode, done.stderr) == (0, "")
        and done.stdout.startswith("small q8_0\n")
        and "\x1b" not in done.stdout
    )
