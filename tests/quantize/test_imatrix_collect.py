"""Collecting importance matrices: sums as computed by hand, both formats, merging, and going on after an interruption."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from jambacli import Jamba, data
from jambacli.cli import main
from jambacli.errors import BadFileError, JambaError
from jambacli.gguf.writer import GGUFWriter
from jambacli.hub.demo import demo_model_path
from jambacli.kernels.observe import observe
from jambacli.quantize import imatrix_collect as c
from jambacli.quantize.imatrix import read_imatrix


@pytest.fixture(scope="module")
def demo() -> Jamba:
    return Jamba.load(demo_model_path())


@pytest.fixture(scope="module")
def runs(demo: Jamba) -> list[list[int]]:
    return c.chunks_of(demo.tokenizer, [data.held_out_text()], 64)[0][:6]


@pytest.fixture(scope="module")
def found(demo: Jamba, runs: list[list[int]]) -> c.Sums:
    return c.collect(demo.model, runs, datasets=["held out"])


def same(first: c.Sums, second: c.Sums, relative: float = 0.0) -> None:
    assert first.squares.keys() == second.squares.keys()
    for kind in ("squares", "sums", "counts"):
        for name, values in getattr(first, kind).items():
            other = getattr(second, kind)[name]
            assert np.allclose(values, other, rtol=relative, atol=relative * np.abs(values).max()), (kind, name)


def test_chunks_are_those_of_llama_imatrix(demo: Jamba) -> None:
    tokenizer = demo.tokenizer
    half = tokenizer.encode("a b c " * 20, "user")
    ids = [tokenizer.bos_id, *half, *half]
    chunks, total = c.chunks_of(tokenizer, ["a b c " * 20, "a b c " * 20], 16)
    assert total == len(ids)
    assert len(chunks) == len(ids) // 16
    for i, chunk in enumerate(chunks):
        assert chunk == [tokenizer.bos_id, *ids[16 * i + 1 : 16 * (i + 1)]]
    assert c.chunks_of(tokenizer, ["a b"], 512)[0] == [[tokenizer.bos_id, *tokenizer.encode("a b")]]
    with pytest.raises(JambaError, match="nothing to collect"):
        c.chunks_of(tokenizer, [""], 512)


def test_the_sums_are_those_of_the_inputs(demo: Jamba, runs: list[list[int]], found: c.Sums) -> None:
    inputs: dict[tuple[str, int], list[torch.Tensor]] = {}

    def observer(name: str, x: torch.Tensor, expert: int | None, shares: torch.Tensor | None) -> None:
        inputs.setdefault((name, expert or 0), []).append(x.double())

    model = replace(demo.model, ops=observe(demo.model.ops, c.weight_names(demo.model), observer), decoder=None)
    for run in runs:
        model.forward(torch.tensor(run), model.new_state(len(run)), logits="none")
    assert {name for name, _ in inputs} == set(found.squares)
    for (name, expert), rows in inputs.items():
        x = torch.cat(rows)
        assert np.allclose(found.squares[name][expert], x.square().sum(0), rtol=1e-5), name
        assert np.allclose(found.sums[name][expert], x.sum(0), rtol=1e-4, atol=1e-3), name
        assert found.counts[name][expert] == len(x)
    assert "token_embd.weight" not in found.squares
    assert "token_embd.weight" in c.collect(demo.model, runs[:1], output_matrix=True).squares


def test_both_formats_give_the_same_means(tmp_path: Path, found: c.Sums) -> None:
    c.write_gguf(found, tmp_path / "a.gguf")
    c.write_legacy(found, tmp_path / "a.dat")
    new, old = read_imatrix(tmp_path / "a.gguf"), read_imatrix(tmp_path / "a.dat")
    assert new.datasets == old.datasets == ("held out",)
    assert new.chunks == old.chunks == 6
    assert set(new.entries) == set(old.entries) == set(found.squares)
    for name, values in new.entries.items():
        assert np.allclose(values, old.entries[name], rtol=1e-6), name
        assert np.allclose(values, found.imatrix().entries[name], rtol=1e-6), name
    same(c.read_sums(tmp_path / "a.gguf"), found, 1e-6)


def test_merged_halves_are_the_whole(demo: Jamba, runs: list[list[int]], found: c.Sums, tmp_path: Path) -> None:
    halves = [c.collect(demo.model, part, datasets=[str(i)]) for i, part in enumerate((runs[:2], runs[2:]))]
    whole = c.merge(halves)
    same(whole, found, 1e-6)
    assert whole.chunks == 6
    assert whole.datasets == ["0", "1"]
    same(c.collect(demo.model, runs[2:], start=halves[0]), found, 1e-6)
    # As many values, but other experts.
    stacks = [c.Sums({"x": np.ones(shape)}, {}, {"x": np.ones(shape[0])}) for shape in ((4, 4), (2, 8), (1, 16))]
    with pytest.raises(JambaError, match="x has 4 experts of 4 columns in one imatrix and 2 experts of 8 columns"):
        c.merge(stacks[:2])
    assert (
        c.merge([stacks[2], stacks[0]]).counts["x"].tolist() == [2.0] * 4
    )  # an older file has one count for all experts
    foreign = c.Sums({"blk.0.ssm_in.weight": np.ones((1, 3))}, {}, {"blk.0.ssm_in.weight": np.ones(1)})
    with pytest.raises(JambaError, match=r"blk\.0\.ssm_in\.weight has 256 columns"):
        c.merge([found, foreign])
    with pytest.raises(JambaError, match="made for another model"):
        c.shapes_match(foreign, {"blk.0.ssm_in.weight": (1024, 256)}, "foreign.gguf")


def test_every_expert_counts_with_its_share_of_every_token(demo: Jamba, runs: list[list[int]], found: c.Sums) -> None:
    everyone = c.collect(demo.model, runs, all_experts=True)
    tokens = sum(map(len, runs))
    for name, counts in everyone.counts.items():
        if len(counts) > 1:
            assert counts.sum() == pytest.approx(len(counts) * tokens, rel=1e-4)
            assert counts.min() > 0
        else:
            assert np.array_equal(counts, found.counts[name])


def test_written_counts_are_whole_and_means_stay(tmp_path: Path) -> None:
    sums = c.Sums(
        {"x": np.array([[3.0, 6.0], [0.1, 0.2], [0.0, 0.0]])}, {}, {"x": np.array([1.5, 0.25, 0.0])}, ["d"], 1
    )
    c.write_gguf(sums, tmp_path / "a.gguf")
    assert c.read_sums(tmp_path / "a.gguf").counts["x"].tolist() == [2.0, 1.0, 0.0]
    means = read_imatrix(tmp_path / "a.gguf").entries["x"]
    assert np.allclose(means, [2.0, 4.0, 0.4, 0.8, 1.0, 1.0])


def test_an_entry_of_an_older_file_counts_for_its_own_chunks(tmp_path: Path) -> None:
    squares = {"x": np.full((1, 2), 96.0), "y": np.full((2, 2), 8.0)}
    sums = c.Sums(squares, {}, {"x": np.array([96.0]), "y": np.array([20.0, 8.0])}, ["d"], 3, 32)
    c.write_legacy(sums, tmp_path / "a.dat")
    found = c.read_sums(tmp_path / "a.dat", 32)
    assert {name: counts.tolist() for name, counts in found.counts.items()} == {"x": [96.0], "y": [32.0]}
    assert np.allclose(found.squares["y"], [[12.8, 12.8, 32.0, 32.0]])


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(
    demo: Jamba, runs: list[list[int]], found: c.Sums, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(c, "_SAVE_EVERY", -1.0)
    output, read = tmp_path / "a.gguf", []

    def progress(title: str, total: int | None, unit: str = "bytes") -> Any:
        import contextlib

        def advance(n: int) -> None:
            read.append(n)
            if len(read) == 5:
                raise KeyboardInterrupt

        return contextlib.nullcontext(advance)

    def go_on(**more: Any) -> c.Sums:
        return c.collect(demo.model, runs, output, identity="demo", datasets=["held out"], **more)

    with pytest.raises(KeyboardInterrupt):
        go_on(progress=progress)
    kept = tmp_path / ".a.gguf.partial"
    assert kept.is_file()
    read.clear()
    read += [0] * 5  # no second interrupt
    c.write_gguf(go_on(progress=progress), output)
    assert read[5] == sum(map(len, runs[:3]))  # chunks that had been read
    c.write_gguf(found, tmp_path / "whole.gguf")
    assert output.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    # Another model's, or a damaged one, is not continued.
    same(c.collect(demo.model, runs, output, identity="another"), found)
    kept.write_bytes(b"\x10" * 100)
    same(go_on(), found)
    # One without the number of its chunks is not counted twice.
    digest = c._digest("demo", runs, False, False, "f16")
    kept.write_bytes(save({"squares:blk.0.ssm_in.weight": np.ones((1, 256))}, {"digest": digest}))
    same(go_on(), found)
    c.finish(output)
    assert not kept.exists()


def test_inputs_that_are_not_finite_are_refused(demo: Jamba, runs: list[list[int]]) -> None:
    layer = demo.model.layers[0]
    broken = replace(
        demo.model, layers=(replace(layer, mixer_norm=layer.mixer_norm * float("nan")), *demo.model.layers[1:])
    )
    with pytest.raises(JambaError, match=r"inputs of blk\.0\.ssm_in\.weight are not finite"):
        c.collect(broken, runs[:1])


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"a": np.ones((1, 4))}, "no tensor's name ends in"),
        ({"a.in_sum2": np.ones((1, 4))}, "'a.counts' is missing"),
        ({"a.in_sum2": np.ones((1, 4)), "a.counts": np.ones((3, 1))}, "4 sums and 3 counts"),
        ({"a.in_sum2": -np.ones((1, 4)), "a.counts": np.ones((1, 1))}, "negative"),
        ({"a.in_sum2": np.full((1, 4), np.nan), "a.counts": np.ones((1, 1))}, "NaN"),
        ({"a.in_sum2": np.ones((1, 4)), "a.counts": np.ones((1, 1)), "a.in_sum": np.ones((1, 3))}, "3 sums"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, tensors: dict[str, np.ndarray], problem: str) -> None:
    path = tmp_path / "bad.gguf"
    with GGUFWriter(path) as writer:
        for name, values in tensors.items():
            writer.plan_tensor(name, values.shape, "f32")
        writer.begin()
        for name, values in tensors.items():
            writer.write_tensor(name, values.astype("<f4").tobytes())
        writer.finish()
    with pytest.raises(BadFileError, match=problem):
        c.read_sums(path)


def jamba(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["jamba", "imatrix", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    text, model = tmp_path / "text.txt", demo_model_path()
    text.write_text(data.held_out_text()[:6000])
    assert jamba(monkeypatch, model, text, "-o", "a.gguf", "-c", "64", "--chunks", "4", "--json") == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["tokens"] == 256
    assert "256 of " in err
    assert jamba(monkeypatch, model, text, "-o", "a.gguf") == 1
    assert "use --force" in capfd.readouterr().err
    assert jamba(monkeypatch, model, "-o", "b.dat", "-c", "64", "--chunks", "2") == 0
    assert jamba(monkeypatch, model, "--merge", "a.gguf", "--merge", "b.dat", "-o", "c.gguf", "-c", "64") == 0
    assert read_imatrix(tmp_path / "c.gguf").chunks == 6
    assert [p.name for p in sorted(tmp_path.iterdir()) if p.is_file()] == ["a.gguf", "b.dat", "c.gguf", "text.txt"]
    for path, content in (("empty.txt", b""), ("image.png", b"\x89PNG\r\n\x1a\n" + bytes(40))):
        (tmp_path / path).write_bytes(content)
    (tmp_path / "damaged.gguf").write_bytes((tmp_path / "a.gguf").read_bytes()[:-40])
    foreign = c.Sums({"blk.0.ssm_in.weight": np.ones((1, 3))}, {}, {"blk.0.ssm_in.weight": np.ones(1)}, ["d"], 1)
    c.write_gguf(foreign, tmp_path / "foreign.gguf")
    for arguments, code, problem in (
        ([model, "nowhere.txt", "-o", "d.gguf"], 1, "nowhere.txt"),
        ([model, text, "-o", "d.gguf", "-c", "1"], 2, "--ctx"),
        ([model, text, "-o", "d.gguf", "--format", "npz"], 2, "gguf, legacy"),
        ([model, "--merge", text, "-o", "d.gguf"], 1, "not an imatrix"),
        ([model, "--merge", model, "-o", "d.gguf"], 1, "not an imatrix"),
        (["no-such-model", text, "-o", "d.gguf"], 1, "no-such-model"),
        ([model, "empty.txt", "-o", "d.gguf"], 1, "empty"),
        ([model, "image.png", "-o", "d.gguf"], 1, "image.png"),
        ([model, text, "-o", "nowhere/d.gguf"], 1, "nowhere"),
        ([model, text, "--merge", "damaged.gguf", "-o", "d.gguf"], 1, "damaged.gguf"),
        ([model, text, "--merge", "foreign.gguf", "-o", "d.gguf", "-c", "64", "--chunks", "1"], 1, "foreign.gguf"),
        ([model, text, "--kv-type", "q9", "-o", "d.gguf"], 2, "q9"),
    ):
        capfd.readouterr()
        assert jamba(monkeypatch, *arguments) == code
        err = capfd.readouterr().err
        assert problem in err
        assert err.count("error:") == 1
        assert not (tmp_path / "d.gguf").exists()


def test_a_legacy_file_of_an_expert_without_tokens_has_ones(tmp_path: Path) -> None:
    sums = c.Sums({"x": np.array([[2.0, 4.0], [0.0, 0.0]])}, {}, {"x": np.array([2.0, 0.0])}, ["d"], 1, 512)
    c.write_legacy(sums, tmp_path / "a.dat")
    raw = (tmp_path / "a.dat").read_bytes()
    assert struct.unpack("<i", raw[:4]) == (1,)
    assert read_imatrix(tmp_path / "a.dat").entries["x"].tolist() == [1.0, 2.0, 1.0, 1.0]
    assert sums.few() == {"x": [(0, 2.0), (1, 0.0)]}
