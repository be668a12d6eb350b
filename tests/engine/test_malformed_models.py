"""Files that are laid out well and hold nonsense: weights that are no numbers, types that are no weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jambacli import Jamba
from jambacli.errors import JambaError, UnsupportedError
from jambacli.gguf.reader import GGUFFile
from jambacli.gguf.writer import GGUFWriter
from jambacli.kernels import cpu
from tests.support.isa_levels import runnable_levels
from tests.support.small_models import small_file


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_file(tmp_path_factory.mktemp("valid"), "f32")


def changed(source: Path, copy: Path, tensor: str, fmt: str, fill: bytes) -> Path:
    """The file again, with one tensor in another type, all its bytes ``fill``."""
    with GGUFFile.open(source) as file, GGUFWriter(copy) as writer:
        writer.copy_metadata(file.metadata)
        for name, info in file.tensors.items():
            writer.plan_tensor(name, info.shape, fmt if name == tensor else info.format)
        writer.begin()
        for name, info in file.tensors.items():
            size = int(np.prod(info.shape)) * {"f32": 4, "i32": 4, "i8": 1, "f64": 8}[fmt]
            writer.write_tensor(name, fill * size if name == tensor else file.data(name))
    return copy


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("tensor", ["output_norm.weight", "blk.0.ffn_down_exps.weight", "blk.1.attn_q.weight"])
def test_weights_that_are_no_numbers_end_in_one_line(
    valid: Path, tmp_path: Path, tensor: str, temperature: float
) -> None:
    tensor = tensor if tensor in GGUFFile.open(valid).tensors else tensor.replace("_exps", "")
    model = Jamba.load(changed(valid, tmp_path / "m.gguf", tensor, "f32", b"\xff"))
    with pytest.raises(JambaError, match="NaN or infinity"), model.session(store=False) as session:
        list(session.send("hello", temperature=temperature, max_tokens=3))


@pytest.mark.parametrize("level", runnable_levels(cpu.library()) or ["none"])
@pytest.mark.parametrize("quant", ["f32", "q8_0", "q4_k_m"])
def test_no_step_of_a_layer_hides_weights_that_are_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quant: str, level: str
) -> None:
    """Rounding to int8 and exponentials cut at their ends must leave NaN what it is, at every instruction set."""
    monkeypatch.setenv("JAMBA_CPU_ISA", level)
    cpu.set_isa(None)
    try:
        file = small_file(tmp_path, quant)
        names = (
            "output_norm.weight",
            "blk.0.attn_norm.weight",
            "blk.0.ssm_a",
            "blk.0.ssm_dt.bias",
            "blk.1.attn_q.weight",
        )
        for name in names[: None if quant == "f32" else -1]:
            model = Jamba.load(changed(file, tmp_path / f"{name}.gguf", name, "f32", b"\xff"))
            for kv_type in ("f16", "q8_0", "q5_1", "q4_0"):
                with (
                    pytest.raises(JambaError, match="NaN or infinity"),
                    model.session(store=False, kv_type=kv_type) as session,
                ):
                    list(session.send("hello", temperature=0, max_tokens=3))
    finally:
        monkeypatch.undo()
        cpu.set_isa(None)


@pytest.mark.parametrize("fmt", ["i8", "i32", "f64"])
@pytest.mark.parametrize("tensor", ["output_norm.weight", "token_embd.weight", "blk.1.attn_q.weight"])
def test_a_type_that_holds_no_weights_is_refused_by_name(valid: Path, tmp_path: Path, tensor: str, fmt: str) -> None:
    path = changed(valid, tmp_path / "m.gguf", tensor, fmt, b"\0")
    with pytest.raises(UnsupportedError, match=f"m.gguf: tensor .*{tensor}.* is stored as {fmt}"):
        Jamba.load(path)
