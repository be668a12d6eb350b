"""The layout of a GGUF file: the size that is computed beforehand is the size that is written, split or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from jambacli.errors import JambaError
from jambacli.gguf.layout import TensorSpec, file_size, plan_parts
from jambacli.gguf.values import encode_value
from jambacli.gguf.writer import GGUFWriter
from quant.formats import get_format

METADATA = {"general.name": "a name", "tokenizer.ggml.tokens": ["one", "two", "three"], "jamba.block_count": 3}
TENSORS = [
    TensorSpec("a", (4, 8), get_format("f32")),
    TensorSpec("b", (3, 2, 32), get_format("q8_0")),
    TensorSpec("c", (5,), get_format("f32")),
    TensorSpec("d", (64, 32), get_format("q4_0"), part=4),
]


@pytest.mark.parametrize("split_max_size", [None, 150, 400, 1 << 20])
@pytest.mark.parametrize("alignment", [32, 256])
def test_the_computed_size_is_the_written_size(tmp_path: Path, alignment: int, split_max_size: int | None) -> None:
    metadata = {key: encode_value(key, value) for key, value in METADATA.items()}
    if alignment != 32:
        metadata = {"general.alignment": encode_value("", alignment, "u32"), **metadata}
    with GGUFWriter(tmp_path / "m.gguf", alignment=alignment, split_max_size=split_max_size) as writer:
        for key, value in METADATA.items():
            writer.add(key, value)
        for spec in TENSORS:
            writer.plan_tensor(spec.name, spec.shape, spec.format, spec.part)
        paths = writer.planned_paths()
        writer.begin()
        for spec in TENSORS:
            writer.write_tensor(spec.name, bytes(spec.nbytes))
    size = file_size(metadata, TENSORS, alignment=alignment, split_max_size=split_max_size)
    assert writer.paths == paths
    assert len(paths) == 5
    assert size == sum(path.stat().st_size for path in paths)


def test_too_many_parts_are_refused() -> None:
    many = (TensorSpec(f"t{i}", (8,), get_format("f32")) for i in range(65536))
    with pytest.raises(JambaError, match=r"splitting would make 65536 files; use a larger split_max_size"):
        plan_parts({}, many, split_max_size=1)
