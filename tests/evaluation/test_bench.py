"""The rates that the benchmark computes, with a runner of known speed."""

from __future__ import annotations

import pytest
import torch

from jambacli.evaluation.bench import Case, Fill, ModelRunner, Result, fill_at, fill_randomly, measure, prefill_speed
from jambacli.evaluation.synthetic import shape_config, synthetic_model
from jambacli.kernels import reference
from jambacli.model.config import JambaConfig
from jambacli.runtime.memory_plan import prefill_flops


class Clockwork:
    """Prefills 100 and decodes 10 tokens per second, and records its calls."""

    name = "clockwork"

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def start(self, depth: int, room: int, sequences: int = 1) -> None:
        self.asked.append(("start", depth))
        self.sequences = sequences

    def prefill(self, tokens: int) -> float:
        self.asked.append(("prefill", tokens))
        return tokens / 100

    def decode(self, tokens: int, at_once: int = 1) -> float:
        self.asked.append(("decode", tokens))
        return tokens / 10 / (1 if at_once == 1 else 2) * (1 if self.sequences == 1 else 1.5)

    def peak_memory(self) -> int:
        return 7


def test_rates_and_names_are_those_of_the_case() -> None:
    runner = Clockwork()
    results = measure([runner], [Case(512, 0), Case(0, 20), Case(100, 10), Case(0, 8, 4096)], 2)
    assert [r.case.name for r in results] == ["pp512", "tg20", "pp100+tg10", "tg8 @ d4096"]
    assert [r.rate for r in results] == pytest.approx([100, 10, 55, 10])
    assert [r.first_token_seconds for r in results] == [5.12, None, 1.0, None]
    assert runner.asked.count(("start", 4096)) == 1  # the depth is read once for all repetitions
    assert runner.asked.count(("prefill", 512)) == 2


def test_steps_of_several_tokens_are_cases_of_their_own() -> None:
    one, four = measure([Clockwork()], [Case(0, 8), Case(0, 8, 0, 4)], 2)
    assert (one.case.name, four.case.name) == ("tg8", "tg8 t4")
    assert Case(0, 8, 16, 4).name == "tg8 t4 @ d16"
    assert one.step_seconds == pytest.approx(0.1)
    assert four.step_seconds == pytest.approx(0.2)


def test_several_sequences_are_cases_of_their_own() -> None:
    one, four = measure([Clockwork()], [Case(0, 8), Case(0, 8, sequences=4)], 2)
    assert (one.case.name, four.case.name) == ("tg8", "tg8 b4")
    assert Case(0, 8, 16, 2, 4).name == "tg8 b4 t2 @ d16"
    assert one.rate == pytest.approx(10)
    assert four.rate == pytest.approx(40 / 1.5)  # tokens of all sequences
    assert four.step_seconds == pytest.approx(0.15)


def test_a_model_decodes_in_steps() -> None:
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 64, "num_experts": 1}
    model = synthetic_model(JambaConfig.from_hf(shape), "q8_0")
    runner = ModelRunner(model)
    runner.start(0, 8)
    assert runner.decode(8, 4) > 0
    assert runner._states[0].position == 8


@pytest.mark.parametrize("fill", ["read", "random"])
def test_a_model_decodes_several_sequences(fill: Fill) -> None:
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "vocab_size": 64, "num_experts": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "mamba_d_state": 8}
    model = synthetic_model(JambaConfig.from_hf({**shape, **heads}), "q8_0")
    runner = ModelRunner(model, fill=fill)
    runner.start(5, 8, 3)
    first, *others = runner._states
    assert len(others) == 2
    for state in others:  # each has a copy of the same context
        assert state.position == 5
        assert torch.equal(state.ssm, first.ssm)
        [mine], [theirs] = state.kv(0, 5), first.kv(0, 5)
        assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1])
    assert runner.decode(8, 4) > 0
    assert [state.position for state in runner._states] == [13, 13, 13]


def test_runners_are_measured_in_turn() -> None:
    order: list[str] = []

    class Told(Clockwork):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def prefill(self, tokens: int) -> float:
            if tokens == 300:
                order.append(self.name)
            return 1.0

    measure([Told("a"), Told("b")], [Case(300, 0)], 3)
    assert order == ["a", "b"] * 3


def test_the_speed_kept_for_estimates_is_that_of_the_longest_plain_prompt() -> None:
    big = shape_config("jamba-3b")
    results = [
        Result(Case(512, 0), "x", [50.0, 100.0, 200.0]),
        Result(Case(256, 0), "x", [1.0]),
        Result(Case(512, 0, 8192), "x", [1.0]),
        Result(Case(1024, 64), "x", [1.0]),
    ]
    assert prefill_speed(big, results) == pytest.approx(prefill_flops(big, 512) * 100 / 512)
    assert prefill_speed(big, results[2:]) is None
    small = JambaConfig.from_hf({"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "vocab_size": 64})
    assert prefill_speed(small, results) is None


def test_deep_contexts_are_filled_with_random_values_by_default() -> None:
    assert [fill_at(depth) for depth in (0, 1, 32_768, 32_769)] == [None, "read", "read", "random"]
    assert [fill_at(depth, "read") for depth in (0, 100_000)] == [None, "read"]
    assert [fill_at(depth, "random") for depth in (0, 5)] == [None, "random"]


@pytest.mark.parametrize("kv_type", ["f16", "bf16", "f32", "q8_0", "q5_1", "q4_0"])
def test_a_random_fill_is_a_state_from_which_decode_goes_on(kv_type: str) -> None:
    config = JambaConfig.from_hf(
        {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 8,
            "vocab_size": 64,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "num_experts": 2,
            "mamba_d_state": 8,
        }
    )
    model = synthetic_model(config, "f32")
    state, again = (model.new_state(5000, kv_type) for _ in range(2))
    for one in (state, again):
        fill_randomly(one, 4500)  # more than the random values that are repeated
    assert state.position == state.kv_tokens == 4500
    (k, v), (other, _) = next(state.kv(0, 4500)), next(again.kv(0, 4500))
    assert torch.equal(k, other)
    assert not torch.equal(k, v)
    keys = reference.kv_values(k, 32)
    assert float(keys.std()) == pytest.approx(1, abs=0.02) and torch.equal(keys[:404], keys[4096:])
    logits = model.forward(torch.tensor([3]), state)
    assert logits is not None and bool(logits.isfinite().all())
    assert torch.equal(logits, model.forward(torch.tensor([3]), again))

    runner = ModelRunner(model, kv_type, fill="random")
    runner.start(3000, 4)
    assert runner.decode(2) > 0
