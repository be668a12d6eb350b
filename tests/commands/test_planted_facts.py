"""Facts planted on known pages of a 200-page PDF, asked of the demo model: it answers as often as its recall predicts."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import pytest

from jambacli.data import reports as grammar
from jambacli.data import words
from jambacli.documents.citation_check import check_citations
from jambacli.documents.citations import Cited, places_of
from jambacli.documents.load import read_documents
from jambacli.documents.pages import entries_of
from jambacli.documents.reader import Reader, Task
from jambacli.engine.options import GenerationOptions
from jambacli.evaluation.needle import KINDS, needle
from jambacli.hub.demo import demo_model_path
from jambacli.session.options import SessionOptions
from tests.support.document_files import pdf_bytes

PAGES, FACTS = 200, 40


@pytest.mark.slow
def test_planted_facts_are_found_as_often_as_recall_promises(tmp_path: Path) -> None:
    from jambacli.api import Jamba

    model = Jamba.load(demo_model_path())
    rng = random.Random(5)
    reports = grammar.make_reports(rng, FACTS, held_out=True, first=1)
    pages = [" ".join(rng.choices(words.REMARKS, k=rng.randint(1, 3))) for _ in range(PAGES)]
    planted = sorted(rng.sample(range(PAGES), FACTS))
    for page, report in zip(planted, reports, strict=True):
        pages[page] = report.text
    path = tmp_path / "report.pdf"
    path.write_bytes(pdf_bytes(pages))
    entries = entries_of(read_documents([str(path)]))
    assert [e.sources[0].first for e in entries] == list(range(1, PAGES + 1))

    generation = GenerationOptions(temperature=0, max_tokens=48)
    reader = Reader(model, options=SessionOptions(store=False), generation=generation)
    right = cited_right = by_model = 0
    for i, page in enumerate(planted):
        question = grammar.ask(rng, reports, i, rng.choice(KINDS))
        cited = Cited()
        said = "".join(cited.answer(reader.stream(entries, Task(question.text, citations=True))))
        found = re.search(rf"(?<!\w){re.escape(question.value)}(?!\w)", said) is not None
        right += found
        named = cited.cited(entries)
        checked = check_citations(said, named, entries)
        cited_right += found and [s.first for s in places_of(checked.ids, entries)] == [page + 1]
        by_model += found and page in named
    assert reader.session is not None
    tokens = reader.session.stats.document_tokens
    assert reader.session.stats.replayed_document_tokens == 0
    reader.close()

    # The model's recall in the same mass of reports alone, as many as its grammar can make.
    length = min(tokens, sum(len(model.tokenizer.encode(r.text + "\n")) for r in reports))
    scores = [found.correct for found in needle(model, length, documents=4, questions=10)]
    promised = sum(scores) / len(scores)
    slack = 2 * math.sqrt(max(promised * (1 - promised), 0.05) * (1 / FACTS + 1 / len(scores)))
    print(
        f"{right}/{FACTS} right, {cited_right} of them led to their page ({by_model} by the model alone); "
        f"recall {promised:.2f} at {length} tokens"
    )
    assert right / FACTS >= promised - slack
    # docs/demo_model.md: 34 of 37 by the model itself; the check of its words against the pages leads to the others.
    assert by_model >= 0.75 * right
    assert cited_right >= 0.9 * right
