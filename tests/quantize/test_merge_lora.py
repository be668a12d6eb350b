"""Adapters added to a model's weights, in files of every kind of type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import quant
from jambacli.errors import JambaError
from jambacli.gguf.reader import GGUFFile
from jambacli.quantize import quantize_file, recipes
from jambacli.quantize.merge_lora import merge
from quant.rows import Rows
from tests.support import jamba_gguf
from tests.support.adapters import is_linear, random_pairs, write_adapter

SHAPE = jamba_gguf.Shape(layers=2, hidden=256, ffn=256, experts=4, attention=(1,), moe=(1,), vocab=96)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """A model in f32, an adapter of all its linear layers, and what that adds at a scale of 1."""
    folder = tmp_path_factory.mktemp("merge")
    model = jamba_gguf.write(folder / "model.gguf", SHAPE, kind="f32")
    with GGUFFile.open(model) as file:
        shapes = {name: tuple(info.shape) for name, info in file.tensors.items() if is_linear(name)}
    pairs = random_pairs(shapes, rank=4)
    return (
        model,
        write_adapter(folder / "lora.gguf", pairs),
        {n: b.astype(np.float64) @ a * 2 for n, (a, b) in pairs.items()},
    )


def values(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file as float32."""
    with GGUFFile.open(path) as file:
        return {
            name: quant.dequantize(Rows(file.data(name), info.format, info.shape[-1])).reshape(info.shape)
            for name, info in file.tensors.items()
        }


def test_a_float_model_gets_the_exact_sum(files: tuple[Path, Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    model, lora, added = files
    out = tmp_path / "out.gguf"
    done = merge_file(model, [f"{lora}:0.5"], out)
    assert done.merged == len(added)
    before, after = values(model), values(out)
    assert list(before) == list(after)
    for name, old in before.items():
        exact = old + 0.5 * added[name] if name in added else old
        np.testing.assert_allclose(after[name], exact, rtol=1e-6, atol=1e-6)
        assert name in added or np.array_equal(after[name], old)


def merge_file(model: Path, loras: list[str], out: Path, **options: object):  # type: ignore[no-untyped-def]
    with GGUFFile.open(model) as file:
        return merge(file, loras, out, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bf16", "q8_0", "q4_k_m", "iq4_xs"])
def test_quantized_models_keep_their_types(
    files: tuple[Path, Path, dict[str, np.ndarray]], tmp_path: Path, kind: str
) -> None:
    """The sum is as far from the exact one as its type's own rounding; other weights keep their bytes."""
    model, lora, added = files
    base, out = tmp_path / "base.gguf", tmp_path / "out.gguf"
    with GGUFFile.open(model) as file:
        quantize_file.quantize(quantize_file.plan(file, quantize_file.Request(recipes.get_recipe(kind))), base)
    merge_file(base, [str(lora)], out)
    before, after = values(base), values(out)
    with GGUFFile.open(base) as a, GGUFFile.open(out) as b:
        assert {n: i.format.name for n, i in a.tensors.items()} == {n: i.format.name for n, i in b.tensors.items()}
        for name in set(a.tensors) - set(added):
            assert np.array_equal(a.data(name), b.data(name))
    most = {"bf16": 0.004, "q8_0": 0.01, "q4_k_m": 0.12, "iq4_xs": 0.12}[kind]
    for name, delta in added.items():
        exact = before[name] + delta
        error = np.linalg.norm(after[name] - exact) / np.linalg.norm(exact)
        assert error < most, name


def test_the_sum_can_be_quantized_at_once(files: tuple[Path, Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    """The bytes are those of the merged float model, quantized."""
    model, lora, _ = files
    whole, then, once = tmp_path / "whole.gguf", tmp_path / "then.gguf", tmp_path / "once.gguf"
    recipe = recipes.get_recipe("q4_k_m")
    merge_file(model, [str(lora)], whole)
    with GGUFFile.open(whole) as file:
        quantize_file.quantize(quantize_file.plan(file, quantize_file.Request(recipe)), then)
    merge_file(model, [str(lora)], once, recipe=recipe)
    with GGUFFile.open(then) as a, GGUFFile.open(once) as b:
        assert list(a.tensors) == list(b.tensors)
        for name in a.tensors:
            assert np.array_equal(a.data(name), b.data(name)), name


def test_nothing_is_left_after_an_error(files: tuple[Path, Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    model, lora, _ = files
    out = tmp_path / "out.gguf"
    huge = write_adapter(tmp_path / "huge", {"blk.1.attn_q.weight": (np.full((1, 256), 1e30, np.float32),) * 2})
    wrong = write_adapter(
        tmp_path / "wrong",
        {"blk.1.attn_q.weight": (np.full((1, 256), 3e38, np.float32), np.full((256, 1), 3e38, np.float32))},
    )
    for bad in (huge, wrong, tmp_path / "none.gguf"):
        with pytest.raises(JambaError):
            merge_file(model, [str(bad)], out)
    assert [p.name for p in tmp_path.iterdir() if "out" in p.name] == []
    out.write_bytes(b"mine")
    with pytest.raises(JambaError, match="exists"):
        merge_file(model, [str(lora)], out)
    assert out.read_bytes() == b"mine"
