"""`jamba run` and `bench` between pipes and terminals: line ends, `-`, the loading line, what Ctrl-C leaves."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from jambacli import ui
from jambacli.evaluation.bench import ModelRunner
from tests.support.cli_runner import jamba
from tests.support.small_models import small_file
from tests.support.terminal import in_terminal

terminal = pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no pseudo-terminals on this platform")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_file(tmp_path_factory.mktemp("models"), "q8_0"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model without a chat template."""
    return str(small_file(tmp_path_factory.mktemp("bare"), "q8_0", template=""))


def test_a_reply_ends_its_line_in_a_pipe(model: str) -> None:
    options = ("run", model, "hello", "--temp", "0", "-n", "5", "--no-store")
    text = json.loads(jamba(*options, "--json").stdout)["text"]
    assert jamba(*options).stdout.decode() == (text if text.endswith("\n") else text + "\n")


def test_a_dash_is_standard_input(model: str) -> None:
    options = ("--json", "--temp", "0", "-n", "2", "--no-store")
    expected = json.loads(jamba("run", model, "from the pipe", *options).stdout)["prompt_tokens"]
    for words in ((model, "-"), (model, "-f", "-"), (model,), (model, "-", "-f", "-")):
        told = json.loads(jamba("run", *words, *options, stdin=b"from the pipe").stdout)
        assert told["prompt_tokens"] == expected, words
    alone = json.loads(jamba("run", "-", *options, stdin=b"from the pipe").stdout)  # the model used last
    assert (alone["prompt_tokens"], alone["model"]) == (expected, told["model"])
    nothing = jamba("run", model, "-", stdin=b"")
    assert nothing.returncode == 2 and b"there is no prompt" in nothing.stderr


def test_minus_one_is_no_limit_and_no_seed(model: str) -> None:
    options = ("run", model, "hello", "--json", "--temp", "50", "--ctx", "64", "--no-store")
    told = json.loads(jamba(*options, "-n", "-1", "--seed", "-1").stdout)
    assert told["finish"] in ("context", "stop")
    texts = {json.loads(jamba(*options, "-n", "16", "--seed", "-1").stdout)["text"] for _ in range(4)}
    assert len(texts) > 1  # tokens drawn from hundreds of almost equal ones
    for flag, value in (("-n", "0"), ("-n", "-2"), ("--seed", "-2")):
        refused = jamba(*options, flag, value)
        assert refused.returncode == 2 and refused.stderr.startswith(b"error: ")
    assert b"--max-tokens -2 is neither at least 1 nor -1" in jamba(*options, "-n", "-2").stderr


def test_plain_text_is_continued_with_a_note(bare: str) -> None:
    options = ("run", bare, "hello", "-n", "2", "--temp", "0", "--no-store")
    done = jamba(*options)
    assert b"has no chat template: continuing the prompt as plain text, as with --raw\n" in done.stderr
    for more in ("--raw", "-q"):
        assert b"no chat template" not in jamba(*options, more).stderr


@terminal
def test_a_loading_line_stands_at_once_and_disappears(model: str) -> None:
    size = Path(model).stat().st_size
    assert size > 1000
    code, seen = in_terminal(["run", model, "hello", "-n", "2", "--temp", "0", "--no-store"])
    at_once, start, *others = seen.split(" ...")
    name = f"\r\x1b[KLoading {Path(model).name}"
    assert code == 0 and at_once == name and start.startswith(f"{name} (") and start.endswith("B)")
    rest = "".join(others)
    assert "\r\x1b[K" in rest and "\x1b[K\n" not in rest  # it leaves no empty line
    assert "Loading" not in in_terminal(["run", model, "hello", "-n", "2", "--no-store", "-q"])[1]


def test_a_pipe_has_no_loading_line(model: str) -> None:
    done = jamba("run", model, "hello", "-n", "2", "--temp", "0", "--no-store")
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_takes_long_shows_how_much_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with ui.loading("Loading m.gguf", 1000) as advance:
        assert capsys.readouterr().err == "\r\x1b[KLoading m.gguf (1 kB) ..."
        advance(250)
        assert capsys.readouterr().err == ""  # it may be done at once
        now = 100.6
        advance(250)
        assert capsys.readouterr().err == "\r\x1b[KLoading m.gguf (1 kB) ... 50%"
        advance(250)
        assert capsys.readouterr().err == ""  # not for every tensor
        ui.note("testing the GPU")
        assert capsys.readouterr().err == "\r\x1b[Ktesting the GPU\n\r\x1b[KLoading m.gguf (1 kB) ... 50%"
    assert capsys.readouterr().err == "\r\x1b[K"
    advance(250)
    assert capsys.readouterr().err == ""


def test_the_time_to_load_includes_the_tokenizer(model: str) -> None:
    from jambacli.commands.load import load_model
    from jambacli.runtime.options import DeviceOptions

    began = time.perf_counter()
    loaded = load_model(model, DeviceOptions(device="cpu"))
    assert "tokenizer" in vars(loaded) and 0 < loaded.load_seconds <= time.perf_counter() - began


@pytest.mark.parametrize("form", ["md", "json", "csv"])
def test_an_interrupted_bench_prints_what_it_has(model: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, calls = ModelRunner.decode, 0

    def interrupted(self: ModelRunner, tokens: int, at_once: int = 1) -> float:
        nonlocal calls
        calls += 1
        if calls == 3:  # after the untimed run and one repetition
            raise KeyboardInterrupt
        return decode(self, tokens, at_once)

    monkeypatch.setattr(ModelRunner, "decode", interrupted)
    options = ["--json"] if form == "json" else ["-o", form]
    done = jamba("bench", model, "-p", "16,32", "-n", "4", "-r", "2", *options, "--device", "cpu")
    assert (done.returncode, done.stderr) == (130, b"interrupted\n")
    out = done.stdout.decode()
    assert "pp16" in out and "pp32" in out and "tg4" not in out
    if form == "json":
        assert [row["matrix_share"] for row in json.loads(out)] == [None, None]
    if form == "md":
        assert len(out.splitlines()) == 4


def test_a_bench_of_nothing_measured_prints_nothing(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: ModelRunner, tokens: int) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelRunner, "prefill", interrupted)
    done = jamba("bench", model, "-p", "16", "-n", "0", "--device", "cpu")
    assert (done.returncode, done.stdout) == (130, b"")


@terminal
def test_the_line_is_gone_before_an_error_and_before_the_prompt() -> None:
    code, seen = in_terminal(["run", "jamba:nope", "hello"])
    assert code == 1 and "\r\x1b[KLoading jamba:nope ...\r\x1b[Kerror: unknown model" in seen
    code, seen = in_terminal(["run", "jamba:tiny"])
    assert code == 2 and "Loading" not in seen and "there is no prompt" in seen
