"""``quantize --refine``: better products in the same formats, the same bytes whatever stops it, and plain GGUF files."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jambacli import cli
from jambacli.errors import BadFileError, JambaError
from jambacli.gguf.reader import GGUFFile
from jambacli.hub.demo import demo_model_path
from jambacli.quantize import quantize_file
from jambacli.quantize.imatrix_collect import collect
from jambacli.quantize.quantize_file import Refinement, Request
from jambacli.quantize.recipes import RecipeOptions, get_recipe
from jambacli.quantize.refine import refine, spread
from jambacli.runtime.loader import load_gguf
from quant import feedback, native
from tests.support import jamba_gguf
from tests.support.imatrix_files import write_imatrix
from tests.support.jamba_gguf import Shape

pytestmark = pytest.mark.skipif(native.library() is None, reason="the C++ library is not built")

# Every kind of matrix; dt_rank 32 takes blocks of 32, the last expert of a few tokens sees none.
SHAPE = Shape(layers=2, hidden=256, ffn=256, experts=3, attention=(1,), vocab=64)
CHUNKS = [np.random.default_rng(i).integers(1, 64, 48).tolist() for i in range(6)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jamba_gguf.write(tmp_path_factory.mktemp("source") / "small-bf16.gguf", SHAPE)


def refined(
    source: Path,
    output: Path,
    kind: str = "q4_k_m",
    chunks: Sequence[Sequence[int]] = CHUNKS,
    threads: int = 2,
) -> Path:
    request = Request(
        get_recipe(kind),
        RecipeOptions(has_imatrix=True),
        threads=threads,
        refinement=Refinement(("text",), sum(map(len, chunks))),
        force=True,
    )
    with GGUFFile.open(source) as file:
        plan = quantize_file.plan(file, request)
        with refine(plan, chunks, output) as found:
            quantize_file.quantize(plan, output, refined=found.tensors)
            found.close()
    return output


def logits(path: Path, chunks: Sequence[Sequence[int]]) -> torch.Tensor:
    model = load_gguf(path)
    rows = []
    for chunk in chunks:
        out = model.forward(torch.tensor(chunk), model.new_state(len(chunk), precise=True), logits="all")
        assert out is not None
        rows.append(out)
    return torch.cat(rows)


def test_logits_are_closer_than_those_of_an_imatrix(source: Path, tmp_path: Path) -> None:
    kind = "q3_k_m"
    exact = logits(source, CHUNKS)
    sums = collect(load_gguf(source), CHUNKS)
    request = Request(get_recipe(kind), RecipeOptions(has_imatrix=True), sums.imatrix(), force=True)
    with GGUFFile.open(source) as file:
        quantize_file.quantize(quantize_file.plan(file, request), tmp_path / "plain.gguf")
    refined(source, tmp_path / "refined.gguf", kind)
    errors = [
        float((logits(tmp_path / name, CHUNKS) - exact).square().mean()) for name in ("plain.gguf", "refined.gguf")
    ]
    assert errors[1] < 0.85 * errors[0]
    with GGUFFile.open(tmp_path / "plain.gguf") as plain, GGUFFile.open(tmp_path / "refined.gguf") as better:
        assert {n: (t.shape, t.format) for n, t in plain.tensors.items()} == {
            n: (t.shape, t.format) for n, t in better.tensors.items()
        }
        assert better.metadata["quantize.refine.dataset"] == "text"
        assert better.metadata["quantize.refine.tokens"] == 288


def test_neither_threads_nor_a_stop_change_the_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = refined(source, tmp_path / "whole.gguf", threads=1).read_bytes()
    own, calls = feedback.refine, 0

    def stopped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 14:
            raise KeyboardInterrupt
        return own(*arguments, **options)

    monkeypatch.setattr(feedback, "refine", stopped)
    target = tmp_path / "stopped.gguf"
    with pytest.raises(KeyboardInterrupt):
        refined(source, target)
    assert not target.exists()
    refined(source, target, threads=3)
    assert target.read_bytes() == whole
    monkeypatch.undo()
    done = calls
    calls = 0
    monkeypatch.setattr(feedback, "refine", stopped)
    with pytest.raises(KeyboardInterrupt):  # in all a run refines more matrices than the second one had left
        refined(source, tmp_path / "again.gguf")
    assert done - 14 < calls + 10
    assert sorted(path.name for path in tmp_path.iterdir()) == [".again.gguf.refine", "stopped.gguf", "whole.gguf"]


def test_parts_of_another_run_are_not_taken_over(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.gguf"
    own = quantize_file.quantize

    def failing(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(quantize_file, "quantize", failing)
    with pytest.raises(KeyboardInterrupt):
        refined(source, target, chunks=CHUNKS[:1])
    monkeypatch.setattr(quantize_file, "quantize", own)
    after = refined(source, target).read_bytes()
    assert after == refined(source, tmp_path / "fresh.gguf").read_bytes()


def test_two_processes_do_not_refine_one_output(source: Path, tmp_path: Path) -> None:
    with GGUFFile.open(source) as file:
        plan = quantize_file.plan(file, Request(get_recipe("q4_0")))
        with (
            refine(plan, CHUNKS[:1], tmp_path / "out.gguf"),
            pytest.raises(JambaError, match="another process"),
            refine(plan, CHUNKS[:1], tmp_path / "out.gguf"),
        ):
            pass


def test_experts_without_tokens_and_a_tied_output(tmp_path: Path) -> None:
    shape = Shape(layers=2, hidden=256, ffn=256, experts=8, attention=(0,), vocab=64, tied=True)
    source = jamba_gguf.write(tmp_path / "tied.gguf", shape)
    chunks = [[3, 5, 9]]  # at most six of eight experts
    out = refined(source, tmp_path / "out.gguf", chunks=chunks)
    assert bool(torch.isfinite(logits(out, chunks)).all())


def test_a_weight_that_is_no_number_is_named(tmp_path: Path) -> None:
    source = jamba_gguf.write(tmp_path / "bad.gguf", Shape(layers=1, hidden=256, ffn=256, experts=1, attention=()))
    with GGUFFile.open(source) as file:
        info = file.tensors["blk.0.ffn_up.weight"]
        offset = info.offset
        path = file.path
    data = bytearray(path.read_bytes())
    with GGUFFile.open(source) as file:
        start = bytes(data).find(bytes(file.data("blk.0.ffn_up.weight")[:64]))
    assert start > 0 and offset >= 0
    data[start + 2 * 256 * 5 : start + 2 * 256 * 5 + 2] = b"\xc0\x7f"
    path.write_bytes(bytes(data))
    with pytest.raises(JambaError, match=r"not finite|row 5 holds a NaN") as caught:
        refined(source, tmp_path / "out.gguf")
    assert isinstance(caught.value, BadFileError) or "damaged" in str(caught.value)
    assert not (tmp_path / "out.gguf").exists()


def test_chunks_are_taken_evenly() -> None:
    chunks = [[i] * 10 for i in range(100)]
    assert [chunk[0] for chunk in spread(chunks, 50)] == [0, 20, 40, 60, 80]
    assert spread(chunks, 5) == [chunks[0]] and spread(chunks, 10_000) == chunks


def run(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["jamba", "quantize", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


def test_the_command_says_how_long_it_takes_and_goes_on_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The river report of the month says that the level rose.\n" * 40)
    target = tmp_path / "out.gguf"
    own, calls = feedback.refine, 0

    def stopped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return own(*arguments, **options)

    monkeypatch.setattr(feedback, "refine", stopped)
    command = (demo_model_path(), target, "--refine", "--calibration", text, "--refine-tokens", 128)
    assert run(*command, monkeypatch=monkeypatch) == 130
    said = capsys.readouterr().err
    assert "refining 36 tensors with 128 tokens: about" in said and "beside the output meanwhile" in said
    assert "the same command continues" in said
    assert not target.exists()
    assert run(*command, monkeypatch=monkeypatch) == 0
    assert "continuing at layer" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "jamba-home") == ["out.gguf", "text.txt"]


def test_an_imatrix_alone_serves_the_search(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "im.gguf"
    rng = np.random.default_rng(3)
    with GGUFFile.open(source) as file:
        sums = {
            name: ((rng.random((1, info.shape[-1]), np.float32) * 100), [100])
            for name, info in file.tensors.items()
            if len(info.shape) == 2 and info.format.name == "bf16" and name != "token_embd.weight"
        }
    write_imatrix(path, sums)
    for name, more in (("plain", ()), ("searched", ("--refine",))):
        assert run(source, tmp_path / name, "--imatrix", path, "--type", "q4_k_m", *more, monkeypatch=monkeypatch) == 0
    load = [load_gguf(tmp_path / name).layers[0].mixer.out_proj for name in ("plain", "searched")]
    from jambacli.kernels.reference import dequantize

    weights = dequantize(load_gguf(source).layers[0].mixer.out_proj)
    importance = torch.from_numpy(sums["blk.0.ssm_out.weight"][0][0])
    plain, searched = ((weights - dequantize(w)).square().mul(importance).sum() for w in load)
    assert searched < plain


def test_options_that_do_not_go_together(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "t.txt"
    text.write_text("words")
    for arguments, said in (
        (("--calibration", text), "--calibration has no effect alone; give --refine or --sensitivity too"),
        (("--refine-tokens", 100), "--refine-tokens has no effect alone; give --refine too"),
        (("--refine", "--calibration", tmp_path / "none.txt"), "cannot read"),
    ):
        assert run(source, tmp_path / "o.gguf", *arguments, monkeypatch=monkeypatch) != 0
        assert said in capsys.readouterr().err
