"""What ``jamba bench`` uses of a card, as far as it can be seen without one: names, rates, a model made elsewhere."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jambacli.evaluation import bench_gpu, synthetic_gpu
from jambacli.model.config import JambaConfig
from jambacli.runtime import device as devices

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts": 2,
    "mamba_d_state": 8,
    "mamba_dt_rank": 32,
    "vocab_size": 96,
}


def test_a_device_has_a_name_and_rates() -> None:
    here = torch.device("cpu")
    assert bench_gpu.device_name(here)
    copied, kind, flops = bench_gpu.card_rates(here, 1 << 20, 64)
    assert copied > 0
    assert kind == "bf16"
    assert flops > 0


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_a_synthetic_model_is_made_where_the_plan_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a card with room for all but one layer's experts; Triton's interpreter stands in for it."""
    from jambacli.runtime.cuda import load
    from jambacli.runtime.cuda.memory import card_sizes
    from jambacli.runtime.cuda.placement import place

    config, asked = JambaConfig.from_hf(SHAPE), {}

    def on_card(config: JambaConfig, tensors: Any, tensor: Any, device: torch.device, **options: Any) -> Any:
        asked.update(options)
        plan = place(config, card_sizes(tensors), 64, "f16", 8 << 30, cpu_experts=options["cpu_experts"])
        return load.put_on_card(config, tensor, torch.device("cpu"), plan)

    class Card:  # named like one; tensors for it are made here
        type = "cuda"

    made = synthetic_gpu.CardTensors
    here = torch.device("cpu")
    monkeypatch.setattr(synthetic_gpu, "CardTensors", lambda config, quant, device: made(config, quant, here))
    monkeypatch.setattr(devices, "find_device", lambda wanted: SimpleNamespace(device=Card(), note=None))
    monkeypatch.setattr(load, "load_on_card", on_card)
    model = bench_gpu.synthetic_on("cuda", config, "q8_0", ctx=64, cpu_experts=1)
    assert model.ops.name == "triton"
    assert asked["ctx"] == 64
    assert asked["cpu_experts"] == 1
    logits = model.forward(torch.tensor([3]), model.new_state(8))
    assert logits is not None
    assert logits.shape == (1, 96)
