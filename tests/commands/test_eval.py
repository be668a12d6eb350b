"""``jamba eval``: tables and JSON of the three measurements; errors in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.support.cli_runner import jamba
from tests.support.small_models import small_file


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("eval")
    return [str(small_file(folder, kind)) for kind in ("q8_0", "q4_k")]


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("herons counted at the lake: 42. the quick brown fox jumps over the lazy dog. " * 8)
    return str(path)


def test_perplexity_of_several_models_is_one_table(files: list[str], text: str) -> None:
    done = jamba("eval", "perplexity", *files, "--text", text, "--ctx", "64")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert len(lines) == 4 and "±" in lines[2] and Path(files[1]).name in lines[3]
    rows = json.loads(jamba("eval", "perplexity", *files, "--text", text, "--ctx", "64", "--json").stdout)
    for row in rows:
        assert row["value"] == pytest.approx(math.exp(row["nll"]))
        assert row["error"] == pytest.approx(row["value"] * row["nll_error"])
    some = ("eval", "perplexity", files[0], "--text", text, "--ctx", "64", "--json", "-n")
    assert json.loads(jamba(*some, "20").stdout)["tokens"] == 19
    assert json.loads(jamba(*some, "100").stdout)["tokens"] == json.loads(jamba(*some, "64").stdout)["tokens"] == 32


def test_kl_of_a_file_with_itself_is_nothing_and_with_another_something(files: list[str], text: str) -> None:
    same = json.loads(jamba("eval", "kl", files[0], files[0], "--text", text, "--ctx", "64", "--json").stdout)
    assert same["mean"] == 0 and same["top1"] == 1
    other = json.loads(jamba("eval", "kl", files[1], files[0], "--random", "128", "--ctx", "64", "--json").stdout)
    assert other["tokens"] == 126 and other["reference"]["path"] == files[0]
    assert 0 <= other["median"] <= other["p99"] <= other["maximum"]
    table = jamba("eval", "kl", files[1], files[0], "--random", "64").stdout.decode()
    assert "99th percentile" in table and "same top token" in table


def test_kl_with_a_file_of_log_probabilities_and_several_texts(files: list[str], text: str, tmp_path: Path) -> None:
    other, base = tmp_path / "other.txt", str(tmp_path / "base.kld")
    other.write_text("the lazy dog counted 42 herons over the quick brown fox. " * 8)
    texts = ("--text", text, "--class", f"second={other}", "--ctx", "32")
    wrote = jamba("eval", "kl", files[0], "--save-base", base, *texts, "--json")
    assert wrote.returncode == 0 and json.loads(wrote.stdout)["ctx"] == 32
    whole = json.loads(jamba("eval", "kl", files[1], "--base", base, "--json").stdout)
    rows = json.loads(jamba("eval", "kl", files[1], "--base", base, *texts, "--json").stdout)
    direct = json.loads(jamba("eval", "kl", files[1], files[0], *texts, "--as-llama-perplexity", "--json").stdout)
    assert rows["mean"] == whole["mean"] == pytest.approx(direct["mean"], rel=1e-3, abs=1e-6)
    assert [r["class"] for r in rows["by_class"]] == ["text", "second"] and not whole["by_class"]
    assert sum(r["tokens"] for r in rows["by_position"]) == rows["tokens"]
    table = jamba("eval", "kl", files[1], "--base", base, *texts).stdout.decode()
    assert "second" in table and "99.9th percentile" in table
    for more, said in ((("--text", str(other)), "another text"), (("--save-base", base), "contradict each other")):
        done = jamba("eval", "kl", files[1], "--base", base, *more)
        assert done.returncode in (1, 2) and said in done.stderr.decode()
    again = jamba("eval", "kl", files[0], "--save-base", base, *texts)
    assert again.returncode == 1 and "already exists" in again.stderr.decode()


def test_needle_reports_recall_by_length_and_depth(files: list[str]) -> None:
    options = ("--tokens", "300", "--documents", "1", "--questions", "4")
    done = jamba("eval", "needle", files[0], *options, "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)["recall"][0]
    assert row["questions"] == 4 and 0 <= row["right"] <= 1 and len(row["by_depth"]) == 4
    assert "depth 0-25%" in jamba("eval", "needle", files[0], *options).stdout.decode()


def test_lookup_compares_replies_with_and_without(files: list[str], text: str) -> None:
    options = (text, "--model", files[0], "-n", "30", "-r", "1")
    rows = json.loads(jamba("eval", "lookup", *options, "--json").stdout)["replies"]
    assert len(rows) == 3 and all(r["same"] for r in rows)
    done = jamba("eval", "lookup", *options, "--quoted", "0,70")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert len(lines) == 4 and "70% quoted" in lines[3] and "yes" in lines[3]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("perplexity", "nowhere.gguf"), "nowhere.gguf"),
        (("perplexity", "{model}", "--device", "gpu"), "not one of auto, cpu, cuda"),
        (("kl", "{model}", "{model}", "--cpu-kv", "--device", "cpu"), "a GPU"),
        (("needle", "{model}", "--gpu-memory", "4G", "--device", "cpu"), "a GPU"),
        (("needle", "{model}", "--kinds", "colour"), "colour"),
        (("needle", "{model}", "--tokens", "20"), "no report fits"),
        (("kl", "{model}", "{model}", "--random", "64", "--text", "x.txt"), "not both"),
        (("kl", "{model}"), "nothing to compare"),
        (("kl", "{model}", "--base", "{text}"), "does not begin with _logits_"),
        (("kl", "{model}", "{model}", "--class", "name"), "--class 'name' is not NAME=FILE"),
        (("kl", "{model}", "{model}", "-f", "{text}", "-f", "{text}"), "two texts are called"),
        (("lookup", "nowhere.txt"), "nowhere.txt"),
        (("lookup", "{text}", "--shape", "moe"), "--quoted"),
        (("lookup", "{text}", "--model", "{model}", "--quoted", "120"), "--quoted 120 is outside 0 to 100"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(files: list[str], text: str, arguments: tuple[str, ...], said: str) -> None:
    done = jamba("eval", *(a.replace("{model}", files[0]).replace("{text}", text) for a in arguments))
    assert done.returncode in (1, 2)
    assert said in done.stderr.decode()
    assert done.stderr.decode().strip().count("\n") == 0 and not done.stdout
