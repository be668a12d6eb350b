"""Files that are laid out well and hold nonsense: weights that are no numbers, types that are no weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jambacli import Jamba
from jambacli.errors import JambaError, UnsupportedError
from jambacli.gguf.reader import GGUFFile
from jambacli.gguf.writer import GGUFWriter
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


@pytest.mark.parametrize("fmt", ["i8", "i32", "f64"])
@pytest.mark.parametrize("tensor", ["output_norm.weight", "token_embd.weight", "blk.1.attn_q.weight"])
def test_a_type_that_holds_no_weights_is_refused_by_name(valid: Path, tmp_path: Path, tensor: str, fmt: str) -> None:
    path = changed(valid, tmp_path / "m.gguf", tensor, fmt, b"\0")
    with pytest.raises(UnsupportedError, match=f"m.gguf: tensor .*{tensor}.* is stored as {fmt}"):
        Jamba.load(path)
