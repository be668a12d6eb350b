"""A simulated GPU whose memory runs out: passes are repeated in smaller pieces, experts move to RAM, old caches are let go."""

from __future__ import annotations

import importlib.util
import weakref
from typing import Any

import pytest
import torch

from jambacli.errors import GpuMemoryError
from jambacli.gpu_check.models import relative_error
from jambacli.kernels import reference_ops
from jambacli.model.config import JambaConfig
from jambacli.model.jamba import JambaModel
from jambacli.runtime.cuda import model as gpu_model
from jambacli.runtime.cuda.placement import Placement
from jambacli.runtime.loader import build
from tests.support.log_lines import log_lines
from tests.support.triton_model import SMALL, tiny_tensors

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install 'jambacli[cuda]'", allow_module_level=True)

from jambacli.kernels.triton.interpret import interpreted
from tests.support.simulated_gpu import SimulatedGpu, simulated_gpu

if not interpreted():
    pytest.skip("a simulated GPU runs its kernels in Triton's interpreter", allow_module_level=True)

CONFIG = JambaConfig.from_hf(SMALL)
TENSORS = tiny_tensors(CONFIG, "legacy")
IDS = torch.randint(0, CONFIG.vocab_size, (12,), generator=torch.Generator().manual_seed(3))


def load(gpu: SimulatedGpu) -> JambaModel:
    from jambacli.runtime.cuda.load import put_on_gpu

    plan = Placement(0, 0, 0, 0, frozenset(), CONFIG.n_moe_layers)
    return put_on_gpu(CONFIG, TENSORS.__getitem__, gpu.device, plan, dtype=torch.float32)


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_model, "SMALLEST_PIECE", 3)


def expected(*parts: torch.Tensor) -> list[torch.Tensor]:
    cpu = build(CONFIG, TENSORS.__getitem__, ops=reference_ops())
    state = cpu.new_state(24)
    return [cpu.forward(part, state) for part in parts]  # type: ignore[misc]


def test_a_grown_cache_frees_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jambacli.model.state._FIRST_TOKENS", 4)
    with simulated_gpu(computes=False) as gpu:
        model = load(gpu)
        state = model.new_state(64)
        for n in (2, 1, 1):  # the last two bind and record a step
            model.forward(IDS[:n], state)
        assert model.decoder.recorded  # type: ignore[union-attr]
        cache = state.caches[0]
        old = [weakref.ref(x.inside.untyped_storage()) for x in (cache.k, cache.v)]  # type: ignore[attr-defined]
        state.begin(10)
        assert cache.capacity >= 14
        assert all(ref() is None for ref in old)


def test_a_step_after_growth_needs_one_scratch_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from jambacli.kernels.triton.attention import DecodeScratch

    monkeypatch.setattr("jambacli.model.state._FIRST_TOKENS", 4)
    with simulated_gpu(computes=False) as gpu:
        model = load(gpu)
        state = model.new_state(64)
        model.forward(IDS[:1], state)
        old = weakref.ref(next(iter(model.decoder._bound.values())).scratch[0])  # type: ignore[union-attr]
        held = []
        plain = DecodeScratch.__init__
        monkeypatch.setattr(
            DecodeScratch, "__init__", lambda self, *a: (held.append(old() is not None), plain(self, *a))[1]
        )
        model.forward(IDS[:8], state)
        model.forward(IDS[:1], state)
        assert held == [False]


@pytest.mark.usefixtures("short_pieces")
def test_wherever_memory_runs_out_once_the_pass_is_repeated() -> None:
    """Every allocation of a prompt and of the steps after it fails in turn, on a GPU that does not compute."""
    with simulated_gpu(computes=False) as gpu:
        model = load(gpu)
        state = model.new_state(24)
        first = gpu.allocations
        parts = IDS[:8], IDS[8:9], IDS[9:10]
        for part in parts:
            model.forward(part, state)
        n = gpu.allocations - first
        assert n > 40
        with log_lines() as lines:
            for k in range(1, n):
                model, state = load(gpu), model.new_state(24)
                gpu.failing = {gpu.allocations + k}
                for part in parts:
                    logits = model.forward(part, state)
                    assert logits is not None
                    assert logits.shape == (1, CONFIG.vocab_size)
                assert state.position == 10
                assert not state.interrupted
        assert any("prompts are now read 4 tokens at a time" in line for line in lines)
        assert any("experts of layer 1 are now in RAM" in line for line in lines)


@pytest.mark.usefixtures("short_pieces")
@pytest.mark.parametrize(
    "at", [3, 24, pytest.param(11, marks=pytest.mark.slow), pytest.param(37, marks=pytest.mark.slow)]
)
def test_a_repeated_pass_gives_the_same_values(at: int) -> None:
    with simulated_gpu() as gpu:
        model = load(gpu)
        state = model.new_state(24)
        gpu.failing = {gpu.allocations + at}
        got = [model.forward(part, state) for part in (IDS[:8], IDS[8:9])]
        for a, b in zip(got, expected(IDS[:8], IDS[8:9]), strict=True):
            assert a is not None
            assert relative_error(a.cpu(), b) < 2e-4


def test_experts_that_moved_to_ram_give_the_same_values_and_free_their_memory() -> None:
    with simulated_gpu() as gpu:
        model: Any = load(gpu)
        state = model.new_state(24)
        model.forward(IDS[:2], state)
        before = gpu.used
        index, layer = model.spill(model.layers)
        assert index == 1
        object.__setattr__(model, "layers", (model.layers[0], layer))
        del layer
        assert gpu.used < before - 10_000
        got = [model.forward(part, state) for part in (IDS[2:5], IDS[5:6], IDS[6:7])]
        for a, b in zip(got, expected(IDS[:2], IDS[2:5], IDS[5:6], IDS[6:7])[1:], strict=True):
            assert relative_error(a.cpu(), b) < 2e-2  # the C++ kernels round activations


@pytest.mark.usefixtures("short_pieces")
def test_when_nothing_is_left_to_move_the_state_stays_usable() -> None:
    with simulated_gpu(computes=False) as gpu:
        model = load(gpu)
        state = model.new_state(24)
        model.forward(IDS[:4], state)
        gpu.limit = 0
        with pytest.raises(GpuMemoryError, match=r"out of memory after 4 tokens.* a smaller ctx, kv_type q8_0"):
            model.forward(IDS[:8], state)
        assert state.position == 4
        gpu.limit = 1 << 40
        model.forward(IDS[:8], state)
        assert state.position == 12


def test_less_free_memory_than_planned_gives_another_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    from jambacli.runtime.cuda import load as loading

    asked = []

    def fails_twice(*arguments: Any) -> str:
        asked.append(arguments[3].budget)
        if len(asked) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "loaded"

    monkeypatch.setattr(loading, "_load_as_planned", fails_twice)
    with simulated_gpu(computes=False, memory=8 << 30) as gpu, log_lines() as lines:
        tensors = {name: (w.format.name, w.shape) for name, w in TENSORS.items()}
        found: Any = loading.load_on_gpu(CONFIG, tensors, TENSORS.__getitem__, gpu.device, ctx=64)
        assert found == "loaded"
        assert asked[0] > asked[1] > asked[2] > 0.7 * asked[0]
        assert sum("planning with" in line for line in lines) == 2
