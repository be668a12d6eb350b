"""``jamba quantize``: bytes are ggml's, metadata is llama-quantize's, and whatever goes wrong leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jambacli import cli
from jambacli.quantize import panels, quantize_file
from quant import native, quantize_blocks
from tests.support import jamba_gguf
from tests.support.ggml_reference import quantize_chunk
from tests.support.imatrix_files import write_imatrix
from tests.support.jamba_gguf import Shape
from tests.support.repository import REPO

# Small, yet with every kind of tensor; dt_rank 32 falls back under K-quants.
SMALL = Shape(layers=4, hidden=256, ffn=256, experts=4, attention=(2,), vocab=64)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jamba_gguf.write(tmp_path_factory.mktemp("source") / "small-bf16.gguf", SMALL, shuffled=True)


def run(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> int:
    """The command as a shell runs it; its exit code."""
    monkeypatch.setattr(sys, "argv", ["jamba", "quantize", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


def read(path: Path) -> dict[str, Any]:
    """Name to the gguf package's view of each tensor, in file order."""
    import gguf

    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def metadata(path: Path) -> dict[str, Any]:
    import gguf

    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


def values(path: Path) -> dict[str, np.ndarray]:
    """Name to float32 weights, dequantized by the gguf package."""
    import gguf

    return {name: gguf.quants.dequantize(t.data, t.tensor_type) for name, t in read(path).items()}


def expected(
    source: Path, target: Path, imatrix: dict[str, np.ndarray] | None = None
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The bytes of every tensor in ``target``, and what ggml makes of ``source`` in the same types."""
    originals, found, want = values(source), {}, {}
    for name, tensor in read(target).items():
        kind = tensor.tensor_type.name.lower()
        found[name] = tensor.data.tobytes()
        matrices = originals[name].reshape(-1, *originals[name].shape[-2:]) if originals[name].ndim > 1 else None
        if kind == "f32" or matrices is None:
            want[name] = originals[name].tobytes()
            continue
        columns = (imatrix or {}).get(name)
        rows = None if columns is None else columns.reshape(len(matrices), -1)
        want[name] = b"".join(
            quantize_chunk(m, kind, None if rows is None else rows[i]).tobytes() for i, m in enumerate(matrices)
        )
    return found, want


@pytest.mark.parametrize("kind", ["Q4_K_M", "q2_k", "Q3_K_M", "q8_0", "q4_0", "f16"])
def test_every_tensor_is_what_ggml_makes_of_it(
    source: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.gguf"
    assert run(source, target, "--type", kind, monkeypatch=monkeypatch) == 0
    found, want = expected(source, target)
    assert found == want
    assert len(found) == len(read(source))


@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_an_imatrix_weighs_each_expert_by_its_own_columns(
    source: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import struct

    rng = np.random.default_rng(5)
    means: dict[str, np.ndarray] = {}
    for name, dims in jamba_gguf.tensors(SMALL):
        if len(dims) > 1 and name.endswith("weight") and "conv" not in name:
            experts = dims[0] if len(dims) == 3 else 1
            means[name] = (rng.random((experts, dims[-1])) * 4).astype(np.float32) ** 2
    path = tmp_path / f"imatrix.{kind}"
    if kind == "gguf":
        write_imatrix(path, {name: (m * np.float32(8), [8] * len(m)) for name, m in means.items()})
    else:
        entries = b"".join(
            struct.pack("<i", len(n)) + n.encode() + struct.pack("<ii", 8, m.size) + (m * np.float32(8)).tobytes()
            for n, m in means.items()
        )
        path.write_bytes(struct.pack("<i", len(means)) + entries + struct.pack("<ii", 12, 4) + b"text")
    target = tmp_path / "out.gguf"
    assert run(source, target, "--type", "q4_k_m", "--imatrix", path, monkeypatch=monkeypatch) == 0
    found, want = expected(source, target, means)
    assert found == want
    keys = metadata(target)
    assert keys["quantize.imatrix.file"] == str(path)[:127]
    assert keys["quantize.imatrix.dataset"] == ("wiki.train" if kind == "gguf" else "text")
    assert keys["quantize.imatrix.entries_count"] == len(means)
    assert keys["quantize.imatrix.chunks_count"] == 12


def test_metadata_is_kept_and_says_what_was_done(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.gguf"
    assert run(source, target, "--type", "q5_k_s", monkeypatch=monkeypatch) == 0
    before, after = metadata(source), metadata(target)
    assert after["general.file_type"] == 16
    assert after["general.quantization_version"] == 2
    own = {"general.file_type", "general.quantization_version", "GGUF.kv_count"}
    assert {k: v for k, v in after.items() if k not in own} == {k: v for k, v in before.items() if k not in own}


@pytest.mark.parametrize("kind", ["q8_0", "experts_int8"])
def test_without_the_c_library_torch_writes_the_same_file(
    source: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "native.gguf", tmp_path / "torch.gguf"
    # The torch searches are slow on a CPU: the simpler formats will do here.
    arguments = ("--type", kind, "--tensor-type", "attn=q5_1")
    assert run(source, one, *arguments, monkeypatch=monkeypatch) == 0
    monkeypatch.setattr(native, "library", lambda: None)
    assert run(source, other, *arguments, monkeypatch=monkeypatch) == 0
    assert one.read_bytes() == other.read_bytes()


def test_panels_of_any_size_give_the_same_file(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pieces = tmp_path / "whole.gguf", tmp_path / "pieces.gguf"
    assert run(source, whole, "--type", "q4_k_m", monkeypatch=monkeypatch) == 0
    monkeypatch.setattr(panels, "QUANTIZE_PANEL_VALUES", 5000)
    assert run(source, pieces, "--type", "q4_k_m", "--threads", "3", monkeypatch=monkeypatch) == 0
    assert whole.read_bytes() == pieces.read_bytes()


def test_a_dry_run_foretells_the_file_and_writes_none(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (source, tmp_path / "out.gguf", "--type", "q4_k_m")
    assert run(*arguments, "--dry-run", "--json", monkeypatch=monkeypatch) == 0
    foretold = json.loads(capsys.readouterr().out)
    assert run(*arguments, "--dry-run", monkeypatch=monkeypatch) == 0
    table = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert run(*arguments, monkeypatch=monkeypatch) == 0
    assert foretold["bytes"] == (tmp_path / "out.gguf").stat().st_size
    made = read(tmp_path / "out.gguf")
    assert [(t["name"], t["to"]) for t in foretold["tensors"]] == [
        (name, t.tensor_type.name.lower()) for name, t in made.items()
    ]
    for name, tensor in made.items():
        assert re.search(rf"^{re.escape(name)} .* {tensor.tensor_type.name.lower()} ", table, re.MULTILINE)
    assert f"({foretold['bytes']} bytes)" in table


def test_the_report_measures_what_was_lost(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(panels, "QUANTIZE_PANEL_VALUES", 40_000)  # sums must run over panels
    target = tmp_path / "out.gguf"
    assert run(source, target, "--type", "q3_k_m", "--report", "--json", monkeypatch=monkeypatch) == 0
    told = {t["name"]: t for t in json.loads(capsys.readouterr().out)["tensors"]}
    before, after = values(source), values(target)
    assert told.keys() == {n for n, t in read(target).items() if t.tensor_type.name not in ("F32", "BF16")}
    for name, row in told.items():
        lost = after[name].astype(np.float64) - before[name]
        assert row["rms"] == pytest.approx(np.sqrt(np.mean(lost**2)), rel=1e-5)
        assert row["relative_rms"] == pytest.approx(row["rms"] / np.sqrt(np.mean(before[name] ** 2.0)), rel=1e-5)
        assert row["worst"] == pytest.approx(np.abs(lost).max(), rel=1e-6)
    assert run(source, target, "--force", "--type", "q3_k_m", "--report", monkeypatch=monkeypatch) == 0
    assert "all of them" in capsys.readouterr().out


def test_options_choose_types(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.gguf"
    options = ("--tensor-type", "ffn_down_exps=q6_k", "--output-type", "Q8_0", "--embedding-type", "f16", "--pure")
    assert run(source, target, "--type", "q4_0", *options, monkeypatch=monkeypatch) == 0
    kinds = {name: t.tensor_type.name for name, t in read(target).items()}
    assert kinds["output.weight"] == "Q8_0"
    assert kinds["token_embd.weight"] == "F16"
    assert kinds["blk.1.ffn_down_exps.weight"] == "Q6_K"
    assert kinds["blk.0.ffn_down.weight"] == "Q4_0"


def test_what_has_no_effect_is_said(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, "--dry-run", "--tensor-type", "shexp=q8_0", monkeypatch=monkeypatch) == 0
    assert "--tensor-type shexp=q8_0 finds no tensor" in capsys.readouterr().err
    assert run(source, "--dry-run", "--type", "q4_k_m", monkeypatch=monkeypatch) == 0
    assert "rows of 32 do not fit q4_k: blk.0.ssm_dt.weight and 2 more will be q5_0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "kind", "made"),
    [
        ("m-bf16.gguf", "q4_k_m", "m-Q4_K_M.gguf"),
        ("m.F16.gguf", "q8_0", "m-Q8_0.gguf"),
        ("m.gguf", "experts_q8_0", "m-experts_q8_0.gguf"),
        ("m-BF16-00001-of-00003.gguf", "q6_k", "m-Q6_K.gguf"),
    ],
)
def test_an_output_without_a_name_is_named_after_the_type(name: str, kind: str, made: str) -> None:
    from jambacli.quantize.recipes import get_recipe

    assert quantize_file.default_output(Path("x") / name, get_recipe(kind)) == Path("x") / made


def test_parts_hold_what_one_file_would(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, split, kept = tmp_path / "whole.gguf", tmp_path / "split.gguf", tmp_path / "kept.gguf"
    assert run(source, whole, "--type", "bf16", monkeypatch=monkeypatch) == 0
    assert run(whole, split, "--type", "bf16", "--split-max-size", "2M", monkeypatch=monkeypatch) == 0
    parts = sorted(tmp_path.glob("split-*-of-*.gguf"))
    assert len(parts) > 2
    assert run(parts[1], kept, "--type", "q8_0", "--keep-split", monkeypatch=monkeypatch) == 0
    assert run(whole, tmp_path / "one.gguf", "--type", "q8_0", monkeypatch=monkeypatch) == 0
    assert run(parts[0], tmp_path / "joined.gguf", "--type", "q8_0", monkeypatch=monkeypatch) == 0
    assert (tmp_path / "joined.gguf").read_bytes() == (tmp_path / "one.gguf").read_bytes()
    kept_parts = sorted(tmp_path.glob("kept-*-of-*.gguf"))
    assert [list(read(p)) for p in kept_parts] == [list(read(p)) for p in parts]
    together = {name: t.data.tobytes() for p in kept_parts for name, t in read(p).items()}
    assert together == {name: t.data.tobytes() for name, t in read(tmp_path / "one.gguf").items()}


def test_experts_q8_0_leaves_the_rest_in_bf16(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.gguf"
    assert run(source, target, "--type", "experts_q8_0", monkeypatch=monkeypatch) == 0
    found, want = expected(source, target)
    assert found == want
    kinds = {name: t.tensor_type.name for name, t in read(target).items()}
    assert {kinds[n] for n in kinds if "_exps" in n} == {"Q8_0"}
    assert kinds["blk.0.ssm_in.weight"] == "BF16"


def test_experts_int8_is_signed_bytes_with_a_scale_a_row(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.gguf"
    monkeypatch.setattr(panels, "QUANTIZE_PANEL_VALUES", 30_000)
    assert run(source, target, "--type", "experts_int8", "--report", "--json", monkeypatch=monkeypatch) == 0
    told = {t["name"]: t for t in json.loads(capsys.readouterr().out)["tensors"]}
    before, made = values(source), read(target)
    stacks = [name for name in before if "_exps" in name]
    assert len(stacks) == 6
    assert set(made) == set(before) | {name.replace("weight", "row_scale") for name in stacks}
    assert metadata(target)["jamba.experts.quantization"] == "experts_int8"
    for name, tensor in made.items():
        if name in stacks:
            scale = made[name.replace("weight", "row_scale")].data
            assert (tensor.tensor_type.name, scale.dtype, scale.shape) == ("I8", np.float32, tensor.data.shape[:-1])
            back = tensor.data.astype(np.float32) * scale[..., None]
            # Half a step, give or take the rounding of a float division by the step.
            assert (np.abs(back - before[name]) <= scale[..., None] * 0.50002).all()
            np.testing.assert_allclose(scale * 127, np.abs(before[name]).max(-1), rtol=1e-6)
            assert told[name]["worst"] == pytest.approx(np.abs(back - before[name]).max(), rel=1e-6)
        elif not name.endswith("row_scale"):
            assert tensor.data.tobytes() == read(source)[name].data.tobytes()
    count = sum(before[name].size for name in stacks)
    rows = sum(before[name].size // before[name].shape[-1] for name in stacks)
    assert target.stat().st_size - source.stat().st_size == pytest.approx(4 * rows - count, abs=2048)


def test_experts_int8_can_be_undone_to_other_types_and_is_read_with_its_scales(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from jambacli.gguf.reader import GGUFFile

    int8, again, q8 = tmp_path / "int8.gguf", tmp_path / "again.gguf", tmp_path / "q8.gguf"
    assert run(source, int8, "--type", "experts_int8", monkeypatch=monkeypatch) == 0
    assert run(int8, again, "--type", "experts_int8", monkeypatch=monkeypatch) == 0
    assert int8.read_bytes() == again.read_bytes()
    assert run(int8, q8, "--type", "q8_0", monkeypatch=monkeypatch) == 1
    assert "is i8 already" in capsys.readouterr().err
    assert run(int8, q8, "--type", "q8_0", "--allow-requantize", monkeypatch=monkeypatch) == 0
    assert list(read(q8)) == sorted(read(q8), key=lambda n: (int(n.split(".")[1]) if n[:4] == "blk." else -1, n))
    assert "jamba.experts.quantization" not in metadata(q8)
    name = "blk.1.ffn_up_exps.weight"
    with GGUFFile.open(int8) as file:
        stack = file.qtensor(name)
        assert stack.scale is not None
        decoded = stack.data.view(dtype=torch.int8).view(stack.shape).numpy() * stack.scale.numpy()[..., None]
    want = quantize_chunk(decoded.astype(np.float32).reshape(-1, 256), "q8_0").tobytes()
    assert read(q8)[name].data.tobytes() == want


def test_quantizing_again_needs_to_be_asked_for(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    once, twice = tmp_path / "once.gguf", tmp_path / "twice.gguf"
    assert run(source, once, "--type", "q8_0", monkeypatch=monkeypatch) == 0
    assert run(once, twice, "--type", "q4_0", monkeypatch=monkeypatch) == 1
    assert "is q8_0 already" in capsys.readouterr().err
    assert not twice.exists()
    assert run(once, twice, "--type", "q4_0", "--allow-requantize", monkeypatch=monkeypatch) == 0
    found, want = expected(once, twice)
    assert found == want


def broken(tmp_path: Path, name: str, index: tuple[int, ...], value: float, kind: str = "f32") -> Path:
    """The small model with one weight replaced."""
    import gguf

    path = jamba_gguf.write(tmp_path / "in" / "broken.gguf", SMALL, kind=kind)
    with path.open("r+b") as file:
        tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == name)
        flat = int(np.ravel_multi_index(index, tuple(int(n) for n in reversed(tensor.shape))))
        size = 4 if tensor.tensor_type.name == "F32" else 2
        raw = np.float32(value).tobytes() if size == 4 else np.float32(value).tobytes()[2:]
        file.seek(tensor.data_offset + size * flat)
        file.write(raw)
    return path


@pytest.mark.parametrize(
    ("name", "index", "value", "kind", "told"),
    [
        ("blk.1.ffn_up_exps.weight", (2, 17, 5), np.nan, "bf16", "row 17 of expert 2 holds a NaN or an infinity"),
        ("blk.0.ssm_in.weight", (1003, 0), -np.inf, "f32", "row 1003 holds a NaN or an infinity"),
        ("blk.0.attn_norm.weight", (255,), np.inf, "f32", "it holds a NaN or an infinity"),
        ("blk.2.attn_q.weight", (9, 9), 3e38, "f32", "row 9 has weights too large for q4_k"),
    ],
)
def test_weights_that_cannot_be_quantized_are_named(
    tmp_path: Path,
    name: str,
    index: tuple[int, ...],
    value: float,
    kind: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    path = broken(tmp_path, name, index, value, kind)
    monkeypatch.setattr(panels, "QUANTIZE_PANEL_VALUES", 4096)
    assert run(path, tmp_path / "out" / "out.gguf", "--type", "q4_k_m", monkeypatch=monkeypatch) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {path}: tensor {name}: {told}")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_imatrix_of_another_model_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_imatrix(tmp_path / "i.gguf", {"blk.0.ssm_in.weight": (np.ones((1, 512), np.float32), [1])})
    assert run(source, tmp_path / "out.gguf", "--imatrix", path, monkeypatch=monkeypatch) == 1
    assert (
        "made for another model: it has 512 column weights for blk.0.ssm_in.weight, which has 256"
        in capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_that_the_imatrix_lacks_are_mentioned(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_imatrix(tmp_path / "i.gguf", {"blk.0.ssm_in.weight": (np.ones((1, 256), np.float32), [1])})
    assert run(source, "--dry-run", "--imatrix", path, monkeypatch=monkeypatch) == 0
    assert "the imatrix has no entry for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--type", "q4_k_xl"], 2, "--type: unknown type 'q4_k_xl'; known: "),
        (["--tensor-type", "attn_v"], 2, "--tensor-type: 'attn_v' is not PATTERN=TYPE"),
        (["--output-type", "iq2_xs"], 2, "--output-type: cannot write iq2_xs"),
        (["--keep-split", "--split-max-size", "1G"], 2, "--keep-split and --split-max-size contradict"),
        (["--split-max-size", "much"], 2, "--split-max-size 'much' is not a size"),
        (["--device", "abacus"], 2, "--device 'abacus' is not a device"),
        (["--imatrix", "absent.dat"], 1, "cannot read absent.dat"),
        (["--embedding-type", "q4_k", "--type", "q4_0"], 0, ""),
    ],
)
def test_mistakes_are_one_line(
    source: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(source, tmp_path / "out.gguf", *arguments, monkeypatch=monkeypatch) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == (code != 0)
    assert told in "".join(errors)
    assert code == 0 or list(tmp_path.iterdir()) == []


def test_a_row_that_a_demanded_type_does_not_divide_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = Shape(layers=2, hidden=96, ffn=96, experts=1, attention=(1,), heads=3, kv_heads=3, vocab=16)
    path = jamba_gguf.write(tmp_path / "odd.gguf", shape)
    assert run(path, tmp_path / "out.gguf", "--embedding-type", "q6_k", monkeypatch=monkeypatch) == 1
    assert "token_embd.weight: a row of 96 values is not a multiple of q6_k's block of 256" in capsys.readouterr().err


def test_files_in_the_way_are_safe(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.gguf"
    target.write_bytes(b"precious")
    assert run(source, target, monkeypatch=monkeypatch) == 1
    assert "already exists" in capsys.readouterr().err
    before = source.read_bytes()
    assert run(source, source, "--force", monkeypatch=monkeypatch) == 2
    assert "is the input" in capsys.readouterr().err
    assert source.read_bytes() == before
    assert target.read_bytes() == b"precious"
    assert run(source, target, "--force", "--type", "q8_0", monkeypatch=monkeypatch) == 0
    assert read(target)["output.weight"].tensor_type.name == "Q8_0"


def test_other_files_are_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, monkeypatch=monkeypatch) == 2
    assert "is a directory; convert a checkpoint to a .gguf" in capsys.readouterr().err
    (tmp_path / "cut.gguf").write_bytes(source.read_bytes()[:-5000])
    assert run(tmp_path / "cut.gguf", tmp_path / "out.gguf", monkeypatch=monkeypatch) == 1
    assert f"error: {tmp_path / 'cut.gguf'}: " in capsys.readouterr().err
    assert not (tmp_path / "out.gguf").exists()


def test_a_pulled_model_is_quantized_into_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("jamba:tiny", "--type", "q8_0", "--dry-run", monkeypatch=monkeypatch) == 0
    assert run("jamba:tiny", "--type", "q8_0", monkeypatch=monkeypatch) == 0
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["tiny-jamba-Q8_0.gguf"]
    assert run("jamba:nosuch", monkeypatch=monkeypatch) == 1
    assert "unknown model 'jamba:nosuch'" in capsys.readouterr().err


def test_an_interrupt_leaves_what_was_there(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.gguf"
    target.write_bytes(b"precious")
    quantize, calls = quantize_blocks.quantize, 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return quantize(*arguments, **options)

    monkeypatch.setattr(quantize_blocks, "quantize", interrupted)
    assert run(source, target, "--force", monkeypatch=monkeypatch) == 130
    assert f"warning: interrupted; {target} was not written" in capsys.readouterr().err
    assert target.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [target]


def small_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


def test_a_full_disk_is_one_line_and_nothing_else(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jambacli", "quantize", str(source), str(tmp_path / "out.gguf")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, preexec_fn=small_disk, check=False)
    assert done.returncode == 1
    assert f"error: cannot write {tmp_path / 'out.gguf'}: File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_midway_is_one_line_and_nothing_else(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import errno

    pwrite, written = os.pwrite, 0

    def filling(fd: int, data: Any, offset: int) -> int:
        nonlocal written
        written += len(data)
        if written > 500_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", filling)
    assert run(source, tmp_path / "out.gguf", monkeypatch=monkeypatch) == 1
    errors = capsys.readouterr().err.splitlines()
    assert f"error: cannot write {tmp_path / 'out.gguf'}: No space left on device; nothing was left behind" in errors
    assert list(tmp_path.iterdir()) == []


def test_torch_is_not_imported(source: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from jambacli import cli; sys.argv[1:] = ['quantize', *sys.argv[1:]]\n"
        "try: cli.main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "out.gguf"), "--type", "q8_0"]
    subprocess.run(command, cwd=REPO, check=True, capture_output=True)
    assert (tmp_path / "out.gguf").exists()
