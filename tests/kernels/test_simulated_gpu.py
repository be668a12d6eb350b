"""Whole models on a simulated GPU: devices, streams, page-locked copies and graphs, in every order that CUDA allows."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from jambacli.gpu_check.models import relative_error
from jambacli.kernels import reference_ops
from jambacli.model.config import JambaConfig
from jambacli.model.jamba import JambaModel
from jambacli.runtime.cuda.placement import Placement
from jambacli.runtime.loader import build
from tests.support.triton_model import SHAPE, tiny_tensors

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install 'jambacli[cuda]'", allow_module_level=True)

from jambacli.kernels.triton.interpret import interpreted
from tests.support.simulated_gpu import Order, SimulatedGpu, simulated_gpu

if not interpreted():
    pytest.skip("a simulated GPU runs its kernels in Triton's interpreter", allow_module_level=True)

# The interpreter takes a second per token even for this.
TINY = SHAPE | {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "attn_layer_period": 2,
    "mamba_dt_rank": 32,
    "vocab_size": 96,
    "num_attention_heads": 2,
}
CONFIG = JambaConfig.from_hf(TINY)
TENSORS = tiny_tensors(CONFIG, "legacy")
IDS = torch.randint(0, CONFIG.vocab_size, (24,), generator=torch.Generator().manual_seed(3))


# -- the simulation itself: does it fail where a GPU would?


def test_tensors_of_both_devices_do_not_mix() -> None:
    with simulated_gpu() as gpu:
        on_gpu = torch.ones(3, device=gpu.device)
        assert on_gpu.is_cuda
        assert (on_gpu + 1).sum().item() == 6
        assert (on_gpu * torch.tensor(2.0)).tolist() == [2, 2, 2]  # a scalar tensor becomes a kernel argument
        with pytest.raises(RuntimeError, match="same device"):
            on_gpu + torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            torch.ones(3)[torch.zeros(2, dtype=torch.int64, device=gpu.device)]


def test_kernels_do_not_read_host_memory() -> None:
    from jambacli.kernels.triton.norm import gate_up

    with simulated_gpu() as gpu:
        x = torch.ones(2, 32)
        assert gate_up(x.to(gpu.device), x.to(gpu.device)).isfinite().all()
        with pytest.raises(ValueError, match="cannot be accessed"):
            gate_up(x, x)


@pytest.mark.parametrize(("waits", "expected"), [(True, 1.0), (False, 2.0)])
def test_page_locked_memory_overwritten_too_early_reaches_the_gpu(waits: bool, expected: float) -> None:
    with simulated_gpu("late") as gpu:
        on_host, on_gpu = torch.ones(4, pin_memory=True), torch.empty(4, device=gpu.device)
        on_gpu.copy_(on_host, non_blocking=True)
        if waits:
            event = torch.cuda.Event()
            event.record()
            event.synchronize()
        on_host.fill_(2)
        assert on_gpu[0].item() == expected


@pytest.mark.parametrize("waits", [True, False])
def test_a_stream_that_does_not_wait_reads_too_early(waits: bool) -> None:
    with simulated_gpu("late") as gpu:
        side, x = torch.cuda.Stream(), torch.empty(4, device=gpu.device)
        with torch.cuda.stream(side):
            x.fill_(5)
        if waits:
            torch.cuda.current_stream().wait_stream(side)
        assert (x + 1)[0].item() == 6 if waits else (x + 1)[0].isnan().item()


def test_a_graph_replays_with_the_recorded_numbers() -> None:
    with simulated_gpu() as gpu:
        x, position = torch.zeros(2, device=gpu.device), torch.zeros(1, device=gpu.device)
        graph, side, step = torch.cuda.CUDAGraph(), torch.cuda.Stream(), 10
        with torch.cuda.stream(side):
            graph.capture_begin()
            x.copy_(position + step)
            with pytest.raises(RuntimeError, match="capturing"):
                x.sum().item()
            graph.capture_end()
        assert x.tolist() == [0, 0]
        step = 20
        position.fill_(1)
        graph.replay()
        assert x.tolist() == [11, 11]
        assert step == 20


def test_memory_is_counted_and_runs_out() -> None:
    with simulated_gpu(memory=1 << 20) as gpu:
        x = torch.zeros(1000, device=gpu.device)
        assert gpu.used == 4096
        y = x[10:] + 1
        assert gpu.used == 8192
        del y
        torch.cuda.synchronize()
        assert (gpu.used, gpu.peak) == (4096, 8192)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.zeros(1 << 20, device=gpu.device)


# -- models


def load(
    gpu: SimulatedGpu, host_layers: set[int] = frozenset(), *, cpu_kv: bool = False, tensors: Any = TENSORS
) -> JambaModel:  # type: ignore[assignment]
    from jambacli.runtime.cuda.load import put_on_gpu

    plan = Placement(0, 0, 0, 0, frozenset(host_layers), CONFIG.n_moe_layers, host_kv=int(cpu_kv))
    return put_on_gpu(CONFIG, tensors.__getitem__, gpu.device, plan, dtype=torch.float32)


@pytest.fixture(scope="module")
def cpu() -> JambaModel:
    return build(CONFIG, TENSORS.__getitem__, ops=reference_ops())


def logits(model: JambaModel, state: Any, ids: torch.Tensor) -> torch.Tensor:
    found = model.forward(ids, state)
    assert found is not None
    return found


def same(gpu: torch.Tensor, cpu: torch.Tensor, tolerance: float = 2e-4) -> bool:
    return relative_error(gpu.cpu(), cpu) < tolerance


@pytest.mark.parametrize("order", ["late", pytest.param("random", marks=pytest.mark.slow)])
def test_a_recorded_step_follows_a_growing_cache_and_a_restored_state(
    order: Order, cpu: JambaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jambacli.model.state._FIRST_TOKENS", 4)
    with simulated_gpu(order) as gpu:
        model = load(gpu)
        on_host, on_gpu = cpu.new_state(24), model.new_state(24)
        expected, got = [logits(cpu, on_host, IDS[:2])], [logits(model, on_gpu, IDS[:2])]
        for i in range(2, 7):  # the cache is reallocated at the fifth token
            expected.append(logits(cpu, on_host, IDS[i : i + 1]))
            got.append(logits(model, on_gpu, IDS[i : i + 1]))
            if i == 5:
                saved = on_host.snapshot(), on_gpu.snapshot()
                recorded = model.decoder.recorded  # type: ignore[union-attr]
        on_host.restore(saved[0])
        on_gpu.restore(saved[1])
        expected.append(logits(cpu, on_host, IDS[20:21]))
        got.append(logits(model, on_gpu, IDS[20:21]))
        assert recorded
        assert on_gpu.moves >= 2
        assert all(same(a, b) for a, b in zip(got, expected, strict=True))


def test_two_sequences_take_turns(cpu: JambaModel) -> None:
    with simulated_gpu("late") as gpu:
        model = load(gpu)
        pairs = [(cpu.new_state(8), model.new_state(8)) for _ in range(2)]
        results = []
        for i in range(3):
            for n, (on_host, on_gpu) in enumerate(pairs):
                token = IDS[4 * n + i : 4 * n + i + 1]
                results.append((logits(model, on_gpu, token), logits(cpu, on_host, token)))
        assert all(same(a, b) for a, b in results)


@pytest.mark.parametrize(("order", "seed"), [("late", 0), ("others first", 0), ("random", 1)])
def test_experts_are_streamed_through_two_slots_in_any_order(
    order: Order, seed: int, cpu: JambaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jambacli.runtime.cuda import offload

    monkeypatch.setattr(offload, "MAX_CPU_TOKENS", 1)
    with simulated_gpu(order, seed=seed) as gpu:
        model = load(gpu, {1})
        expected, got = logits(cpu, cpu.new_state(24), IDS), logits(model, model.new_state(24), IDS)
        assert same(got, expected, 1e-3)


@pytest.mark.parametrize(
    "fault",
    ["the slot is still in use", "the last expert is still being sent", "the expert has not arrived"],
)
def test_streaming_without_one_of_its_waits_fails(fault: str, cpu: JambaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wait in ``offload`` is needed, and the simulation shows that."""
    from jambacli.runtime.cuda import offload
    from tests.support import simulated_gpu as simulation

    monkeypatch.setattr(offload, "MAX_CPU_TOKENS", 1)
    with simulated_gpu("others first" if fault == "the slot is still in use" else "late") as gpu:
        model = load(gpu, {1})
        nothing = lambda self, *a: None  # noqa: E731
        main = torch.cuda.current_stream()
        if fault == "the last expert is still being sent":
            monkeypatch.setattr(simulation.Event, "synchronize", nothing)
        else:
            wait = simulation._StreamHandle.wait_event
            spared = fault == "the expert has not arrived"
            monkeypatch.setattr(
                simulation._StreamHandle, "wait_event", lambda s, e: None if (s is main) == spared else wait(s, e)
            )
        expected, got = logits(cpu, cpu.new_state(24), IDS), logits(model, model.new_state(24), IDS)
        assert not same(got, expected, 1e-3)


@pytest.mark.parametrize("order", ["late", pytest.param("random", marks=pytest.mark.slow)])
def test_keys_and_experts_in_ram(order: Order, cpu: JambaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from jambacli.runtime.cuda import upload

    monkeypatch.setattr(upload, "PIECE", 300)  # so small that these caches use both buffers several times
    with simulated_gpu(order) as gpu:
        model = load(gpu, {1}, cpu_kv=True)
        on_host, on_gpu = cpu.new_state(24), model.new_state(24)
        for part in (IDS[:3], IDS[3:6], IDS[6:7], IDS[7:8], IDS[8:9]):
            assert same(logits(model, on_gpu, part), logits(cpu, on_host, part), 2e-2)
        assert model.decoder.recorded  # type: ignore[union-attr]


def test_a_cache_that_grows_under_a_graph() -> None:
    from jambacli.gpu_check.growth import around_a_growth
    from jambacli.runtime.cuda.load import put_on_gpu

    with simulated_gpu("late") as gpu:
        plan = Placement(0, 0, 0, 0, frozenset(), CONFIG.n_moe_layers)
        model = put_on_gpu(CONFIG, TENSORS.__getitem__, gpu.device, plan)
        found = around_a_growth(model, 3)
        assert found["ok"]
        assert found["recorded"]
        assert found["capacity"] == [256, 512]


class _Unchanged(int):
    """Equal to every number of moves."""

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_a_graph_that_still_reads_the_cache_from_before_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.errors import InterpreterError

    from jambacli.gpu_check.growth import around_a_growth
    from jambacli.runtime.cuda.decoder import CudaDecoder
    from jambacli.runtime.cuda.load import put_on_gpu

    bind = CudaDecoder._bind

    def bind_for_good(self: Any, state: Any) -> Any:
        bound = bind(self, state)
        bound.moves = _Unchanged()
        return bound

    monkeypatch.setattr(CudaDecoder, "_bind", bind_for_good)
    plan = Placement(0, 0, 0, 0, frozenset(), CONFIG.n_moe_layers)
    try:
        with simulated_gpu("late") as gpu:
            model = put_on_gpu(CONFIG, TENSORS.__getitem__, gpu.device, plan)
            noticed = not around_a_growth(model, 3)["ok"]
    except InterpreterError:  # the interpreter finds no largest of values that are not numbers
        noticed = True
    assert noticed
