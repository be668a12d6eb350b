"""Fused query, key and value projections are read as the three that they consist of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jambacli.api import Jamba
from jambacli.errors import BadFileError, UnsupportedError
from jambacli.gguf import jamba_metadata as keys
from jambacli.gguf.reader import GGUFFile
from jambacli.gguf.summary import summarize
from jambacli.quantize.quantize_file import Request, plan, quantize
from jambacli.quantize.recipes import get_recipe
from jambacli.runtime.loader import load_gguf
from tests.support.rewritten import Stored, fused_qkv, rewritten
from tests.support.small_models import small_file

TOKENS = [5, 17, 33, 2, 9, 101, 64]


def fused(folder: Path, quant: str, experts: int = 4) -> tuple[Path, Path]:
    """A file, and the same with fused tensors."""
    source = small_file(folder, quant, experts)
    return source, rewritten(source, folder / "fused.gguf", fused_qkv)


@pytest.mark.parametrize("quant", ["f32", "bf16", "q8_0", "q4_0", "q6_k"])
def test_logits_are_those_of_the_separate_projections_to_the_bit(tmp_path: Path, quant: str) -> None:
    separate, together = fused(tmp_path, quant)
    with GGUFFile.open(together) as file:
        assert "blk.1.attn_qkv.weight" not in file.tensors
        assert file.tensors["blk.1.attn_v.weight"].shape == (128, 256)
    models = [Jamba.load(path) for path in (separate, together)]
    prefill = [model.logits(TOKENS) for model in models]
    decode = [model.logits(TOKENS, chunk=1) for model in models]
    assert torch.equal(*prefill)
    assert torch.equal(*decode)


def test_show_and_memory_plan_see_the_same_tensors(tmp_path: Path) -> None:
    separate, together = (summarize(path) for path in fused(tmp_path, "q8_0"))
    assert dict(together.tensors) == dict(separate.tensors)
    assert together.config == separate.config
    assert (together.params, together.weight_bytes, together.groups) == (
        separate.params,
        separate.weight_bytes,
        separate.groups,
    )
    assert not together.notes


def test_a_quantized_copy_has_separate_projections(tmp_path: Path) -> None:
    separate, together = fused(tmp_path, "f32")
    written = []
    for path in (separate, together):
        out = tmp_path / f"{path.stem}-q8_0.gguf"
        with GGUFFile.open(path) as source:
            quantize(plan(source, Request(get_recipe("q8_0"))), out)
        written.append(out.read_bytes())
    assert written[0] == written[1]


def changed(change: Callable[[Stored], Stored | None]) -> Callable[[list[Stored]], Iterable[Stored]]:
    def make(tensors: list[Stored]) -> Iterable[Stored]:
        for tensor in fused_qkv(tensors):
            if not tensor[0].endswith("attn_qkv.weight"):
                yield tensor
            elif (other := change(tensor)) is not None:
                yield other

    return make


def reshaped(*shape: int) -> Callable[[Stored], Stored]:
    def change(tensor: Stored) -> Stored:
        size = int(np.prod(shape)) * 4
        return tensor[0], "f32", shape, np.resize(tensor[3], size)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (reshaped(511, 256), r"attn_qkv.weight has shape \[511, 256\], but the metadata requires \[512, 256\]"),
        (reshaped(513, 256), r"has shape \[513, 256\]"),
        (reshaped(256, 512), r"has shape \[256, 512\]"),
        (reshaped(512), r"has shape \[512\]"),
        (reshaped(2, 256, 256), r"has shape \[2, 256, 256\]"),
        (lambda t: ("blk.0.attn_qkv.weight", *t[1:]), "no attention in this layer"),
        (lambda t: ("blk.400.attn_qkv.weight", *t[1:]), "there are tensors of layer 400"),
        (lambda t: None, "there is no blk.1.attn_q.weight"),
    ],
)
def test_a_fused_tensor_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[Stored], Stored | None], says: str
) -> None:
    path = rewritten(small_file(tmp_path, "f32"), tmp_path / "bad.gguf", changed(change))
    with pytest.raises(BadFileError, match=says):
        load_gguf(path)


def test_a_layer_with_fused_and_separate_projections_is_refused(tmp_path: Path) -> None:
    source = small_file(tmp_path, "f32")

    def both(tensors: list[Stored]) -> Iterable[Stored]:
        return [*tensors, *(t for t in fused_qkv(tensors) if "attn_qkv" in t[0])]

    with pytest.raises(BadFileError, match=r"attn_q.weight' is also part of a fused attn_qkv tensor"):
        GGUFFile.open(rewritten(source, tmp_path / "both.gguf", both))


@pytest.mark.parametrize("name", ["blk.1.attn_qkv.bias", "blk.1.attn_k.bias"])
def test_biases_are_refused_and_not_left_out(tmp_path: Path, name: str) -> None:
    source = small_file(tmp_path, "f32")
    bias = (name, "f32", (512,), np.zeros(2048, np.uint8))
    path = rewritten(source, tmp_path / "bias.gguf", lambda t: [*fused_qkv(t), bias])
    with pytest.raises(UnsupportedError, match="attention with biases is not supported"):
        load_gguf(path)


def test_missing_metadata_is_named(tmp_path: Path) -> None:
    _, together = fused(tmp_path, "f32")
    raw, key = together.read_bytes(), keys.EMBEDDING_LENGTH.encode()
    together.write_bytes(raw.replace(key, key[:-1] + b"X"))
    with pytest.raises(BadFileError, match=f"{keys.EMBEDDING_LENGTH} is missing"):
        GGUFFile.open(together)


def test_another_architecture_keeps_its_fused_tensors(tmp_path: Path) -> None:
    _, together = fused(tmp_path, "f32")
    raw = together.read_bytes()
    value: Any = (5).to_bytes(8, "little")
    together.write_bytes(raw.replace(value + b"jamba", value + b"llama", 1))
    with GGUFFile.open(together) as file:
        assert file.tensors["blk.1.attn_qkv.weight"].shape == (512, 256)
