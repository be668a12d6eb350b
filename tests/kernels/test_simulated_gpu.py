"""Whole models on a simulated card: devices, streams, page-locked copies and graphs, in whatever order a card may do them."""

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
from tests.support.simulated_gpu import Card, Order, simulated_card

if not interpreted():
    pytest.skip("a simulated card runs its kernels in Triton's interpreter", allow_module_level=True)

# The interpreter takes a second a token even for this.
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


# -- the simulation itself: does it punish what a card would?


def test_tensors_of_both_devices_do_not_mix() -> None:
    with simulated_card() as card:
        there = torch.ones(3, device=card.device)
        assert there.is_cuda
        assert (there + 1).sum().item() == 6
        assert (there * torch.tensor(2.0)).tolist() == [2, 2, 2]  # a single number is a kernel's argument
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            torch.ones(3)[torch.zeros(2, dtype=torch.int64, device=card.device)]


def test_kernels_do_not_read_the_computers_memory() -> None:
    from jambacli.kernels.triton.norm import gate_up

    with simulated_card() as card:
        x = torch.ones(2, 32)
        assert gate_up(x.to(card.device), x.to(card.device)).isfinite().all()
        with pytest.raises(ValueError, match="cannot be accessed"):
            gate_up(x, x)


@pytest.mark.parametrize(("waits", "expected"), [(True, 1.0), (False, 2.0)])
def test_page_locked_memory_overwritten_too_early_reaches_the_card(waits: bool, expected: float) -> None:
    with simulated_card("late") as card:
        here, there = torch.ones(4, pin_memory=True), torch.empty(4, device=card.device)
        there.copy_(here, non_blocking=True)
        if waits:
            event = torch.cuda.Event()
            event.record()
            event.synchronize()
        here.fill_(2)
        assert there[0].item() == expected


@pytest.mark.parametrize("waits", [True, False])
def test_a_stream_that_does_not_wait_reads_what_is_not_there_yet(waits: bool) -> None:
    with simulated_card("late") as card:
        side, x = torch.cuda.Stream(), torch.empty(4, device=card.device)
        with torch.cuda.stream(side):
            x.fill_(5)
        if waits:
            torch.cuda.current_stream().wait_stream(side)
        assert (x + 1)[0].item() == 6 if waits else (x + 1)[0].isnan().item()


def test_a_graph_does_again_what_was_recorded_with_the_numbers_of_then() -> None:
    with simulated_card() as card:
        x, position = torch.zeros(2, device=card.device), torch.zeros(1, device=card.device)
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
    with simulated_card(memory=1 << 20) as card:
        x = torch.zeros(1000, device=card.device)
        assert card.used == 4096
        y = x[10:] + 1
        assert card.used == 8192
        del y
        torch.cuda.synchronize()
        assert (card.used, card.peak) == (4096, 8192)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.zeros(1 << 20, device=card.device)


# -- models


def on(card: Card, behind: set[int] = frozenset(), *, cpu_kv: bool = False, tensors: Any = TENSORS) -> JambaModel:  # type: ignore[assignment]
    from jambacli.runtime.cuda.load import put_on_card

    plan = Placement(0, 0, 0, 0, frozenset(behind), CONFIG.n_moe_layers, host_kv=int(cpu_kv))
    return put_on_card(CONFIG, tensors.__getitem__, card.device, plan, dtype=torch.float32)


@pytest.fixture(scope="module")
def cpu() -> JambaModel:
    return build(CONFIG, TENSORS.__getitem__, ops=reference_ops())


def logits(model: JambaModel, state: Any, ids: torch.Tensor) -> torch.Tensor:
    found = model.forward(ids, state)
    assert found is not None
    return found


def same(card: torch.Tensor, cpu: torch.Tensor, tolerance: float = 2e-4) -> bool:
    return relative_error(card.cpu(), cpu) < tolerance


@pytest.mark.parametrize("order", ["late", pytest.param("random", marks=pytest.mark.slow)])
def test_a_recorded_step_follows_a_cache_that_grows_and_a_state_that_goes_back(
    order: Order, cpu: JambaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jambacli.model.state._FIRST_TOKENS", 4)
    with simulated_card(order) as card:
        model = on(card)
        here, there = cpu.new_state(24), model.new_state(24)
        expected, got = [logits(cpu, here, IDS[:2])], [logits(model, there, IDS[:2])]
        for i in range(2, 7):  # the cache moves at the fifth token
            expected.append(logits(cpu, here, IDS[i : i + 1]))
            got.append(logits(model, there, IDS[i : i + 1]))
            if i == 5:
                saved = here.snapshot(), there.snapshot()
                recorded = model.decoder.recorded  # type: ignore[union-attr]
        here.restore(saved[0])
        there.restore(saved[1])
        expected.append(logits(cpu, here, IDS[20:21]))
        got.append(logits(model, there, IDS[20:21]))
        assert recorded
        assert there.moves >= 2
        assert all(same(a, b) for a, b in zip(got, expected, strict=True))


def test_two_sequences_take_turns(cpu: JambaModel) -> None:
    with simulated_card("late") as card:
        model = on(card)
        pairs = [(cpu.new_state(8), model.new_state(8)) for _ in range(2)]
        results = []
        for i in range(3):
            for n, (here, there) in enumerate(pairs):
                token = IDS[4 * n + i : 4 * n + i + 1]
                results.append((logits(model, there, token), logits(cpu, here, token)))
        assert all(same(a, b) for a, b in results)


@pytest.mark.parametrize(("order", "seed"), [("late", 0), ("others first", 0), ("random", 1)])
def test_experts_are_streamed_through_two_places_whatever_the_order(
    order: Order, seed: int, cpu: JambaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jambacli.runtime.cuda import offload

    monkeypatch.setattr(offload, "FEW_TOKENS", 1)
    with simulated_card(order, seed=seed) as card:
        model = on(card, {1})
        expected, got = logits(cpu, cpu.new_state(24), IDS), logits(model, model.new_state(24), IDS)
        assert same(got, expected, 1e-3)


@pytest.mark.parametrize(
    "fault",
    ["the card has not multiplied yet", "the bytes have not left yet", "the bytes have not come yet"],
)
def test_streaming_without_one_of_its_waits_would_be_seen(
    fault: str, cpu: JambaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each wait in ``offload`` is needed, and the simulation sees that it is."""
    from jambacli.runtime.cuda import offload
    from tests.support import simulated_gpu as simulation

    monkeypatch.setattr(offload, "FEW_TOKENS", 1)
    with simulated_card("others first" if fault == "the card has not multiplied yet" else "late") as card:
        model = on(card, {1})
        nothing = lambda self, *a: None  # noqa: E731
        main = torch.cuda.current_stream()
        if fault == "the bytes have not left yet":
            monkeypatch.setattr(simulation.Event, "synchronize", nothing)
        else:
            wait = simulation._StreamHandle.wait_event
            spared = fault == "the bytes have not come yet"
            monkeypatch.setattr(
                simulation._StreamHandle, "wait_event", lambda s, e: None if (s is main) == spared else wait(s, e)
            )
        expected, got = logits(cpu, cpu.new_state(24), IDS), logits(model, model.new_state(24), IDS)
        assert not same(got, expected, 1e-3)


@pytest.mark.parametrize("order", ["late", pytest.param("random", marks=pytest.mark.slow)])
def test_keys_and_experts_in_ram(order: Order, cpu: JambaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from jambacli.runtime.cuda import upload

    monkeypatch.setattr(upload, "PIECE", 300)  # so that even these caches go through both buffers several times
    with simulated_card(order) as card:
        model = on(card, {1}, cpu_kv=True)
        here, there = cpu.new_state(24), model.new_state(24)
        for part in (IDS[:3], IDS[3:6], IDS[6:7], IDS[7:8], IDS[8:9]):
            assert same(logits(model, there, part), logits(cpu, here, part), 2e-2)
        assert model.decoder.recorded  # type: ignore[union-attr]
