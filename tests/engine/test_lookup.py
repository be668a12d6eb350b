"""Lookup decoding: the same tokens, text and state as without it, whatever is drafted; and drafts where text repeats."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jambacli.api import Jamba
from jambacli.data import reports
from jambacli.engine import token_index
from jambacli.engine.drafted_steps import DraftedSteps
from jambacli.engine.lookup import Lookup, StepCosts, draft_lengths
from jambacli.engine.sampling import Sampler, Sampling
from jambacli.engine.sequence import TokenSequence
from jambacli.engine.token_index import Rival, TokenIndex
from jambacli.errors import JambaError
from jambacli.model.state import ContextFullError
from tests.support.drafts import certain, draft_all, drafts_of
from tests.support.schemas import random_schema
from tests.support.sequences import ids
from tests.support.small_models import small_file, small_model

# The index ---------------------------------------------------------------------------------------------------------------


def longest_match(text: list[int]) -> int:
    """Length of the longest end of ``text`` that also occurs before, up to 32."""
    return max(
        (next((k for k in range(32) if k >= e or text[e - 1 - k] != text[-1 - k]), 32) for e in range(1, len(text))),
        default=0,
    )


@pytest.mark.parametrize("words", [4, 6, 20])
def test_the_longest_match_is_found_token_by_token(words: int) -> None:
    rng, index, text = random.Random(words), TokenIndex(), list[int]()
    for _ in range(60):
        predicted = index.draft(1)
        token = rng.randrange(words)
        assert index.push(token) == (predicted == [token])
        text.append(token)
        longest = longest_match(text)
        assert index.matched == (longest if longest >= 2 else 0), text
        if index.place is not None:
            assert text[index.place - index.matched : index.place] == text[len(text) - index.matched :]
            followed = text[index.place : index.place + 4]
            assert index.draft(4)[: len(followed)] == followed


def test_text_read_at_once_is_found_as_token_by_token() -> None:
    rng = random.Random(0)
    phrases = [[rng.randrange(1000) for _ in range(rng.randint(3, 40))] for _ in range(30)]
    text = [t for _ in range(200) for t in rng.choice(phrases)]
    one, many = TokenIndex(), TokenIndex()
    for token in text:
        one.push(token)
    cuts = [0, 1, 2, 3, 700, 701, len(text)]
    for start, end in pairwise(cuts):
        many.follow(text[:end])
        assert len(many) == end > start
    for view, other in zip([*one._earlier, *one._last], [*many._earlier, *many._last], strict=True):
        n = len(text) if len(view) != 1 << token_index._BITS else len(view)
        assert np.array_equal(view[3:n], other[3:n])
    assert many.matched > 2 and many.draft(8)


def test_a_repetition_is_continued_beyond_its_end() -> None:
    index = TokenIndex()
    index.follow([9, 8, 7, 1, 2, 3, 1, 2, 3])
    assert index.draft(7) == [1, 2, 3, 1, 2, 3, 1]
    index.follow([9, 8, 7, 1, 2, 3, 1, 2, 3, 5, 5, 5])
    assert index.draft(3) == [5, 5, 5]


def test_replaced_text_is_still_found_but_not_across_the_break() -> None:
    index, head, old, new = TokenIndex(), ids(50), ids(30, 1), ids(30, 2)
    index.follow(head + old)
    index.cut(50)
    index.follow(head)
    assert index.draft(30) == old  # what followed the same text before
    index.follow(head + new)
    index.follow(head + new + old[:5])
    assert index.draft(99) == old[5:]  # the text ends there
    index.cut(0)
    index.follow(new[:10])
    assert index.draft(5) == new[10:15]


def test_an_index_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_index, "MAX_INDEXED", 256)
    rng, index, text = random.Random(3), TokenIndex(), list[int]()
    for _ in range(2000):
        if rng.random() < 0.02:
            text += ids(rng.randint(1, 300), rng.randrange(9))
            index.follow(text)
        elif rng.random() < 0.02:
            del text[rng.randrange(len(text) + 1) :]
            index.cut(len(text))
            index.follow(text)
        else:
            text.append(rng.randrange(50))
            index.push(text[-1])
        assert len(index) <= 256
        if index.place is not None:
            match = index._text[index.place - index.matched : index.place].tolist()
            assert match == text[len(text) - index.matched :]


def test_other_continuations_of_the_last_tokens_are_rivals() -> None:
    def rival(*text: int) -> Rival:
        index = TokenIndex()
        index.follow(text)
        return index.rival

    assert rival(1, 2, 3, 9, 1, 2) == Rival.NONE
    assert rival(1, 2, 3, 9, 1, 2, 3, 8, 1, 2) == Rival.NONE  # both continue with 3
    assert rival(1, 2, 3, 9, 1, 2, 4, 8, 1, 2) == Rival.EQUAL
    assert rival(1, 2, 3, 9, 7, 1, 2, 4, 8, 7, 1, 2) == Rival.SHORTER
    index = TokenIndex()
    index.follow([1, 2, 3, 9, 1, 2, 4, 9, 1, 2])
    assert index.push(4) and index.rival == Rival.NONE  # the other continuation was not drawn


def test_of_equal_matches_the_more_frequent_continuation_is_drafted() -> None:
    def draft(*text: int) -> list[int]:
        index = TokenIndex()
        index.follow(text)
        return index.draft(1)

    assert draft(7, 1, 2, 3, 8, 1, 2, 3, 9, 1, 2, 4, 6, 1, 2) == [3]
    assert draft(7, 1, 2, 3, 9, 1, 2, 4, 6, 1, 2) == [4]  # the later one
    assert draft(7, 1, 2, 3, 8, 1, 2, 3, 6, 1, 2, 4, 6, 1, 2) == [4]  # the longer one


def test_the_memory_of_an_index_is_a_few_bytes_a_token() -> None:
    index = TokenIndex()
    index.follow(np.random.default_rng(0).integers(0, 65536, 262_144).tolist())
    assert index.nbytes < 262_144 * 24


# How much is drafted ---------------------------------------------------------------------------------------------------


def drafted(lookup: Lookup, most: int, forced: Sequence[int] = ()) -> list[int]:
    """The draft of a sequence that is alone."""
    tokens, chances = lookup.predict(most, forced)
    (length,) = draft_lengths([chances], lookup.costs)
    return tokens[:length]


def repeated(lookup: Lookup, text: list[int], times: int, cost: float) -> list[int]:
    """Lengths of the drafts while ``text`` is drawn over and over, with a step of n tokens at 1 + cost (n - 1) seconds."""
    lengths = []
    for token in text * times:
        lookup.push(token)
        lengths.append(len(drafted(lookup, 15)))
        lookup.costs.record(1 + lengths[-1], 1 + cost * lengths[-1])
    return lengths


def test_drafts_grow_where_text_repeats_and_stop_where_it_does_not() -> None:
    text = ids(100)
    lengths = repeated(Lookup(), text, 3, 0.1)
    assert max(lengths[:100]) <= 3 and np.mean(lengths[-50:]) > 10
    # Where a token more costs more than a step, one is tried now and then.
    assert np.mean(repeated(Lookup(), text, 3, 1.5)[-100:]) < 0.05
    lookup, rng = Lookup(), random.Random(0)
    prose = [rng.choice([5, 6]) for _ in range(400)]  # short matches everywhere, at random
    assert np.mean(repeated(lookup, prose, 1, 0.6)[200:]) < 0.3


def test_forced_tokens_are_drafted_without_a_match() -> None:
    lookup = Lookup()
    for n in range(1, 17):
        lookup.costs.record(n, 1 + 0.1 * n)
    lookup.push(1)
    assert drafted(lookup, 15, [4, 5, 6]) == [4, 5, 6]
    assert drafted(lookup, 2, [4, 5, 6]) == [4, 5]
    assert drafted(lookup, 0, [4, 5, 6]) == []


def test_costs_are_measured_estimated_and_forgotten() -> None:
    costs = StepCosts()
    assert costs.seconds(1) is None and costs.seconds(4) is None
    costs.record(1, 1.0)
    assert costs.seconds(1) == 1.0 and 1.0 < (costs.seconds(4) or 0) < 2.0
    costs.record(8, 3.0)
    assert costs.seconds(4) == pytest.approx(1 + 2 * 3 / 7)
    costs.record(8, 1000.0)  # an outlier
    assert (costs.seconds(8) or 0) < 4
    costs.record(4, 9.0)
    for _ in range(33):
        costs.record(1, 1.0)
    assert (costs.seconds(4) or 9) < 4 and (costs.seconds(8) or 0) > 2  # one measurement is trusted less than two
    for _ in range(300):
        costs.record(1, 1.0)
    assert (costs.seconds(8) or 0) < 2


def test_ambiguous_matches_are_told_from_clear_ones() -> None:
    lookup, rng = Lookup(), random.Random(0)
    for n in range(1, 17):
        lookup.costs.record(n, 1 + 0.2 * (n - 1))
    # After 1, 2 comes any of eight tokens; after 3, 4 always 5.
    for _ in range(60):
        for token in [*([1, 2, rng.randrange(10, 18)] if rng.random() < 0.5 else [3, 4, 5]), rng.randrange(100, 9999)]:
            lookup.push(token)
    for token in (3, 4):
        lookup.push(token)
    assert lookup.index.rival == Rival.NONE and lookup.predict(1).chances[0] > 0.6 and drafted(lookup, 3)[0] == 5
    for token in (9, 1, 2):
        lookup.push(token)
    assert lookup.index.rival == Rival.EQUAL and lookup.predict(1).chances[0] < 0.4


def test_a_step_of_several_sequences_takes_the_most_probable_tokens() -> None:
    costs = StepCosts()
    assert draft_lengths([[0.9]], costs) == [0]  # nothing measured yet
    for n in range(1, 33):
        costs.record(n, 1 + 0.1 * (n - 1))
    sure, good, bad = [0.99] * 3, [0.8, 0.6, 0.4, 0.3], [0.1, 0.01]
    assert draft_lengths([sure, [], good, bad], costs) == [3, 0, 1, 0]
    assert draft_lengths([[0.99] * 7] * 8, costs) == [3] * 8  # no step has more than 32 tokens
    assert draft_lengths([[0.05], [0.02]], costs) == [0, 0]
    assert draft_lengths([], costs) == []
    steep = StepCosts()
    for n in range(1, 33):
        steep.record(n, float(n))
    assert draft_lengths([sure, good], steep) == [0, 0]


# Steps with drafts -------------------------------------------------------------------------------------------------------


def state_bits(sequence: TokenSequence) -> list[bytes]:
    state = sequence.state
    parts = [state.conv, state.ssm, *(x for pair in state.kv(0, state.position) for x in pair)]
    return [part.contiguous().view(torch.uint8).numpy().tobytes() for part in parts]


@pytest.mark.parametrize("seed", range(6))
def test_a_step_with_any_draft_leaves_the_same_bits(seed: int) -> None:
    rng, prompt, tokens = random.Random(seed), ids(40, seed), ids(60, seed + 50)
    plain, drafted = (TokenSequence(small_model().model, 256, "f32") for _ in range(2))
    for sequence in (plain, drafted):
        sequence.advance(prompt, [30])
    for i, token in enumerate(tokens):
        expected = np.array(plain.step(token))
        draft: list[int] = []
        if not drafted.expects(token):
            draft = tokens[i + 1 : i + 1 + rng.randint(0, 9)]
            if rng.random() < 0.5 and draft:
                draft[rng.randrange(len(draft))] = 305
        assert np.array_equal(drafted.step(token, draft), expected)
        assert drafted.tokens == plain.tokens
        if rng.random() < 0.15:
            assert state_bits(drafted) == state_bits(plain) and drafted.consistent
        if rng.random() < 0.1:
            drafted.checkpoint()
            plain.checkpoint()
            assert drafted.positions == plain.positions
    counters = drafted.counters
    assert counters.decoded == 60 and counters.steps == 60 - counters.accepted < 60 < 60 + counters.drafted
    at = drafted.positions[-1]
    for sequence in (plain, drafted):
        sequence.advance([*sequence.tokens[:at], 5, 6])
    assert state_bits(drafted) == state_bits(plain)


def test_a_draft_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    sequence = TokenSequence(small_model().model, 20, "f32")
    sequence.advance(ids(15))
    before = state_bits(sequence)
    with pytest.raises(ContextFullError):
        sequence.step(5, [1, 2, 3, 4, 5])
    assert state_bits(sequence) == before and len(sequence.tokens) == 15
    sequence.step(5, [1, 2, 3, 4])


def test_a_step_that_allocates_memory_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    draft_all(monkeypatch, lambda _, most, __=(): certain([305][:most]))
    sequence = TokenSequence(small_model().model, 1024, "f32")
    sequence.advance(ids(40))
    steps, costs = DraftedSteps(sequence, Sampler(Sampling(temperature=0))), sequence.lookup.costs
    steps.step(304, 9)  # allocates the copies of the state
    assert costs.seconds(2) is None
    steps.step(304, 9)
    assert costs.seconds(2) is not None


# Whole replies -----------------------------------------------------------------------------------------------------------

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "seed": 1},
    "seeded": {"temperature": 1.0, "top_p": 0.9, "seed": 3},
    "penalties": {
        "temperature": 0.8,
        "repeat_penalty": 1.3,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "penalty_last_n": 20,
        "seed": 5,
    },
    "filters": {"temperature": 1.2, "top_k": 40, "min_p": 0.01, "typical_p": 0.9, "logit_bias": {30: 2.0}, "seed": 11},
    "stop": {"temperature": 1.0, "stop": ["e", "ab"], "seed": 13},
    "schema": {"temperature": 1.5, "top_p": 1.0, "schema": random_schema(4), "seed": 17},
}
DOCUMENT = {"text": "Mira counted 42 herons at the lake. The quick brown fox jumps over the lazy dog. " * 3}


def outcome(model: Jamba, n: int, options: dict[str, Any], lookup: bool, ctx: int = 1024) -> tuple[Any, ...]:
    """All that a reply leaves behind: tokens, text, why it ended, random state, sequence, state, and the reply after it."""
    with model.session(store=False, ctx=ctx) as session:
        try:
            text = "".join(session.send("Tell.", documents=[DOCUMENT], max_tokens=n, lookup=lookup, **options))
        except JambaError as error:  # a schema that does not fit
            text = str(error)
        left = (
            list(session._reply_ids),
            text,
            session.stats.finish,
            session._random_state,
            list(session.sequence.tokens),
            state_bits(session.sequence),
            session.sequence.positions,
            session.stats.decoded_tokens,
        )
        if ctx <= 200:
            return (*left, "")
        short: dict[str, Any] = {"max_tokens": 6, "lookup": lookup, "temperature": 0}
        # A message whose reply cannot fit is taken back.
        again = session.answer(**short) if session.conversation.turns else session.send("Tell.", **short)
        return (*left, "".join(again))


def compare(model: Jamba, n: int, options: dict[str, Any], seed: int, ctx: int = 1024) -> None:
    """The reply without lookup, with its own drafts, and with drafts of right and wrong tokens."""
    plain = outcome(model, n, options, False, ctx)
    assert outcome(model, n, options, True, ctx) == plain
    with drafts_of(plain[0], seed, model.config.vocab_size):
        assert outcome(model, n, options, True, ctx) == plain


@pytest.mark.parametrize("way", WAYS)
def test_replies_are_the_same_with_lookup_and_without(way: str) -> None:
    for seed in range(3):
        options = dict(WAYS[way])
        if "seed" in options:
            options["seed"] += 100 * seed
        if "schema" in options:
            options["schema"] = random_schema(seed)
        compare(small_model(), 300 if way == "schema" else 40, options, seed)


@pytest.mark.parametrize("quant", ["q8_0", "q4_0", "q4_k_m", "q6_k", "iq4_xs"])
def test_replies_of_quantized_models_are_the_same(quant: str, tmp_path: Path) -> None:
    model = Jamba.load(small_file(tmp_path, quant))
    for i, way in enumerate(("greedy", "seeded", "penalties")):
        compare(model, 40, WAYS[way], i)


def test_a_reply_ends_at_the_same_limit() -> None:
    plain = small_model().session(store=False)
    for _ in plain.send("Tell.", documents=[DOCUMENT], max_tokens=1, temperature=0):
        pass
    room = plain.stats.prompt_tokens
    never = {t: float("-inf") for t in small_model().tokenizer.stop_ids}
    for extra in (1, 2, 3, 9):
        compare(small_model(), 50, {"temperature": 0, "seed": 1, "logit_bias": never}, extra, ctx=room + extra)
        compare(small_model(), extra, {"temperature": 0, "seed": 1, "logit_bias": never}, extra)


def test_replies_of_the_demo_model_are_the_same_in_fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepCosts, "seconds", lambda self, tokens: 1 + 0.1 * (tokens - 1))  # not this machine's
    model = Jamba.load("jamba:tiny")
    text = "\n".join(r.text for r in reports.make_reports(random.Random(1), 6, held_out=True, first=1))
    for options in ({"temperature": 0}, {"temperature": 1.0, "seed": 2}):
        said = {}
        for lookup in (False, True):
            with model.session(store=False) as session:
                list(session.send(f"{text}\n\nSummarize the reports.", max_tokens=80, lookup=lookup, **options))
                said[lookup] = session._reply_ids, state_bits(session.sequence)
                steps = session.stats.decode_steps
        assert said[True] == said[False]
        assert steps < 60 and session.stats.accepted_tokens == session.stats.decoded_tokens - steps


@pytest.mark.parametrize("at", [1, 4, 9, 14])
def test_a_reply_closed_half_way_goes_on_as_if_it_had_not_stopped(at: int) -> None:
    model, options = small_model(), {**WAYS["seeded"], "logit_bias": {t: float("-inf") for t in range(3)}}
    with model.session(store=False) as session:
        whole = "".join(session.send("Tell.", documents=[DOCUMENT], max_tokens=30, lookup=False, **options))
        tokens, bits = list(session._reply_ids), state_bits(session.sequence)
    with drafts_of(tokens, at, model.config.vocab_size), model.session(store=False) as session:
        pieces = session.send("Tell.", documents=[DOCUMENT], max_tokens=30, **options)
        begun = [next(pieces) for _ in range(at)]
        pieces.close()
        assert session.sequence.consistent
        assert session.sequence.tokens == [*session._prompt, *session._reply_ids][: len(session.sequence.tokens)]
    left = len(tokens) - len(session._reply_ids)
    with drafts_of(tokens[len(session._reply_ids) :], at, model.config.vocab_size):
        begun += session.extend(max_tokens=left, **options)
    assert session._reply_ids == tokens and state_bits(session.sequence) == bits
    assert "".join(begun) == whole


def test_the_state_of_a_reply_under_way_is_that_of_its_tokens() -> None:
    model = small_model()
    with model.session(store=False) as session:
        list(session.send("Tell.", documents=[DOCUMENT], max_tokens=30, lookup=False, temperature=0))
        tokens = list(session._reply_ids)
    with drafts_of(tokens, 1, model.config.vocab_size, share=1.0), model.session(store=False) as session:
        for _ in session.send("Tell.", documents=[DOCUMENT], max_tokens=30, temperature=0):
            assert session.state.position == len(session.sequence.tokens)
        assert session._reply_ids == tokens


@pytest.mark.parametrize("when", [3, 4, 5])
def test_interrupted_within_a_step_a_reply_keeps_its_tokens(when: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, stepped, steps = small_model(), TokenSequence.stepped, 0

    def interrupted(self: TokenSequence, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == when:
            raise KeyboardInterrupt  # the state is ahead of the tokens
        return stepped(self, *arguments)

    with model.session(store=False) as session:
        list(session.send("Tell.", documents=[DOCUMENT], max_tokens=30, lookup=False, temperature=0))
        tokens = list(session._reply_ids)
    with drafts_of(tokens, 1, model.config.vocab_size), model.session(store=False) as session:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(TokenSequence, "stepped", interrupted)
            list(session.send("Tell.", documents=[DOCUMENT], max_tokens=30, temperature=0))
        assert session.sequence.consistent and session._reply_ids == tokens[:when]
        list(session.extend(max_tokens=30 - when, temperature=0))
        assert session._reply_ids[:when] == tokens[:when] and session.sequence.consistent


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_thousand_replies_are_the_same_with_lookup_and_without(tmp_path: Path) -> None:
    kinds = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k"]
    done = 0
    for kind, experts in [(k, e) for k in [*kinds, "iq4_nl", "iq4_xs"] for e in (1, 4)]:
        model = Jamba.load(small_file(tmp_path, kind, experts))
        for i, way in enumerate(list(WAYS) * 4):
            options = {**WAYS[way], "seed": 1000 * done + i}
            if way == "schema":
                options["schema"] = random_schema(1000 * done + i)
            compare(model, 120 if way == "schema" else 24, options, done)
            done += 2
    assert done >= 1000
