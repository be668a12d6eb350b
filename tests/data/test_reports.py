"""The corpus, its tokenizer and its batches: held-out names stay out, answers stand in the text, ids match the runtime's."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from jambacli.data import reports as grammar
from jambacli.data import words
from jambacli.training.batches import Batches, key_value
from jambacli.training.demo_model import CONFIG, make_tokenizer
from jambacli.training.tokenizer import MARKERS, Encoder


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    make_tokenizer(path, samples=300)
    return path


@pytest.mark.parametrize("held_out", [False, True])
def test_made_names_come_from_their_share_alone(held_out: bool) -> None:
    random = Random(1)
    for report in grammar.make_reports(random, 40, held_out):
        surname, place = report.who.split()[1], report.place.split()[1]
        assert words.is_held_out(surname) == words.is_held_out(place) == held_out
        assert report.code in words.CODE_WORDS or words.is_held_out(report.code) == held_out


@pytest.mark.parametrize("kind", grammar.KINDS)
def test_every_answer_stands_in_its_report_and_nowhere_else(kind: str) -> None:
    random = Random(kind)
    for _ in range(20):
        reports = grammar.make_reports(random, 5)
        question = grammar.ask(random, reports, 2, kind)
        assert re.search(rf"\b{re.escape(question.value)}\b", question.answer)
        assert re.search(rf"\b{re.escape(question.value)}\b", reports[2].text) or kind == "what"
        if kind in ("who", "where", "place"):
            assert not any(question.value in r.text for i, r in enumerate(reports) if i != 2)


def test_a_summary_lists_the_fact_of_every_report() -> None:
    random = Random(2)
    reports = grammar.make_reports(random, 8)
    answer = grammar.summarize(random, reports).answer
    assert all(f"Report {r.number} on {r.animal}: {r.fact}." in answer for r in reports)


def test_ids_are_those_transformers_and_the_runtime_make(tokenizer_json: Path) -> None:
    import transformers

    from jambacli.convert.vocabulary import tokenizer_metadata
    from jambacli.text.tokenizer import Tokenizer

    encoder = Encoder(tokenizer_json)
    assert encoder.vocab_size == CONFIG["vocab_size"]
    (tokenizer_json.parent / "tokenizer_config.json").write_text('{"bos_token": "<|startoftext|>"}')
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_json))
    metadata = {k: v for k, v, _ in tokenizer_metadata(tokenizer_json.parent, CONFIG, CONFIG["vocab_size"], None)}
    ours = Tokenizer(metadata)
    random = Random(3)
    for _ in range(30):
        for span in grammar.chat(random, grammar.make_reports(random, 3, held_out=True), 3):
            if span.marker:
                assert ours.marker_id(span.text) == MARKERS.index(span.text)
                continue
            ids = encoder.text(span.text)
            assert ids == theirs.encode(span.text, add_special_tokens=False) == ours.encode(span.text)
            assert ours.decode(ids) == span.text


@pytest.mark.parametrize("seed", range(8))
def test_the_chat_template_writes_what_was_trained_on(seed: int) -> None:
    from importlib.resources import files

    import jinja2

    source = (files("jambacli.training") / "chat_template.jinja").read_text(encoding="utf-8")
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    random = Random(seed)
    reports = grammar.make_reports(random, 4)
    laid_out = [replace(d, id=i) for i, d in enumerate(grammar.lay_out(random, reports, apart=True))]
    spans = grammar.documents(laid_out, cite=True) + grammar.message(grammar.USER, "Who?")
    text = "".join(s.text for s in spans)
    documents = [{"text": d.text, **({"title": d.title} if d.title else {})} for d in laid_out]
    rendered = template.render(
        bos_token="<|startoftext|>", messages=[{"role": "user", "content": "Who?"}], documents=documents,
        knobs={"citation_mode": "fast"}, add_generation_prompt=True,
    )  # fmt: skip
    assert rendered == "<|startoftext|>" + text + "<|bom|><|assistant|>"


def test_every_answer_cites_the_document_of_its_report() -> None:
    for seed in range(40):
        random = Random(seed)
        spans = grammar.chat(random, grammar.make_reports(random, 5), 6, "cite")
        body, said = "".join(s.text for s in spans).split(grammar.DOCUMENTS_END, 1)
        document_ids = dict(
            re.findall(r"Document ID: (\d+)\n(?:Title: .*\n)?Text: ([\s\S]*?)(?=\n\n## Document|\n$)", body)
        )
        answers = re.findall(r"<\|assistant\|> (.*?)<citations>\[([\d, ]+)\]</citations><\|eom\|>", said, re.DOTALL)
        assert len(answers) == 6
        for answer, ids in answers:
            if not answer.startswith("Here is a summary"):
                who = next(
                    w for w in re.findall(r"[A-Z][a-z]+ [A-Z][a-z]+", answer) if w.split()[0] in words.FIRST_NAMES
                )
                assert [i for i, text in document_ids.items() if who in text] == [ids]


def test_tokens_of_documents_and_cited_answers_know_their_document(tokenizer_json: Path) -> None:
    encoder = Encoder(tokenizer_json)
    for seed in range(10):
        random = Random(seed)
        reports = grammar.make_reports(random, 4)
        ids, weights, document_ids = encoder.sample(grammar.chat(random, reports, 4, "cite"), 0.1)
        assert len(ids) == len(weights) == len(document_ids)
        end = ids.index(MARKERS.index(grammar.DOCUMENTS_END))
        texts: dict[str, list[int]] = {}
        for id_, document_id in zip(ids[:end], document_ids[:end], strict=True):
            texts.setdefault(document_id, []).append(id_)
        for report in reports:
            found = [
                document_id
                for document_id, tokens in texts.items()
                if document_id and report.fact in encoder.decode(tokens)
            ]
            assert len(found) == 1, (report.fact, found)
        # An answer's tokens name the number that it goes on to cite, up to the end of the citation.
        for start in [i for i, id_ in enumerate(ids) if id_ == MARKERS.index(grammar.ASSISTANT)]:
            stop = ids.index(MARKERS.index("<|eom|>"), start)
            named = re.search(r"\[([\d, ]+)\]", encoder.decode(ids[start:stop]))
            assert named is not None
            assert document_ids[start] == document_ids[stop] == ""
            assert set(document_ids[start + 1 : stop]) == {named[1] if "," not in named[1] else ""}


def test_blank_pages_stand_among_the_reports() -> None:
    for seed in range(10):
        random = Random(seed)
        reports = grammar.make_reports(random, 3)
        laid_out = grammar.lay_out(random, reports, blank=9)
        assert len(laid_out) == 12 and [d.about for d in laid_out if d.about] == [(0,), (1,), (2,)]
        assert [d.id for d in laid_out] == sorted({d.id for d in laid_out})
        for document in laid_out:
            assert re.fullmatch(rf".*\.pdf, page {document.id + 1}", document.title)
            assert [i for i, r in enumerate(reports) if r.fact in document.text] == list(document.about)


def test_key_value_samples_ask_only_for_what_was_said() -> None:
    for seed in range(20):
        ids, weights = key_value(Random(seed), 64, 1536)
        assert len(ids) == len(weights) > 64
        for at, weight in enumerate(weights):
            if weight:
                assert any(ids[i : i + 2] == ids[at - 1 : at + 1] for i in range(at - 1))


def test_a_step_has_the_same_batch_in_every_run(tokenizer_json: Path) -> None:
    encoder = Encoder(tokenizer_json)
    one, other = (Batches(encoder, seed=7).training(3, "text", {"chat": 1.0, "told": 1.0}, 4, 200) for _ in range(2))
    assert one.ids.equal(other.ids) and one.weights.equal(other.weights)
    assert one.ids[:, 1:].equal(one.targets[:, :-1])
    assert (one.weights == 1).any(1).all()
