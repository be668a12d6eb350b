"""Adapters of PEFT as GGUF: what becomes of every layout, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jambacli.convert import lora
from jambacli.errors import BadFileError, JambaError, UnsupportedError
from jambacli.gguf.adapter import AdapterFile
from tests.support import jamba_gguf
from tests.support.adapters import write_config, write_peft

HIDDEN, FFN, RANK, EXPERTS = 64, 96, 4, 4
MODULES = {
    "model.layers.1.self_attn.q_proj": ("blk.1.attn_q.weight", HIDDEN, HIDDEN),
    "model.layers.1.self_attn.o_proj": ("blk.1.attn_output.weight", HIDDEN, HIDDEN),
    "model.layers.0.mamba.in_proj": ("blk.0.ssm_in.weight", 4 * HIDDEN, HIDDEN),
    "model.layers.0.mamba.x_proj": ("blk.0.ssm_x.weight", 40, 2 * HIDDEN),
    "model.layers.0.mamba.dt_proj": ("blk.0.ssm_dt.weight", 2 * HIDDEN, 8),
    "model.layers.0.mamba.out_proj": ("blk.0.ssm_out.weight", HIDDEN, 2 * HIDDEN),
    "model.layers.0.feed_forward.gate_proj": ("blk.0.ffn_gate.weight", FFN, HIDDEN),
    "model.layers.1.feed_forward.router": ("blk.1.ffn_gate_inp.weight", EXPERTS, HIDDEN),
    "lm_head": ("output.weight", 128, HIDDEN),
}


def pair(n_out: int, n_in: int, rank: int = RANK, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([n_out, n_in, rank, seed])
    return rng.standard_normal((rank, n_in), np.float32), rng.standard_normal((n_out, rank), np.float32)


def deltas(path: Path) -> dict[str, np.ndarray]:
    """What a converted adapter adds to each weight, float64."""
    found = {}
    with AdapterFile.open(path) as file:
        for name, infos in file.pairs.items():
            a, b = (file.file.data(i.name).view("<f4").reshape(i.shape).astype(np.float64) for i in infos)
            found[name] = b @ a * file.scale(name)
    return found


def converted(folder: Path, **options: Any) -> dict[str, np.ndarray]:
    out = folder.with_suffix(".gguf")
    lora.convert(folder, out, force=True, **options)
    return deltas(out)


def test_every_linear_layer_keeps_what_it_adds(tmp_path: Path) -> None:
    pairs = {module: pair(n_out, n_in) for module, (_, n_out, n_in) in MODULES.items()}
    found = converted(write_peft(tmp_path / "a", pairs))
    assert set(found) == {name for name, _, _ in MODULES.values()}
    for module, (a, b) in pairs.items():
        np.testing.assert_allclose(found[MODULES[module][0]], b.astype(np.float64) @ a * 2, rtol=1e-6, atol=1e-6)


def test_scales_of_modules_are_kept(tmp_path: Path) -> None:
    """rslora, ranks and alphas by pattern: the file has one alpha, so the rest is in the matrices."""
    q, k, v = (f"model.layers.1.self_attn.{p}_proj" for p in "qkv")
    pairs = {q: pair(64, 64), k: pair(64, 64, 2), v: pair(64, 64, 8)}
    options = {
        "rank_pattern": {"k_proj": 2, "v_proj": 8},
        "alpha_pattern": {r"^model\.layers\.\d+.self_attn.v_proj": 3},
    }
    alphas = {q: 8, k: 8, v: 3}
    for rslora in (False, True):
        found = converted(write_peft(tmp_path / f"a{rslora}", pairs, use_rslora=rslora, **options))
        for module, (a, b) in pairs.items():
            rank = len(a)
            scale = alphas[module] / (math.sqrt(rank) if rslora else rank)
            name = f"blk.1.attn_{module[-6]}.weight"
            np.testing.assert_allclose(found[name], b.astype(np.float64) @ a * scale, rtol=1e-5, atol=1e-5)


def stacks() -> tuple[dict[str, list[tuple[np.ndarray, np.ndarray]]], dict[str, np.ndarray]]:
    """Pairs of single experts, gate and up with the same a, and what they add."""
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"gate": [], "up": [], "down": []}
    for e in range(EXPERTS):
        a, b = pair(2 * FFN, HIDDEN, seed=e)
        pairs["gate"].append((a, b[:FFN]))
        pairs["up"].append((a, b[FFN:]))
        pairs["down"].append(pair(HIDDEN, FFN, seed=e))
    wanted = {k: np.stack([b.astype(np.float64) @ a * 2 for a, b in found]) for k, found in pairs.items()}
    return pairs, wanted


def stacked(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of experts as PEFT saves them for a stacked parameter: a [E * rank, in], b [out, rank * E]."""
    a = np.concatenate([a for a, _ in pairs])
    b = np.stack([b for _, b in pairs], axis=-1)
    return a, b.reshape(b.shape[0], -1)


@pytest.mark.parametrize("layout", ["modules", "older modules", "stacked", "stacked, older peft", "down alone"])
def test_experts_of_every_layout_give_the_same(tmp_path: Path, layout: str) -> None:
    pairs, wanted = stacks()
    experts, options = "model.layers.1.feed_forward.experts", {}
    modules: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if "modules" in layout:
        middle = "moe" if "older" in layout else "feed_forward"
        for kind, found in pairs.items():
            modules |= {f"model.layers.1.{middle}.experts.{e}.{kind}_proj": p for e, p in enumerate(found)}
    else:
        both = [(a, np.concatenate([g, u])) for (a, g), (_, u) in zip(pairs["gate"], pairs["up"], strict=True)]
        down = pairs["down"]
        if "older" in layout:
            both, down = ([(b.T, a.T) for a, b in found] for found in (both, down))
        modules = {f"{experts}.base_layer": stacked(both), experts: stacked(down)}
        options = {"target_parameters": ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"]}
        if layout == "down alone":
            modules, options = {experts: stacked(down)}, {"target_parameters": ["experts.down_proj"]}
            wanted = {"down": wanted["down"]}
    found = converted(write_peft(tmp_path / "a", modules, **options))
    assert set(found) == {f"blk.1.ffn_{kind}_exps.weight" for kind in wanted}
    for kind, values in wanted.items():
        np.testing.assert_allclose(found[f"blk.1.ffn_{kind}_exps.weight"], values, rtol=1e-5, atol=1e-5)


def test_experts_without_an_adapter_get_nothing(tmp_path: Path) -> None:
    one = {f"model.layers.1.feed_forward.experts.{e}.up_proj": pair(FFN, HIDDEN, r, e) for e, r in ((0, 4), (2, 2))}
    found = converted(write_peft(tmp_path / "a", one, rank_pattern={"experts.2.up_proj": 2}))[
        "blk.1.ffn_up_exps.weight"
    ]
    assert found.shape == (3, FFN, HIDDEN)
    assert not found[1].any()
    for e, r in ((0, 4), (2, 2)):
        a, b = one[f"model.layers.1.feed_forward.experts.{e}.up_proj"]
        np.testing.assert_allclose(found[e], b.astype(np.float64) @ a * 8 / r, rtol=1e-5, atol=1e-5)


def test_types_and_names(tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "my-adapter", {"model.layers.1.self_attn.q_proj": pair(64, 64)})
    for kind in ("auto", "f32", "f16", "bf16"):
        done = lora.convert(folder, tmp_path, type=kind, force=True, name=f"a-{kind}")
        assert done.path == tmp_path / f"a-{kind}.gguf"
        assert (done.type, done.pairs, done.ranks) == ("f32" if kind == "auto" else kind, 1, (RANK,))
        with AdapterFile.open(done.path) as file:
            assert {i.format.name for infos in file.pairs.values() for i in infos} == {done.type}
            assert file.name == f"a-{kind}"
    with pytest.raises(JambaError, match="exists"):
        lora.convert(folder, tmp_path / "a-f32.gguf")
    big = write_peft(
        tmp_path / "big", {"model.layers.1.self_attn.q_proj": (np.full((4, 64), 1e30, np.float32), pair(64, 64)[1])}
    )
    with pytest.raises(BadFileError, match="too large for f16"):
        lora.convert(big, tmp_path / "big.gguf", type="f16")
    assert not (tmp_path / "big.gguf").exists()


def test_sizes_are_checked_against_the_model(tmp_path: Path) -> None:
    model = jamba_gguf.write(
        tmp_path / "model.gguf", jamba_gguf.Shape(layers=2, hidden=64, ffn=96, experts=1, attention=(1,))
    )
    good = write_peft(tmp_path / "good", {"model.layers.1.self_attn.q_proj": pair(64, 64)})
    assert lora.convert(good, tmp_path / "good.gguf", base=model).pairs == 1
    other_size = write_peft(tmp_path / "size", {"model.layers.1.self_attn.q_proj": pair(64, 32)})
    other_layer = write_peft(tmp_path / "layer", {"model.layers.0.self_attn.q_proj": pair(64, 64)})
    for folder in (other_size, other_layer):
        with pytest.raises(BadFileError, match="another model"):
            lora.convert(folder, tmp_path / "bad.gguf", base=model)
    assert not (tmp_path / "bad.gguf").exists()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, "DoRA is not supported"),
    ({"bias": "all"}, "biases"),
    ({"lora_bias": True}, "lora_bias"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"peft_type": "LOHA"}, "peft_type"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
    ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
    ({"r": 0}, "'r' is 0"),
    ({"lora_alpha": "x"}, "lora_alpha"),
    ({"lora_alpha": float("inf")}, "lora_alpha"),
    ({"alpha_pattern": {"(a+)+$": 3}}, "pattern"),
    ({"alpha_pattern": [1]}, "alpha_pattern"),
    ({"rank_pattern": {"q_proj": -1}}, "'q_proj' is -1"),
]


@pytest.mark.parametrize(("config", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_is_more_than_lora_is_refused_by_name(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    folder = write_peft(tmp_path / "a", {"model.layers.1.self_attn.q_proj": pair(64, 64)}, **config)
    with pytest.raises(JambaError) as caught:
        lora.convert(folder, tmp_path / "a.gguf")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.gguf").exists()


def test_tensors_that_are_no_pairs_are_refused_by_name(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    plain, prefix = (
        dict(zip(("lora_A.weight", "lora_B.weight"), pair(64, 64), strict=True)),
        "base_model.model.model.layers.1.",
    )
    q = prefix + "self_attn.q_proj."
    cases: list[tuple[dict[str, np.ndarray], str]] = [
        ({q + "lora_A.weight": plain["lora_A.weight"]}, "its other matrix is missing"),
        ({q + "lora_magnitude_vector": np.zeros(64, np.float32)}, "DoRA"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": np.zeros((4, 64), np.float32)}, "token embedding"),
        ({prefix + "mamba.conv1d." + k: v for k, v in plain.items()}, "only the linear layers"),
        ({prefix + "self_attn.w_proj." + k: v for k, v in plain.items()}, "only the linear layers"),
        ({q + "lora_B.bias": np.zeros(64, np.float32)}, "biases"),
        (
            {q + "lora_A.weight": np.full((4, 64), np.nan, np.float32), q + "lora_B.weight": plain["lora_B.weight"]},
            "NaN",
        ),
        ({q + "lora_A.weight": np.zeros((3, 64), np.float32), q + "lora_B.weight": plain["lora_B.weight"]}, "rank"),
        ({q + k: v.astype(np.int32) for k, v in plain.items()}, "stored as I32"),
        ({}, "no LoRA matrices"),
    ]
    for i, (tensors, words) in enumerate(cases):
        folder = tmp_path / str(i)
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors")
        write_config(folder)
        with pytest.raises(JambaError, match=words):
            lora.convert(folder, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_directories_without_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(JambaError, match="no such directory"):
        lora.convert(tmp_path / "none", tmp_path / "a.gguf")
    with pytest.raises(JambaError, match="not a PEFT adapter"):
        lora.convert(tmp_path, tmp_path / "a.gguf")
    write_config(tmp_path)
    with pytest.raises(JambaError, match="is missing"):
        lora.convert(tmp_path, tmp_path / "a.gguf")
    (tmp_path / "adapter_model.bin").write_bytes(b"PK")
    with pytest.raises(UnsupportedError, match="pickle runs any code"):
        lora.convert(tmp_path, tmp_path / "a.gguf")
    (tmp_path / "adapter_config.json").write_text(json.dumps([1]))
    with pytest.raises(BadFileError):
        lora.convert(tmp_path, tmp_path / "a.gguf")
