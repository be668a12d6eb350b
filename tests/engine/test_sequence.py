"""The one operation behind turns, edits and regenerations: what is reused, what is replayed, and that it is exact."""

from __future__ import annotations

import numpy as np
import pytest

from jambacli.engine import sequence as sequence_module
from jambacli.engine.prefixes import common_prefix
from jambacli.engine.sequence import TokenSequence
from jambacli.errors import JambaError, UsageError
from tests.support.sequences import close, ids, straight
from tests.support.small_models import small_model


def fresh(ctx: int = 4096, chunk: int = 64) -> TokenSequence:
    return TokenSequence(small_model().model, ctx, "f32", chunk=chunk)


def test_common_prefix() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common_prefix([1, 2], [1, 2, 3]) == 2
    assert common_prefix([], [1]) == 0


def test_an_appended_turn_computes_only_the_new_tokens() -> None:
    seq, first, more = fresh(), ids(200), ids(30, 1)
    seq.advance(first)
    seq.counters.prefilled = 0
    logits = seq.advance(first + more)
    assert seq.counters.prefilled == 30
    assert close(logits, straight(first + more))


def test_the_same_tokens_again_compute_nothing() -> None:
    seq, first = fresh(), ids(100)
    a = seq.advance(first).copy()
    seq.counters.prefilled = 0
    assert np.array_equal(seq.advance(first), a)
    assert seq.counters.prefilled == 0


def test_an_edit_replays_from_the_nearest_checkpoint() -> None:
    seq, head, old, new = fresh(), ids(150), ids(60, 1), ids(50, 2)
    seq.advance(head + old, boundaries=[150])
    seq.counters.prefilled = 0
    logits = seq.advance(head + new, boundaries=[150])
    assert seq.counters.prefilled == 50
    assert close(logits, straight(head + new))


def test_rewinding_is_exact_to_the_bit() -> None:
    head, a, b = ids(150), ids(40, 1), ids(45, 2)
    once = fresh()
    once.advance(head, boundaries=[150])
    expected = once.advance(head + b).copy()
    back = fresh()
    back.advance(head, boundaries=[150])
    back.advance(head + a)
    assert np.array_equal(back.advance(head + b), expected)


def test_generated_tokens_are_reused_and_regeneration_replays_little() -> None:
    seq, prompt = fresh(), ids(120)
    first = seq.advance(prompt, boundaries=[118]).copy()
    for token in ids(20, 3):
        seq.step(token)
    seq.counters.prefilled = 0
    again = seq.advance(prompt, boundaries=[118])
    assert seq.counters.prefilled <= 8
    assert close(again, first)


def test_a_branch_back_and_forth_stays_correct() -> None:
    seq, head = fresh(), ids(100)
    a, b = head + ids(30, 1), head + ids(30, 2)
    for wanted in (a, b, a, b + ids(5, 3), a[:90]):
        assert close(seq.advance(wanted, boundaries=[100]), straight(wanted))
        assert seq.tokens == wanted


def test_a_full_context_is_refused_and_changes_nothing() -> None:
    seq = fresh(ctx=64)
    seq.advance(ids(60))
    before = list(seq.tokens)
    with pytest.raises(JambaError, match="context"):
        seq.advance(ids(60) + ids(10, 1))
    assert seq.tokens == before
    seq.advance([*before, 11])
    with pytest.raises(UsageError):
        seq.advance([])


def test_checkpoints_are_thinned_to_their_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    seq, tokens = fresh(), ids(600)
    one = small_model().model.new_state(8).snapshot().nbytes
    monkeypatch.setattr(sequence_module, "CHECKPOINT_BYTES", 6 * one)
    seq.advance(tokens, boundaries=range(10, 600, 10))
    assert len(seq.positions) <= 6
    assert seq.positions[-2:] == [580, 590]
    for back in (595, 333, 21):
        assert close(seq.advance([*tokens[:back], 7]), straight([*tokens[:back], 7]))


def test_an_interrupted_read_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    seq, tokens = fresh(chunk=32), ids(300)
    calls = 0

    class Stop:
        def __call__(self, title: str, total: int | None, unit: str = "bytes") -> Stop:
            return self

        def __enter__(self):
            def progress(n: int) -> None:
                nonlocal calls
                calls += 1
                if calls == 3:
                    raise KeyboardInterrupt

            return progress

        def __exit__(self, *_: object) -> None:
            return None

    with pytest.raises(KeyboardInterrupt):
        seq.advance(tokens, progress=Stop())
    assert seq.tokens == tokens[: len(seq.tokens)]
    assert close(seq.advance(tokens), straight(tokens))


@pytest.mark.parametrize("boundaries", [[], [64, 128]])
def test_a_pass_interrupted_half_way_is_begun_again(monkeypatch: pytest.MonkeyPatch, boundaries: list[int]) -> None:
    from jambacli.model.state import SequenceState

    commit, passes = SequenceState.commit, 0

    def interrupted(state: SequenceState, tokens: int) -> None:
        nonlocal passes
        passes += 1
        if passes in (3, 6):
            raise KeyboardInterrupt
        commit(state, tokens)

    monkeypatch.setattr(SequenceState, "commit", interrupted)
    seq, tokens = fresh(), ids(300)
    with pytest.raises(KeyboardInterrupt):
        seq.advance(tokens, boundaries)
    with pytest.raises(KeyboardInterrupt):
        seq.advance(tokens, boundaries)
    assert seq.state.interrupted and close(seq.advance(tokens, boundaries), straight(tokens))
