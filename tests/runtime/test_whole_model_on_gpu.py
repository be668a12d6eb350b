"""Models of real size on a simulated GPU that only counts: memory against the plan, kernels per token."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch

from jambacli.evaluation.synthetic import choices, shape_config
from jambacli.gpu_check import estimate
from jambacli.runtime.cuda.memory import gpu_sizes
from jambacli.runtime.cuda.placement import place
from quant.formats import FORMATS, QTensor

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install 'jambacli[cuda]'", allow_module_level=True)

from jambacli.kernels.triton.interpret import interpreted
from tests.support.simulated_gpu import simulated_gpu

if not interpreted():
    pytest.skip("a simulated GPU launches its kernels in Triton's interpreter", allow_module_level=True)

pytestmark = pytest.mark.slow
#: Counted in the plan but not simulated: CUDA's libraries, and the checkpoints of a session.
ELSEWHERE = 250_000_000 + (256 << 20)


def zeros(fmt: str, shape: tuple[int, ...]) -> QTensor:
    """A tensor of zeros, which takes no physical memory."""
    form = FORMATS[fmt]
    data = torch.from_numpy(np.zeros(math.prod(shape) // form.block * form.block_bytes, np.uint8))
    return QTensor(data, form, shape, torch.ones(shape[:-1]) if fmt == "i8" else None)


@pytest.mark.parametrize(
    ("shape", "quant", "kv_type", "gigabytes"),
    [("jamba-3b", "q4_k_m", "f16", 24), ("jamba-3b", "q8_0", "f32", 5), ("moe", "q4_k_m", "f16", 24)],
)
def test_a_model_takes_what_its_plan_says(shape: str, quant: str, kv_type: str, gigabytes: int) -> None:
    from jambacli.runtime.cuda.load import put_on_gpu

    config, memory, ctx = shape_config(shape), gigabytes * 10**9, 16384
    tensors = {name: (c.format, c.tensor.shape) for name, c in choices(config, quant).items()}
    plan = place(config, gpu_sizes(tensors), ctx, kv_type, memory)
    assert not plan.host_layers
    with simulated_gpu("at once", computes=False, memory=memory) as gpu:
        model = put_on_gpu(config, lambda name: zeros(*tensors[name]), gpu.device, plan)
        assert gpu.used == pytest.approx(plan.weights, rel=2e-3)
        state = model.new_state(ctx, kv_type)
        last = ctx - 1 - plan.chunk
        state._reserve(last)
        state.position = state.kv_tokens = last  # as if so many had been read
        model.forward(torch.zeros(plan.chunk, dtype=torch.int64), state)
        before = len(gpu.launches)
        model.forward(torch.zeros(1, dtype=torch.int64), state)
        promised = plan.weights + plan.working - ELSEWHERE
        assert promised * 0.9 < gpu.peak <= promised
        copies = 2  # of a token's number and position: kernels too, but not Triton's
        counted = sum(kernel.count for kernel in estimate.kernels(config, quant, ctx))
        assert len(gpu.launches) - before == counted - copies
