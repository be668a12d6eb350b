"""The GPU parts of ``jamba bench``, as far as they can run without a GPU: names, rates, a synthetic model."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jambacli.evaluation import bench_gpu, synthetic_gpu
from jambacli.model.config import JambaConfig
from jambacli.runtime import device as devices
from jambacli.runtime.options import DeviceOptions

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
    on_cpu = torch.device("cpu")
    assert bench_gpu.device_name(on_cpu)
    copied, kind, flops = bench_gpu.gpu_rates(on_cpu, 1 << 20, 64)
    assert copied > 0
    assert kind == "bf16"
    assert flops > 0


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_a_synthetic_model_follows_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU that holds all but one layer's experts, with Triton's interpreter instead of the GPU."""
    from jambacli.runtime.cuda import load
    from jambacli.runtime.cuda.memory import gpu_sizes
    from jambacli.runtime.cuda.placement import place

    config, asked = JambaConfig.from_hf(SHAPE), {}

    def on_gpu(
        config: JambaConfig, tensors: Any, tensor: Any, device: torch.device, options: DeviceOptions, **plan_for: Any
    ) -> Any:
        asked.update(plan_for)
        plan = place(config, gpu_sizes(tensors), 64, "f16", 8 << 30, cpu_experts=options.cpu_experts)
        return load.put_on_gpu(config, tensor, torch.device("cpu"), plan)

    class Gpu:  # the name of a GPU; its tensors are made on the CPU
        type = "cuda"

    made = synthetic_gpu.GpuTensors
    on_cpu = torch.device("cpu")
    monkeypatch.setattr(synthetic_gpu, "GpuTensors", lambda config, quant, device: made(config, quant, on_cpu))
    monkeypatch.setattr(devices, "find_device", lambda name: SimpleNamespace(device=Gpu(), note=None))
    monkeypatch.setattr(load, "load_on_gpu", on_gpu)
    model = bench_gpu.synthetic_on(DeviceOptions(device="cuda", cpu_experts=1), config, "q8_0", ctx=64)
    assert model.ops.name == "triton"
    assert asked["ctx"] == 64
    logits = model.forward(torch.tensor([3]), model.new_state(8))
    assert logits is not None
    assert logits.shape == (1, 96)
