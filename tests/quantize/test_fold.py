"""Folding: another file with the logits of the original, whose keys and values suffer less from few bits."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from jambacli.api import Jamba
from jambacli.errors import JambaError
from jambacli.gguf import jamba_metadata as keys
from jambacli.gguf.reader import GGUFFile
from jambacli.quantize import quantize_file
from jambacli.quantize.fold import RotatedHeads
from jambacli.quantize.imatrix import Imatrix
from jambacli.quantize.recipes import RecipeOptions, get_recipe, parse_tensor_type
from tests.support import small_models
from tests.support.rewritten import fused_qkv, rewritten
from tests.support.small_models import small_file

TOKENS = [5, 17, 33, 2, 9, 101, 64, 8, 77]
#: Heads and KV heads of hidden 256: grouped, one for all, one each, and heads whose size is no power of two.
LAYOUTS = {"grouped": (4, 2), "one": (4, 1), "each": (4, 4), "odd": (2, 1)}


def rotated(source: Path, target: Path, quant: str = "f32", **more: object) -> Path:
    with GGUFFile.open(source) as file:
        fold = RotatedHeads.of(keys.jamba_config(file.metadata, file.tensors))
        options = RecipeOptions(tensor_types=[parse_tensor_type(".=f32")] if quant == "f32" else [])
        recipe = get_recipe("f16" if quant == "f32" else quant)
        request = quantize_file.Request(recipe, options, fold=fold, **more)  # type: ignore[arg-type]
        return quantize_file.quantize(quantize_file.plan(file, request), target).paths[0]


@pytest.mark.parametrize("experts", [1, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rotated_file_has_the_logits_of_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, experts: int
) -> None:
    n_heads, n_kv_heads = LAYOUTS[layout]
    monkeypatch.setitem(small_models.SHAPE, "num_attention_heads", n_heads)
    monkeypatch.setitem(small_models.SHAPE, "num_key_value_heads", n_kv_heads)
    source = small_file(tmp_path, "f32", experts)
    target = rotated(source, tmp_path / "rotated.gguf")
    with GGUFFile.open(source) as before, GGUFFile.open(target) as after:
        assert after.metadata[keys.ROTATED_HEADS] is True
        assert list(after.tensors) == list(before.tensors)
        changed = {n for n in before.tensors if not np.array_equal(before.data(n), after.data(n))}
    assert changed == {f"blk.1.attn_{part}.weight" for part in ("q", "k", "v", "output")}
    first, second = (Jamba.load(path).logits(TOKENS) for path in (source, target))
    assert (first - second).norm() < 2e-5 * first.norm()


def test_fused_projections_are_rotated_too(tmp_path: Path) -> None:
    source = small_file(tmp_path, "f32")
    fused = rewritten(source, tmp_path / "fused.gguf", fused_qkv)
    one, two = (rotated(path, tmp_path / f"{path.stem}-rotated.gguf") for path in (source, fused))
    with GGUFFile.open(one) as a, GGUFFile.open(two) as b:
        assert all(np.array_equal(a.data(name), b.data(name)) for name in a.tensors)


def test_panels_that_end_within_a_head_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small_file(tmp_path, "bf16")
    whole = rotated(source, tmp_path / "whole.gguf", "q4_k_m")
    monkeypatch.setattr("jambacli.quantize.panels.QUANTIZE_PANEL_VALUES", 7 * 256)
    pieces = rotated(source, tmp_path / "pieces.gguf", "q4_k_m")
    assert whole.read_bytes() == pieces.read_bytes()


def test_quantized_files_are_not_rotated_unasked(tmp_path: Path) -> None:
    source = small_file(tmp_path, "q8_0")
    with pytest.raises(JambaError, match=r"attn_.* is q8_0 already"):
        rotated(source, tmp_path / "rotated.gguf", "q8_0")
    rotated(source, tmp_path / "rotated.gguf", "q8_0", allow_requantize=True)
    first, second = (Jamba.load(path).logits(TOKENS) for path in (source, tmp_path / "rotated.gguf"))
    assert (first - second).norm() < 0.05 * first.norm()


@pytest.mark.parametrize("head_dim", [32, 64, 96, 100, 128])
def test_the_matrix_is_orthogonal_and_mixes_whole_pieces(head_dim: int) -> None:
    matrix = RotatedHeads(head_dim).matrix()
    assert np.allclose(matrix @ matrix.T, np.eye(head_dim), atol=1e-12)
    piece = head_dim & -head_dim
    assert np.count_nonzero(matrix) == head_dim * piece
    assert np.allclose(np.abs(matrix[matrix != 0]), 1 / math.sqrt(piece))
    # A second product with Hadamard's matrix, as caches of few bits make, does not bring the channels back.
    from jambacli.kernels.reference import rotate

    again = rotate(torch.from_numpy(matrix.T.copy()).float())
    if piece > 4:
        assert again.abs().max() < 0.9


def test_the_importance_of_mixed_columns_is_their_mean(tmp_path: Path) -> None:
    fold = RotatedHeads(64)
    columns = np.arange(128, dtype=np.float32)
    assert np.array_equal(fold.importance("blk.1.attn_q.weight", columns), columns)
    mixed = fold.importance("blk.1.attn_output.weight", columns)
    assert np.array_equal(mixed, np.repeat(np.float32([31.5, 95.5]), 64))
    source = small_file(tmp_path, "f32")
    imatrix = Imatrix("some", {"blk.1.attn_output.weight": np.float32(np.arange(256))})
    weighted = rotated(source, tmp_path / "weighted.gguf", "q4_k_m", imatrix=imatrix)
    plain = rotated(source, tmp_path / "plain.gguf", "q4_k_m")
    with GGUFFile.open(weighted) as a, GGUFFile.open(plain) as b:
        assert not np.array_equal(a.data("blk.1.attn_output.weight"), b.data("blk.1.attn_output.weight"))
