"""Perplexity: how a text is cut, and the figure against one computed independently."""

from __future__ import annotations

import math

import pytest
import torch

from jambacli.errors import JambaError
from jambacli.evaluation.perplexity import cut, perplexity
from tests.support.small_models import small_model

TEXT = "herons counted at the lake: 42. the quick brown fox jumps over the lazy dog. " * 12


def test_the_figure_is_that_of_every_scored_token_read_from_the_windows_beginning() -> None:
    model = small_model()
    windows = cut(model.tokenizer, TEXT, 64)
    got = perplexity(model, windows, kv_type="f32")
    losses = []
    for window in windows:
        for at in range(window.first, len(window.ids)):
            state = model.model.new_state(at, "f32")
            logits = model.model.forward(torch.tensor(window.ids[:at]), state, logits="last")
            assert logits is not None
            p = torch.softmax(logits[-1].double(), -1)[window.ids[at]]
            losses.append(-math.log(float(p)))
        break  # one window says enough: each token is read from scratch
    first = perplexity(model, windows[:1], kv_type="f32")
    assert first.nll == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    spread = torch.tensor(losses).std()
    assert first.nll_error == pytest.approx(float(spread) / math.sqrt(len(losses)), rel=1e-3)
    assert first.value == pytest.approx(math.exp(first.nll))
    assert got.windows == len(windows) > 1 and got.tokens == sum(len(w.ids) - w.first for w in windows)


def test_text_is_cut_into_whole_windows_whose_first_half_is_context() -> None:
    tokenizer = small_model().tokenizer
    windows = cut(tokenizer, TEXT, 32)
    start = [tokenizer.bos_id] if tokenizer.add_bos else []
    assert {len(w.ids) for w in windows} == {32} and {w.first for w in windows} == {16}
    joined = [i for w in windows for i in w.ids[len(start) :]]
    assert joined == tokenizer.encode(TEXT)[: len(joined)]
    assert len(tokenizer.encode(TEXT)) - len(joined) < 32


def test_documents_are_scored_whole_and_a_short_text_from_its_first_token() -> None:
    tokenizer = small_model().tokenizer
    windows = cut(tokenizer, "one fox.\n\f\nanother dog.\n", 512)
    assert [tokenizer.decode(w.ids) for w in windows] == ["one fox.", "another dog."]
    assert {w.first for w in windows} == {1}
    assert cut(tokenizer, "a short one", 512)[0].first == 1


@pytest.mark.parametrize("most", [4, 20, 31, 32, 33, 63, 64, 100])
def test_no_more_tokens_are_read_than_asked_for_and_whole_windows_stay_the_same(most: int) -> None:
    tokenizer = small_model().tokenizer
    whole, some = cut(tokenizer, TEXT, 32), cut(tokenizer, TEXT, 32, most)
    assert sum(len(w.ids) for w in some) == most - (most % 32 if most > 32 else 0)
    assert some == whole[: most // 32] or (len(some) == 1 and some[0].ids == whole[0].ids[:most] and some[0].first == 1)

    documents = "one fox.\n\f\nanother dog.\n\f\n" + TEXT
    whole, some = cut(tokenizer, documents, 32), cut(tokenizer, documents, 32, most)
    tokens = sum(len(w.ids) for w in some)
    assert most - 1 <= tokens <= most or (tokens < most and some == whole)
    assert some[:-1] == whole[: len(some) - 1] and some[-1].ids == whole[len(some) - 1].ids[: len(some[-1].ids)]


@pytest.mark.parametrize("text", ["", "\f\f"])
def test_nothing_to_score_is_said(text: str) -> None:
    with pytest.raises(JambaError, match="too short"):
        cut(small_model().tokenizer, text, 64)


def test_too_few_tokens_are_refused_by_the_options_name() -> None:
    for option, sizes in (("ctx", (3, None)), ("tokens", (64, 3))):
        with pytest.raises(JambaError, match=f"{option} 3 leaves nothing to score"):
            cut(small_model().tokenizer, TEXT, *sizes)
