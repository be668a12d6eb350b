"""The kernel benchmark: what it prints, ours alone and beside ggml's product."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kernel_speed import Measurement, main, measure, shortest
from jambacli.errors import JambaError
from jambacli.kernels import cpu

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the C++ kernels were not built")

SMALL = ["--rows", "32", "--cols", "256", "--seconds", "0.01"]


def ggml_library() -> Path:
    """libggml-cpu of libggml-python."""
    libggml = pytest.importorskip("libggml", reason="libggml-python is not installed")
    found = sorted(Path(libggml.__file__).parent.rglob("libggml-cpu.so"))
    if not found:
        pytest.skip("libggml-python has no libggml-cpu.so")
    return found[0]


def run(*arguments: str) -> str:
    """The benchmark's output, from a process that has loaded no other ggml."""
    command = [sys.executable, "-m", "benchmarks.kernel_speed", *SMALL, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_rate_counts_every_weight_once_for_each_token() -> None:
    one = Measurement("avx2", "q4_k", 4, 1000, 2e-6, {"plain": 4e-6, "repacked": 3e-6})
    assert one.rate(one.seconds) == pytest.approx(2.0)
    assert one.ggml_best == 3e-6
    assert Measurement("avx2", "q4_k", 4, 1000, 2e-6).ggml_best is None


def test_contestants_take_turns() -> None:
    order: list[str] = []
    times = shortest({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0.0)
    assert set(times) == {"a", "b"} and all(seconds > 0 for seconds in times.values())
    assert order == ["a"] * 5 + ["b"] * 5 + order[10:] and order.count("a") == order.count("b")


def test_each_level_and_number_of_tokens_is_measured_and_the_level_restored() -> None:
    before = cpu.cpu_features()["isa"]
    lowest = cpu.runnable_isas()[0]
    found = measure(lowest, "q6_k", 8, 256, [1, 3], 0.0)
    assert [(m.isa, m.type, m.tokens, m.weights) for m in found] == [(lowest, "q6_k", n, 2048) for n in (1, 3)]
    assert all(m.seconds > 0 and not m.ggml_seconds for m in found)
    assert cpu.cpu_features()["isa"] == before


def test_the_table_has_a_row_for_each_type(capsys: pytest.CaptureFixture[str]) -> None:
    main([*SMALL, "--types", "q4_k,bf16", "--tokens", "1,2"])
    table = capsys.readouterr().out
    assert f"### {cpu.runnable_isas()[-1]}" in table
    assert table.count("| q4_k | ") == table.count("| bf16 | ") == 2  # rates, and times against one token's
    assert "| 1 token | 2 tokens |" in table


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--isa", "sse"], "'sse' is none of"), (["--ggml", "nowhere.so"], "nowhere.so is no ggml library")],
)
def test_mistakes_are_told(arguments: list[str], words: str) -> None:
    with pytest.raises(JambaError, match=words):
        main([*SMALL, *arguments])


def test_ggml_is_measured_beside_ours_with_weights_plain_and_interleaved() -> None:
    options = ["--types", "q4_0,q6_k", "--tokens", "1,5", "--ggml", str(ggml_library())]
    result: dict[str, Any] = json.loads(run(*options, "-o", "json"))
    rows = result["measurements"]
    assert [(r["type"], r["tokens"]) for r in rows] == [("q4_0", 1), ("q4_0", 5), ("q6_k", 1), ("q6_k", 5)]
    assert all(r["ggml_seconds"]["plain"] > 0 for r in rows)
    assert isinstance(result["ggml_features"][0], list)
    if "avx2" in result["ggml_features"][0]:
        assert rows[0]["ggml_seconds"]["repacked"] > 0
