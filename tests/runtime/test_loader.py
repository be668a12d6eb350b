"""Loading a model from a GGUF file: no copies, nothing missing, errors that name the tensor."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from jambacli.errors import BadFileError, JambaError, UnsupportedError
from jambacli.gguf.reader import GGUFFile
from jambacli.gguf.writer import GGUFWriter
from jambacli.kernels import reference_ops
from jambacli.runtime.loader import from_gguf, load_gguf
from tests.support.checkpoints import random_model
from tests.support.model_files import write
from tests.support.transformers_model import from_transformers


@pytest.fixture(scope="module")
def hf() -> Any:
    return random_model("moe4", seed=2)


@pytest.fixture(scope="module")
def path(hf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("loader") / "model.gguf", hf)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    out = model.forward(ids, model.new_state(len(ids), "f32"), logits="all")
    assert out is not None
    return out


def test_a_loaded_model_is_the_model(hf: Any, path: Path) -> None:
    ids = torch.arange(40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor does it warn of read-only arrays
        model = load_gguf(path, ops=reference_ops())
        gc.collect()  # the mapped file stays as long as the model
        got = logits(model, ids)
    assert torch.equal(got, logits(from_transformers(hf, reference_ops()), ids))


def test_weights_are_views_of_the_mapped_file(path: Path) -> None:
    with GGUFFile.open(path) as file:
        model = from_gguf(file)
        assert model.embedding.data.data_ptr() == file.data("token_embd.weight").ctypes.data
        mixer: Any = model.layers[0].mixer
        assert mixer.in_proj.data.data_ptr() == file.data("blk.0.ssm_in.weight").ctypes.data
        assert mixer.A.data_ptr() == file.data("blk.0.ssm_a").ctypes.data
        assert mixer.A.dtype == torch.float32


def test_a_tied_model_uses_its_embedding_twice(tmp_path: Path) -> None:
    model = load_gguf(write(tmp_path / "tied.gguf", random_model("tied", seed=2)))
    assert model.output is model.embedding


def test_small_tensors_in_half_precision_are_widened(hf: Any, path: Path, tmp_path: Path) -> None:
    """Foreign converters may store norms, routers or convolutions as f16."""
    copy = tmp_path / "f16.gguf"
    with GGUFFile.open(path) as file, GGUFWriter(copy) as writer:
        writer.copy_metadata(file.metadata)
        for name, info in file.tensors.items():
            writer.plan_tensor(name, info.shape, "f16")
        writer.begin()
        for name in file.tensors:
            writer.write_tensor(name, torch.from_numpy(file.data(name).copy()).view(torch.float32).half().numpy())
    ids = torch.arange(40)
    got, expected = logits(load_gguf(copy), ids), logits(load_gguf(path), ids)
    assert (got - expected).norm() / expected.norm() < 2e-2
    assert not torch.equal(got, expected)


def without(path: Path, copy: Path, left_out: str, **metadata: Any) -> Path:
    with GGUFFile.open(path) as file, GGUFWriter(copy) as writer:
        writer.copy_metadata(file.metadata, skip=[key.replace("__", ".") for key in metadata])
        for key, value in metadata.items():
            writer.add(key.replace("__", "."), value)
        kept = [name for name in file.tensors if name != left_out]
        for name in kept:
            writer.plan_tensor(name, file.tensors[name].shape, file.tensors[name].format)
        writer.begin()
        for name in kept:
            writer.write_tensor(name, file.data(name))
    return copy


@pytest.mark.parametrize(
    "name", ["blk.3.ssm_dt.bias", "blk.4.attn_k.weight", "output_norm.weight", "blk.1.ffn_up_exps.weight"]
)
def test_a_missing_tensor_is_named(path: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(BadFileError, match=rf"tensor {name} is missing"):
        load_gguf(without(path, tmp_path / "less.gguf", name))


def test_a_misshapen_tensor_is_named(path: Path, tmp_path: Path) -> None:
    bad = without(path, tmp_path / "bad.gguf", "", jamba__ssm__state_size=8)
    with pytest.raises(BadFileError, match=r"tensor blk\.0\.ssm_"):
        load_gguf(bad)


def test_other_files_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="llama"):
        load_gguf(without(path, tmp_path / "llama.gguf", "", general__architecture="llama"))
    with pytest.raises(JambaError, match="nowhere"):
        load_gguf(tmp_path / "nowhere.gguf")
