"""A model of usual proportions runs on a simulated GPU that has exactly the memory that its plan says."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from jambacli.evaluation.synthetic import choices
from jambacli.kernels.triton import repack
from jambacli.model.config import JambaConfig
from jambacli.runtime.cuda import memory
from jambacli.runtime.cuda.memory import gpu_sizes
from jambacli.runtime.cuda.placement import place
from quant.formats import FORMATS, QTensor

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install 'jambacli[cuda]'", allow_module_level=True)

from tests.support.simulated_gpu import simulated_gpu

# One block of Mini at an eighth of its width.
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1792,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "num_experts": 4,
    "vocab_size": 8192,
}
CTX = 8192


def _tensors(config: JambaConfig, quant: str) -> dict[str, QTensor]:
    """Tensors of zeros, which take no physical memory."""
    found = {}
    for name, choice in choices(config, quant).items():
        form, shape = FORMATS[choice.format], choice.tensor.shape
        nbytes = torch.Size(shape).numel() // form.block * form.block_bytes
        scale = torch.ones(shape[:-1]) if choice.format == "i8" else None
        found[name] = QTensor(torch.from_numpy(np.zeros(nbytes, np.uint8)), form, shape, scale)
    return found


def _to_two(x: torch.Tensor, minlength: int) -> torch.Tensor:
    """The worst case: the router sends every token to the same two experts."""
    counts = torch.zeros(minlength, dtype=torch.int64)
    counts[0], counts[1] = len(x) // 2, len(x) - len(x) // 2
    return counts


@pytest.mark.parametrize(
    ("quant", "on_host", "cpu_kv"),
    [
        ("q4_k_m", 2, False),
        pytest.param("q8_0", 0, False, marks=pytest.mark.slow),
        pytest.param("experts_int8", 4, True, marks=pytest.mark.slow),
    ],
)
def test_a_plan_is_enough(quant: str, on_host: int, cpu_kv: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from jambacli.runtime.cuda.load import put_on_gpu

    config = JambaConfig.from_hf(SHAPE)
    tensors = _tensors(config, quant)
    # Not simulated are CUDA's libraries and checkpoints; REPACK_VALUES does not shrink with the model.
    for name in ("_LIBRARY_BYTES", "CHECKPOINT_BYTES"):
        monkeypatch.setattr(memory, name, 0)
    for module in (memory, repack):
        monkeypatch.setattr(module, "REPACK_VALUES", 1 << 22)
    sizes = gpu_sizes({name: (w.format.name, w.shape) for name, w in tensors.items()})
    plan = place(config, sizes, CTX, "f16", 10**12, cpu_experts=on_host, cpu_kv=cpu_kv)
    monkeypatch.setattr(torch, "bincount", _to_two)
    with simulated_gpu("at once", memory=plan.weights + plan.working, computes=False) as gpu:
        model = put_on_gpu(config, tensors.__getitem__, gpu.device, plan)
        assert plan.weights <= gpu.used <= plan.weights + (8 << 20)  # and a step's buffers
        assert gpu.peak <= plan.weights + plan.working
        state = model.new_state(CTX)
        n = model.prefill_chunk
        assert n == 4096
        model.forward(torch.zeros(n, dtype=torch.int64), state)
        model.forward(torch.zeros(n - 4, dtype=torch.int64), state)
        for _ in range(3):
            model.forward(torch.zeros(1, dtype=torch.int64), state)
        # And the plan wastes little.
        assert gpu.peak >= 0.85 * (plan.weights + plan.working), (gpu.peak, plan)
