"""Several sequences in one step, and taking back the last tokens of one."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from jambacli.errors import JambaError
from jambacli.evaluation.synthetic import synthetic_model
from jambacli.kernels import Ops, cpu
from jambacli.model.config import JambaConfig
from jambacli.model.jamba import JambaModel, Span
from jambacli.model.state import ContextFullError, SequenceState
from tests.support.small_models import SHAPE

VOCAB = 300
KV_TYPES = ("f16", "q8_0", "f32", "bf16", "q5_1", "q4_0")
needs_cpu = pytest.mark.skipif(not cpu.available(), reason="the C++ kernels were not built here")


def small(quant: str, ops: Ops | None = None, **changes: int) -> JambaModel:
    """A random model whose rows hold whole blocks of every type; heads of 64 values, so that caches of blocks fit."""
    shape = {
        **SHAPE,
        "hidden_size": 256,
        "intermediate_size": 256,
        "mamba_dt_rank": 256,
        "vocab_size": VOCAB,
        **changes,
    }
    return synthetic_model(JambaConfig.from_hf(shape, "small"), quant, ops=ops)


def ids(n: int, seed: int) -> torch.Tensor:
    return torch.randint(0, VOCAB, (n,), generator=torch.Generator().manual_seed(seed))


def tensors(state: SequenceState) -> list[torch.Tensor]:
    """Everything that later tokens depend on."""
    pairs = state.kv(0, state.position)
    return [state.conv, state.ssm, *(x for pair in pairs for x in pair)]


def same(a: SequenceState, b: SequenceState) -> bool:
    """Whether two states are equal to the bit."""
    if a.position != b.position:
        return False
    return all(
        torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(tensors(a), tensors(b), strict=True)
    )


class Alone:
    """A sequence fed one token at a time: what every other way is compared with."""

    def __init__(self, model: JambaModel, kv_type: str, precise: bool, start: torch.Tensor) -> None:
        self.model = model
        self.state = model.new_state(128, kv_type, precise=precise)
        self.tokens = ids(0, 0)
        self.feed(start)

    def feed(self, tokens: torch.Tensor) -> torch.Tensor:
        """The logits after each of the tokens."""
        self.tokens = torch.cat([self.tokens, tokens])
        rows = [self.model.forward(tokens[i : i + 1], self.state) for i in range(len(tokens))]
        return torch.cat([row for row in rows if row is not None]) if rows else torch.empty(0)

    def without_last(self, n: int) -> Alone:
        """The same sequence fed only the tokens before the last n."""
        kept = self.tokens[: len(self.tokens) - n]
        return Alone(self.model, self.state.kv_type, self.state.precise, kept)


@pytest.fixture(params=range(1, 8))
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def join_and_leave(model: JambaModel, seed: int, rounds: int = 5, sequences: int = 6, most: int = 5) -> None:
    """Random spans of random sequences in each step, some taken back: every token as alone."""
    choose = random.Random(seed)
    alone: list[Alone] = []
    states: list[SequenceState] = []
    for i in range(sequences):
        kv_type, precise = choose.choice(KV_TYPES), choose.random() < 0.3
        start = ids(choose.randint(1, 12), seed=100 * seed + i)
        alone.append(Alone(model, kv_type, precise, start))
        states.append(model.new_state(128, kv_type, precise=precise))
        model.forward_spans([Span(states[-1], start, "none")])
    for step in range(rounds):
        chosen = choose.sample(range(sequences), choose.randint(1, sequences))
        spans = [
            Span(
                states[i],
                ids(choose.randint(1, most), seed=1000 * seed + 10 * step + i),
                choose.choice(["last", "all", "none"]),  # type: ignore[arg-type]
                choose.random() < 0.5,
            )
            for i in chosen
        ]
        for i, span, logits in zip(chosen, spans, model.forward_spans(spans), strict=True):
            expected = alone[i].feed(span.ids)
            if span.n_logits:
                assert logits is not None
                assert torch.equal(logits, expected[len(span.ids) - span.n_logits :])
            else:
                assert logits is None
            if span.revocable and (n := choose.randint(0, len(span.ids))):
                span.state.retract(n)
                alone[i] = alone[i].without_last(n)
            assert same(span.state, alone[i].state)


LEGACY_TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]
K_TYPES = ["q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "iq4_nl", "iq4_xs"]


@needs_cpu
@pytest.mark.parametrize("quant", LEGACY_TYPES + K_TYPES)
def test_a_token_gets_the_same_bits_alone_and_among_others(quant: str) -> None:
    join_and_leave(small(quant, num_experts=1), seed=1)


@needs_cpu
@pytest.mark.parametrize("quant", ["q4_k_m", "experts_int8", "bf16"])
def test_the_same_with_experts_on_any_number_of_threads(quant: str, threads: int) -> None:
    join_and_leave(small(quant), seed=2 + threads)


@needs_cpu
def test_the_same_on_every_instruction_set() -> None:
    model = small("q4_k_m")
    try:
        for isa in cpu.runnable_isas():
            cpu.set_isa(isa)
            join_and_leave(model, seed=20)
    finally:
        cpu.set_isa(None)


@needs_cpu
def test_more_sequences_than_one_call_takes() -> None:
    model = small("q4_k_m")
    alone = [Alone(model, KV_TYPES[i % 2], i % 3 == 0, ids(3 + i % 4, i)) for i in range(40)]
    states = [model.new_state(64, a.state.kv_type, precise=a.state.precise) for a in alone]
    model.forward_spans([Span(s, a.tokens, "none") for s, a in zip(states, alone, strict=True)])
    out = model.forward_spans([Span(s, ids(4, 50 + i), "all") for i, s in enumerate(states)])
    for i, (logits, a, s) in enumerate(zip(out, alone, states, strict=True)):
        assert logits is not None
        assert torch.equal(logits, a.feed(ids(4, 50 + i)))
        assert same(s, a.state)


@needs_cpu
def test_a_revocable_span_longer_than_one_call() -> None:
    model = small("q4_k_m")
    alone, state = Alone(model, "f16", False, ids(5, 0)), model.new_state(128)
    model.forward_spans([Span(state, alone.tokens)])
    [logits] = model.forward_spans([Span(state, ids(40, 1), "all", revocable=True)])
    assert logits is not None
    assert torch.equal(logits, alone.feed(ids(40, 1)))
    state.retract(10)
    state.retract(20)
    assert same(state, alone.without_last(30).state)


@needs_cpu
def test_a_piece_of_a_prompt_beside_decode_tokens() -> None:
    model = small("q4_k_m")
    alone, state, long, once = Alone(model, "f16", False, ids(5, 0)), *(model.new_state(128) for _ in range(3))
    model.forward_spans([Span(state, alone.tokens)])
    read, decoded = model.forward_spans([Span(long, ids(60, 2)), Span(state, ids(1, 3))])
    expected = model.forward(ids(60, 2), once)
    assert read is not None and decoded is not None and expected is not None
    assert torch.equal(read, expected)
    assert same(long, once)
    assert torch.equal(decoded, alone.feed(ids(1, 3)))
    assert same(state, alone.state)


@needs_cpu
@pytest.mark.parametrize("quant", LEGACY_TYPES + K_TYPES)
def test_pieces_of_several_prompts_have_the_bits_of_each_alone(quant: str) -> None:
    pieces_of_prompts(small(quant, num_experts=4))


@needs_cpu
def test_pieces_of_several_prompts_on_every_instruction_set() -> None:
    model = small("q4_k_m", num_experts=4)
    try:
        for isa in cpu.runnable_isas():
            cpu.set_isa(isa)
            pieces_of_prompts(model)
    finally:
        cpu.set_isa(None)


def pieces_of_prompts(model: JambaModel) -> None:
    """Pieces longer than decode takes, of several modes and lengths, in one step and each by itself."""
    kinds = [
        ("f16", False),
        ("f16", False),
        ("q8_0", False),
        ("f16", True),
        ("f32", False),
        ("f16", True),
        ("f16", False),
    ]
    sizes, starts = (17, 200, 33, 64, 129, 18, 190), (0, 5, 0, 40, 1, 0, 3)
    joined = [model.new_state(300, kv_type, precise=precise) for kv_type, precise in kinds]
    alone = [model.new_state(300, kv_type, precise=precise) for kv_type, precise in kinds]
    for i, start in enumerate(starts):
        if start:
            model.forward(ids(start, i), joined[i])
            model.forward(ids(start, i), alone[i])
    pieces = [ids(size, 100 + i) for i, size in enumerate(sizes)]
    spans = [Span(s, p, "none" if i == 4 else "last") for i, (s, p) in enumerate(zip(joined, pieces, strict=True))]
    for i, (piece, logits) in enumerate(zip(pieces, model.forward_spans(spans), strict=True)):
        expected = model.forward(piece, alone[i])
        assert same(joined[i], alone[i])
        assert (logits is None) == (i == 4)
        assert logits is None or (expected is not None and torch.equal(logits, expected))


def test_taking_back_works_with_any_operations(ops: Ops) -> None:
    model = small("f32", ops)
    alone, state, other = Alone(model, "f32", False, ids(6, 0)), model.new_state(64, "f32"), model.new_state(64, "f32")
    for i in range(6):
        model.forward(ids(6, 0)[i : i + 1], state)
    logits, one = model.forward_spans([Span(state, ids(5, 1), "all", revocable=True), Span(other, ids(1, 2))])
    assert logits is not None and one is not None
    assert torch.equal(logits, alone.feed(ids(5, 1)))
    assert torch.equal(one, Alone(model, "f32", False, ids(0, 0)).feed(ids(1, 2)))
    state.retract(3)
    assert same(state, alone.without_last(3).state)
    assert state.revocable == 2
    state.retract(2)
    assert same(state, alone.without_last(5).state)


def test_only_the_last_revocable_span_can_be_taken_back(ops: Ops) -> None:
    model = small("f32", ops)
    state = model.new_state(64, "f32")
    with pytest.raises(JambaError, match="cannot be taken back"):
        state.retract(1)
    model.forward_spans([Span(state, ids(4, 0), revocable=True)])
    with pytest.raises(JambaError, match="left 4 revocable"):
        state.retract(5)
    checkpoint = state.snapshot()
    for later in (
        lambda: model.forward(ids(1, 1), state),
        lambda: state.restore(checkpoint),
        lambda: model.forward_spans([Span(state, ids(2, 1))]),
        state.reset,
    ):
        later()
        assert state.revocable == 0
        with pytest.raises(JambaError, match="cannot be taken back"):
            state.retract(1)
        state.retract(0)


def test_checkpoints_behind_retracted_tokens_are_lost(ops: Ops) -> None:
    model = small("f32", ops)
    state = model.new_state(64, "f32")
    model.forward(ids(6, 0), state)
    early = state.snapshot()
    model.forward_spans([Span(state, ids(4, 1), revocable=True)])
    late = state.snapshot()
    state.retract(2)
    assert state.kv_tokens == state.position == 8
    between = state.snapshot()
    assert not state.restorable(late)
    model.forward(ids(4, 2), state)
    assert [state.restorable(c) for c in (early, between, late)] == [True, True, False]


def test_many_retractions_leave_no_record(ops: Ops) -> None:
    """Drafts are taken back every few tokens: what a state remembers of them must not grow."""
    model = small("f32", ops, num_hidden_layers=2)
    state = model.new_state(64, "f32")
    early = state.snapshot()
    for i in range(20):
        model.forward_spans([Span(state, ids(3, i), "none", revocable=True)])
        state.retract(2)
    assert state._overwritten == []
    assert state.restorable(early)


def test_a_refused_step_changes_no_state(ops: Ops) -> None:
    model = small("f32", ops)
    one, full = model.new_state(8, "f32"), model.new_state(3, "f32")
    model.forward_spans([Span(one, ids(2, 0)), Span(full, ids(2, 0))])
    for error, bad in (
        (ContextFullError, Span(full, ids(2, 0))),
        (JambaError, Span(full, torch.tensor([VOCAB]))),
        (JambaError, Span(full, ids(0, 0))),
        (JambaError, Span(one, ids(1, 0))),
    ):
        with pytest.raises(error):
            model.forward_spans([Span(one, ids(1, 1)), bad])
        assert (one.position, full.position, one.interrupted, full.interrupted) == (2, 2, False, False)
    assert model.forward_spans([]) == []
