"""Synthetic models: sizes of the published ones, the formats that quantize chooses, plausible weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from jambacli.errors import JambaError, UsageError
from jambacli.evaluation import synthetic
from jambacli.evaluation.synthetic import choices, shape_config, synthetic_bytes, synthetic_model, write_gguf
from jambacli.gguf.reader import GGUFFile
from jambacli.kernels import reference
from jambacli.runtime.loader import load_gguf
from quant.formats import FORMATS
from tests.support.checkpoints import BASE

SMALL = BASE | {"hidden_size": 256, "intermediate_size": 512, "mamba_dt_rank": 160, "num_hidden_layers": 5}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL))
    return path


def test_named_shapes_are_the_published_models() -> None:
    mini, large, three = (shape_config(name) for name in ("jamba-mini", "jamba-large", "jamba-3b"))
    assert mini.params() / 1e9 == pytest.approx(51.6, abs=0.05)
    assert mini.active_params() / 1e9 == pytest.approx(12.1, abs=0.2)
    assert [i for i, a in enumerate(mini.layer_is_attention) if a] == [4, 12, 20, 28]
    assert large.params() / 1e9 == pytest.approx(398, abs=1)
    assert three.params() / 1e9 == pytest.approx(3.0, abs=0.1)
    assert (three.d_inner, three.dt_rank, three.d_state, three.n_kv_heads, three.tied_embeddings) == (
        5120,
        160,
        16,
        1,
        True,
    )
    assert [i for i, a in enumerate(three.layer_is_attention) if a] == [7, 21]
    assert shape_config("MOE").params() / 1e9 == pytest.approx(0.93, abs=0.005)


def test_sizes_are_those_of_the_published_files() -> None:
    """Bytes of the weights against the file sizes on the hub (which hold a few MB of vocabulary more)."""
    mini = shape_config("jamba-mini")
    for quant, size in {
        "q8_0": 54.8,
        "q6_k": 42.3,
        "q5_k_m": 36.6,
        "q4_k_m": 31.2,
        "bf16": 103.2,
    }.items():
        assert synthetic_bytes(mini, quant) / 1e9 == pytest.approx(size, abs=0.11), quant
    assert synthetic_bytes(shape_config("jamba-3b"), "q4_k_m") / 1e9 == pytest.approx(1.86, abs=0.08)


def test_rows_of_160_fall_back_as_llama_quantize_does() -> None:
    chosen = choices(shape_config("jamba-3b"), "Q4_K_M")
    assert chosen["blk.0.ssm_dt.weight"].format == "q5_0"
    assert chosen["blk.0.ssm_in.weight"].format == "q4_k"
    assert chosen["blk.0.ssm_conv1d.weight"].format == "f32"
    assert chosen["token_embd.weight"].format == "q6_k"


@pytest.mark.parametrize("quant", ["f32", "bf16", "q8_0", "q4_0", "q4_k_m", "q2_k", "iq4_xs", "experts_int8"])
def test_a_synthetic_model_runs_and_is_repeatable(small: Path, quant: str) -> None:
    config = shape_config(str(small))
    ids = torch.arange(24)
    outputs = []
    for _ in range(2):
        model = synthetic_model(config, quant, seed=4)
        logits = model.forward(ids, model.new_state(24), logits="all")
        assert logits is not None
        assert torch.isfinite(logits).all()
        assert 0.3 < logits.std() < 3
        assert len(set(logits.argmax(-1).tolist())) > 12  # not the same for every token
        outputs.append(logits)
    assert torch.equal(*outputs)


def test_the_file_is_the_model(small: Path, tmp_path: Path) -> None:
    config = shape_config(str(small.parent))
    write_gguf(tmp_path / "m.gguf", config, "q4_k_m", seed=4)
    model, loaded = synthetic_model(config, "q4_k_m", seed=4), load_gguf(tmp_path / "m.gguf")
    assert loaded.config == dataclasses.replace(config, rms_eps=loaded.config.rms_eps)  # eps is a float32 there
    assert loaded.config.rms_eps == pytest.approx(config.rms_eps)
    ids = torch.arange(24)
    assert torch.equal(
        *(m.forward(ids, m.new_state(24), logits="all") for m in (model, loaded))  # type: ignore[arg-type]
    )
    with GGUFFile.open(tmp_path / "m.gguf") as file:
        assert sum(t.nbytes for t in file.tensors.values()) == synthetic_bytes(config, "q4_k_m")


def test_experts_are_used_evenly_enough(small: Path) -> None:
    """A benchmark of a few experts would not be one of the model."""
    model = synthetic_model(shape_config(str(small)), "q8_0")
    used: set[int] = set()

    def spy(x: torch.Tensor, router: torch.Tensor, *args: object) -> torch.Tensor:
        used.update((x @ router.T).topk(2).indices.flatten().tolist())
        return torch.zeros_like(x)

    model = dataclasses.replace(model, ops=dataclasses.replace(model.ops, experts=spy))
    model.forward(torch.arange(64), model.new_state(64))
    assert used == set(range(4))


def test_bad_shapes_and_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="'jamba-4b' is not one of jamba-mini, jamba-3b, jamba-large, moe or the path"):
        shape_config("jamba-4b")
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(JambaError, match=r"config\.json"):
        shape_config(str(tmp_path))
    with pytest.raises(UsageError, match="unknown type 'q9'"):
        choices(shape_config("moe"), "q9")
    with pytest.raises(UsageError, match="experts"):
        choices(shape_config("jamba-3b"), "experts_int8")
    monkeypatch.setattr(synthetic, "synthetic_bytes", lambda *_: 1 << 60)
    with pytest.raises(JambaError, match="free; choose a smaller shape or quant"):
        synthetic_model(shape_config("moe"), "q4_0")


READ_ONLY = ("mxfp4", "nvfp4", "q1_0", "q2_0", "tq1_0", "tq2_0")


@pytest.mark.parametrize("fmt", [f.name for f in FORMATS.values() if f.native or f.writable or f.name in READ_ONLY])
def test_random_weights_have_values_of_the_size_asked_for(fmt: str) -> None:
    w = synthetic.random_weight(fmt, (6, 512), size=0.3)
    values = reference.dequantize(w)
    assert values.shape == (6, 512)
    assert 0.03 < float(values.abs().max()) < 1
    assert torch.equal(w.data, synthetic.random_weight(fmt, (6, 512), size=0.3).data)


def test_formats_without_listed_factors_are_quantized_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(synthetic._FACTORS, "q5_1")
    values = reference.dequantize(synthetic.random_weight("q5_1", (2, 3, 64), size=0.3))
    assert values.shape == (2, 3, 64)
    assert 0.1 < float(values.abs().max()) < 1
    with pytest.raises(ValueError, match="random blocks of iq2_xxs cannot be made"):
        synthetic.random_weight("iq2_xxs", (2, 256))
