"""Citations checked against the documents: kept where the answer's words stand, moved or doubted where they do not."""

from __future__ import annotations

from random import Random

import pytest

from jambacli.data import reports as grammar
from jambacli.documents.citation_check import CheckedCitations, check_citations
from jambacli.documents.pages import DocumentEntry, Source


def entries(*texts: str) -> list[DocumentEntry]:
    return [DocumentEntry(f"x.pdf, page {i}", t, (Source("x.pdf", "page", i, i),)) for i, t in enumerate(texts, 1)]


PAGES = entries(
    "The lease ends on 30 June. The rent is 900 a month.",
    "Notice must be given 90 days before. The landlord is Mira Okafor.",
    "The deposit is 1800. The tenant is Tomas Lindqvist.",
)


def test_what_says_it_stays() -> None:
    assert check_citations("The landlord is Mira Okafor.", [1], PAGES) == CheckedCitations((1,))
    assert check_citations("Mira Okafor; the rent is 900.", [0, 1], PAGES) == CheckedCitations((0, 1))


def test_a_wrong_page_is_moved_to_the_one_that_says_it() -> None:
    assert check_citations("The landlord is Mira Okafor.", [2], PAGES) == CheckedCitations((1,), replaced=True)
    assert check_citations("The deposit is 1800.", [0, 1], PAGES) == CheckedCitations((2,), replaced=True)


def test_where_no_page_is_sure_the_claim_is_kept() -> None:
    # The facts of an answer about several pages stand on several.
    spread = "Rent 900 until 30 June, deposit 1800 by Tomas Lindqvist, notice 90 days to Mira Okafor."
    assert not check_citations(spread, [1], PAGES).replaced
    # Two pages say the same.
    twice = entries("The code is walnut.", "The code is walnut.", "Nothing else.")
    assert check_citations("It is walnut.", [2], twice) == CheckedCitations((2,), unsupported=True)


@pytest.mark.parametrize("answer", ["", "Ja.", "!?", "The is"])
def test_an_answer_without_telling_words_changes_nothing(answer: str) -> None:
    assert check_citations(answer, [2], PAGES).ids == (2,)
    assert not check_citations(answer, [2], PAGES).replaced


def test_one_word_is_no_evidence() -> None:
    assert check_citations("Lindqvist.", [0], PAGES) == CheckedCitations((0,), unsupported=True)


def test_no_citations_stay_none_and_one_document_is_itself() -> None:
    assert check_citations("Mira Okafor", [], PAGES) == CheckedCitations(())
    assert check_citations("Mira Okafor", [0], PAGES[:1]) == CheckedCitations((0,))


def test_every_true_answer_about_200_reports_is_led_to_its_page() -> None:
    random = Random(4)
    reports = [r for _ in range(4) for r in grammar.make_reports(random, 50, first=1)]
    pages = entries(*(r.text for r in reports))
    for i in range(0, 200, 7):
        for kind in ("count", "where", "code", "day"):
            said = grammar.ask(random, reports, i, kind).answer
            wrong = random.choice([j for j in range(200) if j != i])
            assert check_citations(said, [i], pages) == CheckedCitations((i,))
            assert check_citations(said, [wrong], pages).ids == (i,)
