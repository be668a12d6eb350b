"""Converted adapters give the logits of transformers with PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jambacli import Jamba
from jambacli.convert import lora, to_gguf
from tests.support.checkpoints import load_f32, make_checkpoint

peft = pytest.importorskip("peft", reason="peft is not installed")
pytestmark = [pytest.mark.peer, pytest.mark.slow]

IDS = torch.arange(24) * 7 % 500 + 3
ALL = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "in_proj",
    "x_proj",
    "dt_proj",
    "out_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
]
CASES: list[tuple[str, dict[str, Any]]] = [
    ("dense", {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}),
    ("dense", {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ALL, "rank_pattern": {"q_proj": 6}}),
    (
        "moe16",
        {
            "r": 4,
            "lora_alpha": 16,
            "target_modules": ["q_proj", "in_proj"],
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        },
    ),
]


@pytest.mark.parametrize(("shape", "options"), CASES)
def test_logits_are_those_of_peft(tmp_path: Path, shape: str, options: dict[str, Any]) -> None:
    """Merged by PEFT: transformers does not apply an adapter of dt_proj that is not merged."""
    folder = tmp_path / "model"
    make_checkpoint(folder, shape)
    torch.manual_seed(1)
    model = peft.get_peft_model(load_f32(folder), peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.05)
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = model.merge_and_unload()(IDS[None]).logits[0]
    to_gguf.convert(folder, tmp_path / "model.gguf", type="f32")
    lora.convert(tmp_path / "adapter", tmp_path / "adapter.gguf", base=tmp_path / "model.gguf")
    loaded = Jamba.load(tmp_path / "model.gguf", device="cpu", loras=[tmp_path / "adapter.gguf"])
    # Of the largest logit, about 8: the rounding of float32 grows with the values inside these random models.
    assert (loaded.logits(IDS.tolist()) - expected).abs().max() < 1e-4 * expected.abs().max()
