"""``jamba run`` as a user types it: prompts from everywhere, pure stdout, exit codes, figures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jambacli.kernels import cpu
from tests.support.cli_runner import jamba
from tests.support.small_models import small_file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_file(tmp_path_factory.mktemp("models"), "q8_0"))


def test_the_text_alone_goes_to_stdout_and_equals_the_decoded_tokens(model: str) -> None:
    from jambacli import Jamba

    prompt = "Count the herons 🙂 שלום"
    done = jamba("run", model, prompt, "--temp", "0", "-n", "30", "--stats")
    assert done.returncode == 0
    session = Jamba.load(model).session(store=False)
    expected = "".join(session.send(prompt, max_tokens=30, temperature=0))
    assert done.stdout.decode() == (expected if expected.endswith("\n") else expected + "\n")
    assert b"prefill" in done.stderr and b"tokens/s" in done.stderr


def test_the_prompt_comes_from_argument_file_and_stdin_together(model: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("from the file", encoding="utf-8")
    done = jamba("run", model, "say:", "-f", str(file), "--json", "-n", "2", "--temp", "0", stdin=b"from the pipe")
    together = json.loads(done.stdout)
    alone = jamba("run", model, "say:\n\nfrom the file\n\nfrom the pipe", "--json", "-n", "2", "--temp", "0")
    assert together["prompt_tokens"] == json.loads(alone.stdout)["prompt_tokens"]
    assert together["text"] == json.loads(alone.stdout)["text"]
    assert together["generated_tokens"] == 2 and together["finish"] == "length"


def test_raw_continues_and_a_seed_reproduces(model: str) -> None:
    options = ("run", model, "the quick", "--raw", "--temp", "1", "-n", "20", "--no-store")
    first, again = jamba(*options, "--seed", "5"), jamba(*options, "--seed", "5")
    other = jamba(*options, "--seed", "6")
    assert first.stdout == again.stdout != other.stdout


def test_the_second_run_reads_nothing_again(model: str) -> None:
    options = ("run", model, "How many herons? " * 20, "--json", "-n", "2")
    first, second = (json.loads(jamba(*options).stdout) for _ in range(2))
    assert first["reused_tokens"] < 10
    assert second["prefilled_tokens"] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "nowhere.gguf", "hi"], 1, "nowhere.gguf"),
        (["run", "MODEL", "hi", "--ctx", "many"], 2, "--ctx"),
        (["run", "MODEL", "hi", "--ctx", "300m"], 2, "--ctx"),
        (["run", "MODEL", "hi", "--temp", "-1"], 2, "--temp"),
        (
            ["run", "MODEL", "hi", "--logit-bias", "1000000=5"],
            2,
            "--logit-bias 1000000 is not a token of the model, whose tokens are 0 to ",
        ),
        (["chat", "MODEL", "--logit-bias", "-1=5"], 2, "--logit-bias -1"),
        (["run", "MODEL", "hi", "--kv-type", "q3"], 2, "q3"),
        (["run", "MODEL"], 2, "no prompt"),
        (["run", "MODEL", "-f", "no-such-file"], 1, "no-such-file"),
        (["run", "MODEL", "hi " * 50, "--ctx", "16"], 1, "context"),
        (["bench", "MODEL", "--compare", "ollama"], 2, "ollama"),
        (["bench", "MODEL", "--compare", "llama.cpp", "--device", "cuda"], 2, "leave out --device"),
        (["bench", "MODEL", "--fill", "zeros"], 2, "not one of read, random"),
        (["bench", "MODEL", "--fill", "random", "--compare", "llama.cpp"], 2, "leave out --fill random"),
        (["bench", "MODEL", "--device", "tpu"], 2, "not one of auto, cpu, cuda"),
        (["bench", "MODEL", "--cpu-experts", "1", "--device", "cpu"], 2, "needs a GPU"),
        (["bench", "MODEL", "--kv-type", "f8"], 2, "f8"),
        (["bench", "--shape", "jamba-huge"], 2, "jamba-huge"),
        (["bench", "MODEL", "--isa", "sse2"], 2, "--isa 'sse2'"),
        (["bench", "MODEL", "-b", "1,0"], 2, "--batch '1,0'"),
        (["bench", "MODEL", "--step-tokens", "0"], 2, "--step-tokens '0'"),
    ],
)
def test_mistakes_get_one_line_and_the_right_code(model: str, arguments: list[str], code: int, words: str) -> None:
    done = jamba(*[model if a == "MODEL" else a for a in arguments])
    error = done.stderr.decode().strip().splitlines()
    assert done.returncode == code, error
    assert words in error[-1] and error[-1].startswith("error:")
    assert done.stdout == b"" and "Traceback" not in done.stderr.decode()


@pytest.mark.parametrize("command", [["run", "MODEL", "hi"], ["chat", "MODEL"], ["ask", "FILE", "Who?", "-m", "MODEL"]])
@pytest.mark.parametrize(
    ("option", "value"),
    [("--temp", "-1"), ("--top-p", "2"), ("--top-k", "-1"), ("--min-p", "nan"), ("--logit-bias", "5=inf")],
)
def test_what_is_out_of_range_is_said_before_anything_is_loaded(
    tmp_path: Path, command: list[str], option: str, value: str
) -> None:
    (tmp_path / "empty.gguf").touch()  # would be refused with exit code 1, were it opened
    named = {"MODEL": str(tmp_path / "empty.gguf"), "FILE": __file__}
    done = jamba(*[named.get(word, word) for word in command], option, value)
    assert done.returncode == 2 and done.stdout == b""
    assert done.stderr.startswith(f"error: {option} ".encode()) and done.stderr.count(b"\n") == 1


def test_a_pipe_gets_the_text_in_a_process_of_its_own(model: str) -> None:
    arguments = ["run", model, "Count the herons", "--temp", "0", "-n", "10"]
    done = subprocess.run(
        [sys.executable, "-m", "jambacli", *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    assert done.stdout == jamba(*arguments).stdout


def test_ctrl_c_keeps_what_was_said(model: str) -> None:
    process = subprocess.Popen(
        # It must not end by itself: token 1 is what stops it.
        [
            *(sys.executable, "-m", "jambacli", "run", model, "go on"),
            *("-n", "100000", "--no-store", "--logit-bias", "1=-inf"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    first = process.stdout.read(1)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode in (0, 130)
    assert first + rest


def test_with_no_model_the_demo_model_answers_and_a_note_says_so() -> None:
    done = jamba("run", "hello", "-n", "3")
    assert done.returncode == 0
    assert b"demo model" in done.stderr


def test_bench_measures_steps_of_several_tokens_at_several_levels(model: str) -> None:
    if not cpu.available():
        pytest.skip("the C++ kernels were not built")
    lowest, best = cpu.runnable_isas()[0], cpu.runnable_isas()[-1]
    options = ("bench", model, "-p", "0", "-n", "4", "-r", "1", "--step-tokens", "1,3", "--isa", f"{lowest},{best}")
    done = jamba(*options, "-o", "json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(r["isa"], r["test"]) for r in rows] == [(i, t) for i in (lowest, best) for t in ("tg4", "tg3 t3")]
    assert [r["step_tokens_of_one_sequence"] for r in rows] == [1, 3] * 2
    assert all(r["step_seconds"] > 0 for r in rows)
    assert rows[0]["step_against_one_token"] == rows[2]["step_against_one_token"] == 1
    table = jamba(*options).stdout.decode()
    assert "tokens of one sequence a step" in table
    assert f"| {lowest} |" in table and f"| {best} |" in table
    assert f",{lowest}," in jamba(*options, "-o", "csv").stdout.decode()


def test_bench_measures_several_sequences(model: str) -> None:
    options = ("bench", model, "-p", "0", "-n", "4", "-r", "1", "-b", "1,3")
    rows = json.loads(jamba(*options, "-o", "json").stdout)
    assert [(r["test"], r["sequences"], r["step_tokens_of_one_sequence"]) for r in rows] == [
        ("tg4", 1, 1),
        ("tg4 b3", 3, 1),
    ]
    for row in rows:
        assert row["step_seconds"] == pytest.approx(row["sequences"] / row["tokens_per_second"])
    assert "| sequences |" in jamba(*options).stdout.decode()


def test_bench_prints_a_table_json_and_csv(model: str) -> None:
    options = ("bench", model, "-p", "32", "-n", "4", "-r", "2", "-d", "0,16")
    table = jamba(*options).stdout.decode()
    assert all(name in table for name in ("pp32", "tg4", "pp32 @ d16", "tg4 @ d16"))
    rows = json.loads(jamba(*options, "-o", "json").stdout)
    assert [r["test"] for r in rows] == ["pp32", "tg4", "pp32 @ d16", "tg4 @ d16"]
    assert all(len(r["repetitions"]) == 2 and r["tokens_per_second"] > 0 for r in rows)
    assert rows[0]["device"] and rows[0]["device"] in table and not rows[0]["on_gpu"]
    text = jamba(*options, "-o", "csv").stdout.decode().splitlines()
    assert len(text) == 5 and text[0].startswith("model,")
    assert [r["fill"] for r in rows] == [None, None, "read", "read"]
    assert "random" not in table


def test_bench_says_where_a_context_is_random(model: str) -> None:
    options = ("bench", model, "-p", "0", "-n", "4", "-r", "1", "-d", "0,16", "--fill", "random")
    assert "not computed: the context of tg4 @ d16." in jamba(*options).stdout.decode()
    rows = json.loads(jamba(*options, "-o", "json").stdout)
    assert [r["fill"] for r in rows] == [None, "random"]
