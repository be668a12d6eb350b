"""``jamba quantize`` with a size: figures are measured into a file, used again, and printed as what they lead to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jambacli.gguf.reader import GGUFFile
from tests.support.cli_runner import jamba
from tests.support.small_models import small_file


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_file(tmp_path_factory.mktemp("source"), "bf16"))


@pytest.fixture(scope="module")
def figures(source: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("figures")
    text, path = folder / "text.txt", folder / "figures.json"
    text.write_text("herons counted at the lake: 42. the quick brown fox jumps over the lazy dog. " * 4)
    options = ("--calibration", str(text), "--calibration-tokens", "48", "--measure-types", "q5_k,q3_k")
    done = jamba("quantize", source, "--sensitivity", str(path), *options, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "measuring" in done.stderr.decode() and "the work of reading" in done.stderr.decode()
    output = done.stdout.decode()
    assert "predicted mean KL" in output and "--tensor-type '^blk" in output and "q4_k_x" in output
    return str(path)


def test_measured_figures_are_used_without_measuring_again(source: str, figures: str, tmp_path: Path) -> None:
    before = Path(figures).read_bytes()
    assert json.loads(before)["formats"] == ["q3_k", "q5_k"]
    done = jamba("quantize", source, str(tmp_path), "--sensitivity", figures, "--type", "q3_k_x", "--json")
    assert done.returncode == 0 and "measuring" not in done.stderr.decode()
    result = json.loads(done.stdout)
    assert result["files"] == [str(tmp_path / f"{Path(source).stem.removesuffix('-bf16')}-q3_k_x.gguf")]
    assert Path(result["files"][0]).stat().st_size == result["bytes"] and result["predicted_kl"] > 0
    assert Path(figures).read_bytes() == before
    options = [word for pattern in result["tensor_types"] for word in ("--tensor-type", pattern)]
    again = json.loads(jamba("quantize", source, "--type", "q3_k_m", *options, "--dry-run", "--json").stdout)
    assert [t["to"] for t in again["tensors"]] == [t["to"] for t in result["tensors"]]


def test_an_unfinished_file_is_gone_on_with_on_the_same_text_only(source: str, figures: str, tmp_path: Path) -> None:
    part = tmp_path / "part.json"
    found = json.loads(Path(figures).read_text())
    gone = found["kl"].pop("blk.3.ssm_in.weight")
    part.write_text(json.dumps(found))
    other = jamba("quantize", source, "--sensitivity", str(part), "--calibration-tokens", "48", "--dry-run")
    assert other.returncode == 1 and "was begun with another text" in other.stderr.decode()
    text = str(Path(figures).with_name("text.txt"))
    options = ("--calibration", text, "--calibration-tokens", "48", "--dry-run")
    done = jamba("quantize", source, "--sensitivity", str(part), *options)
    assert done.returncode == 0 and "measuring 2 roundings of 1 tensor " in done.stderr.decode()
    assert json.loads(part.read_text())["kl"]["blk.3.ssm_in.weight"] == pytest.approx(gone, rel=1e-3)


def test_a_target_and_a_size_without_figures(source: str, tmp_path: Path) -> None:
    table = jamba("quantize", source, "--target", "4.5", "--dry-run").stdout.decode()
    assert "chosen by kinds of tensors" in table and "4.50bpw" in table
    done = jamba("quantize", source, str(tmp_path / "out.gguf"), "--size", "2M", "--json")
    assert done.returncode == 0 and (tmp_path / "out.gguf").stat().st_size <= 2 << 20
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        assert len(file.tensors) > 10


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--target", "4.5", "--size", "1M"), "--size and --target contradict each other"),
        (("--target", "99"), "--target 99.0 is outside 1 to 16"),
        (("--size", "1k"), "smallest formats take"),
        (("--type", "q4_k_x", "--target", "4"), "has a size of its own"),
        (("--type", "q4_0", "--sensitivity", "{figures}"), "q4_k_x"),
        (("--target", "4", "--sensitivity", "{source}"), "not a file of sensitivities"),
        (("--target", "4", "--measure-types", "q4_k"), "--sensitivity FILE"),
        (
            ("--target", "4", "--sensitivity", "{figures}", "--measure-types", "q9"),
            "--measure-types 'q9' takes some of",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(source: str, figures: str, arguments: tuple[str, ...], said: str) -> None:
    given = (a.replace("{figures}", figures).replace("{source}", source) for a in arguments)
    done = jamba("quantize", source, *given, "--dry-run")
    assert done.returncode in (1, 2), done.stdout
    assert said in done.stderr.decode()
    assert done.stderr.decode().strip().count("\n") == 0 and not done.stdout
