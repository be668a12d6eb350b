"""Recall questions: texts that fit their length, facts that lie where they are said to, answers judged by whole words."""

from __future__ import annotations

import pytest

from jambacli.data import words
from jambacli.errors import JambaError, UsageError
from jambacli.evaluation.needle import KINDS, Trial, needle, parse_kinds, reports_of
from tests.support.small_models import small_model


def _found(expected: str, reply: str) -> Trial:
    return Trial(500, 0.5, "count", "How many?", expected, reply)


@pytest.mark.parametrize(
    ("expected", "reply", "right"),
    [
        ("42", "Mira counted 42 herons.", True),
        ("42", "Mira counted 142 herons.", False),
        ("42", "Mira counted 420 herons.", False),
        ("Lake Tuz", "It was at Lake Tuz.", True),
        ("Lake Tuz", "It was at Lake Tuzo.", False),
        ("27 frogs", "", False),
    ],
)
def test_an_answer_is_right_when_it_has_the_very_words(expected: str, reply: str, right: bool) -> None:
    assert _found(expected, reply).correct is right


@pytest.mark.parametrize("tokens", [400, 1200])
def test_reports_fill_the_length_and_have_names_training_never_saw(tokens: int) -> None:
    model = small_model()
    reports = reports_of(model, tokens, seed=3)
    used = len(model.tokenizer.encode("\n".join(r.text for r in reports)))
    longest = max(len(model.tokenizer.encode(r.text)) for r in reports)
    assert tokens - 60 - 2 * longest < used <= tokens
    assert all(words.is_held_out(r.who.split()[1]) for r in reports)
    assert len({r.animal for r in reports}) == len(reports)
    assert reports_of(model, tokens, seed=3) == reports != reports_of(model, tokens, seed=4)


def test_lengths_that_fit_no_report_or_too_many_are_refused() -> None:
    with pytest.raises(JambaError, match="no report fits"):
        reports_of(small_model(), 50, seed=0)
    with pytest.raises(JambaError, match="the grammar can make"):
        reports_of(small_model(), 100_000, seed=0)


def test_questions_go_through_the_text_from_its_beginning_to_its_end() -> None:
    found = list(needle(small_model(), 900, documents=1, questions=6, kinds=("count", "place")))
    assert [f.depth for f in found] == sorted(f.depth for f in found)
    assert found[0].depth < 0.2 and found[-1].depth > 0.8
    assert {f.kind for f in found} <= {"count", "place"}
    assert not any(f.correct for f in found)  # random weights recall nothing


def test_kinds_are_read_and_unknown_ones_named() -> None:
    assert parse_kinds(None) == parse_kinds("all") == KINDS
    assert {"who", "number", "code"} < set(KINDS)
    assert parse_kinds("who, code") == ("who", "code")
    with pytest.raises(UsageError, match="colour"):
        parse_kinds("who,colour")
