"""Citations checked against the documents: kept where the answer's words stand, moved or doubted where they do not."""

from __future__ import annotations

from random import Random

import pytest

from jambacli.data import reports as grammar
from jambacli.documents.citation_check import Grounded, ground
from jambacli.documents.reader import Entry, Source


def entries(*texts: str) -> list[Entry]:
    return [Entry(f"x.pdf, page {i}", t, (Source("x.pdf", "page", i, i),)) for i, t in enumerate(texts, 1)]


PAGES = entries(
    "The lease ends on 30 June. The rent is 900 a month.",
    "Notice must be given 90 days before. The landlord is Mira Okafor.",
    "The deposit is 1800. The tenant is Tomas Lindqvist.",
)


def test_what_says_it_stays() -> None:
    assert ground("The landlord is Mira Okafor.", [1], PAGES) == Grounded((1,))
    assert ground("Mira Okafor; the rent is 900.", [0, 1], PAGES) == Grounded((0, 1))


def test_a_wrong_page_is_moved_to_the_one_that_says_it() -> None:
    assert ground("The landlord is Mira Okafor.", [2], PAGES) == Grounded((1,), moved=True)
    assert ground("The deposit is 1800.", [0, 1], PAGES) == Grounded((2,), moved=True)


def test_where_no_page_is_sure_the_claim_is_kept() -> None:
    # The facts of an answer about several pages stand on several.
    spread = "Rent 900 until 30 June, deposit 1800 by Tomas Lindqvist, notice 90 days to Mira Okafor."
    assert not ground(spread, [1], PAGES).moved
    # Two pages say the same.
    twice = entries("The code is walnut.", "The code is walnut.", "Nothing else.")
    assert ground("It is walnut.", [2], twice) == Grounded((2,), bare=True)


@pytest.mark.parametrize("answer", ["", "Ja.", "!?", "The is"])
def test_an_answer_without_telling_words_changes_nothing(answer: str) -> None:
    assert ground(answer, [2], PAGES).ids == (2,)
    assert not ground(answer, [2], PAGES).moved


def test_one_word_is_no_evidence() -> None:
    assert ground("Lindqvist.", [0], PAGES) == Grounded((0,), bare=True)


def test_no_citations_stay_none_and_one_document_is_itself() -> None:
    assert ground("Mira Okafor", [], PAGES) == Grounded(())
    assert ground("Mira Okafor", [0], PAGES[:1]) == Grounded((0,))


def test_every_true_answer_about_200_reports_is_led_to_its_page() -> None:
    random = Random(4)
    reports = [r for _ in range(4) for r in grammar.make_reports(random, 50, first=1)]
    pages = entries(*(r.text for r in reports))
    for i in range(0, 200, 7):
        for kind in ("count", "where", "code", "day"):
            said = grammar.ask(random, reports, i, kind).answer
            wrong = random.choice([j for j in range(200) if j != i])
            assert ground(said, [i], pages) == Grounded((i,))
            assert ground(said, [wrong], pages).ids == (i,)
