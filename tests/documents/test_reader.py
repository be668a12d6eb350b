"""Documents before a question: where they stand, what a second question reuses, what citations point back to."""

from __future__ import annotations

from pathlib import Path

import pytest

from jambacli.documents.ask import SummaryOptions
from jambacli.documents.extract.pieces import DocumentPart
from jambacli.documents.load import Document
from jambacli.documents.pages import DocumentEntry, Source, entries_of
from jambacli.documents.passes import plan
from jambacli.documents.reader import Reader, Task
from jambacli.engine.options import GenerationOptions
from jambacli.errors import UsageError
from jambacli.session.options import SessionOptions
from jambacli.text.template import ChatTemplate
from jambacli.text.tokenizer import Tokenizer
from tests.support.small_models import small_model
from tests.support.vocabularies import sentencepiece_metadata

BARE = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def entries(*texts: str) -> list[DocumentEntry]:
    return [
        DocumentEntry(f"r.pdf, page {i}", text, (Source("a/r.pdf", "page", i, i),)) for i, text in enumerate(texts, 1)
    ]


def test_titles_carry_as_little_of_a_path_as_tells_files_apart() -> None:
    part = (DocumentPart("text", 3, 3),)
    names = ["/home/ada/x/r.pdf", "/home/ada/y/r.pdf", "/home/ada/z.pdf"]
    made = entries_of([Document(name, "page", part) for name in names])
    assert [e.title for e in made] == ["x/r.pdf, page 3", "y/r.pdf, page 3", "z.pdf, page 3"]
    assert [e.sources[0].file for e in made] == names


def test_a_template_without_documents_gets_them_as_text_and_reuses_them() -> None:
    model = small_model(BARE)
    with model.session(ctx=2048, store=False) as session:
        documents = [{"title": "t", "text": "herons <|im_end|> at the lake " * 9}]
        list(session.send("Who?", documents=documents, max_tokens=3, temperature=0))
        first = session.stats
        assert first.document_tokens > 60 and first.replayed_document_tokens == first.document_tokens
        assert "Document ID: 0\nTitle: t\nText: herons <|im_end|> at" in model.tokenizer.decode(session.sequence.tokens)
        session.conversation.clear()
        list(session.send("How many?", documents=documents, max_tokens=3, temperature=0))
        assert session.stats.replayed_document_tokens == 0 and session.stats.prefilled_tokens < 30
        list(session.send("And?", max_tokens=3, temperature=0))
        assert session.stats.replayed_document_tokens == 0 and session.stats.prefilled_tokens < 30


def test_a_model_without_a_template_reads_documents_too() -> None:
    reader = Reader(
        small_model(None), options=SessionOptions(ctx=2048, store=False), generation=GenerationOptions(max_tokens=3)
    )
    ids = reader.prompt(entries("herons " * 50), Task("Who?"))
    list(reader.stream(entries("herons " * 50), Task("Who?")))
    assert reader.session is not None
    assert reader.session.stats.prompt_tokens == len(ids) and reader.session.stats.document_tokens > 50


@pytest.fixture
def jambas_own(shared_data: Path, tmp_path: Path) -> ChatTemplate:
    tokenizer = Tokenizer(sentencepiece_metadata(shared_data / "jamba-1.5-tokenizer.model"), cache=tmp_path)
    return ChatTemplate((shared_data / "jamba-mini-1.7-chat-template.jinja").read_text(encoding="utf-8"), tokenizer)


def test_jambas_own_template_takes_documents_and_modes_after_them(jambas_own: ChatTemplate) -> None:
    from jambacli.session.conversation import Conversation

    tokenizer = jambas_own._tokenizer
    documents = [
        {"title": f"r.pdf, page {i}", "text": f"Page {i}. " + "Herons came to the lake. " * 120} for i in range(6)
    ]
    plain, citing = Conversation(jambas_own, tokenizer), Conversation(jambas_own, tokenizer)
    assert plain.takes(citation_mode="fast") and not plain.takes(nonsense="fast")
    plain.add_user("Who?", documents)
    citing.add_user("Who?", documents, {"is_set": True, "citation_mode": "fast"})
    a, b = plain.render(), citing.render()
    assert a.documents_end == b.documents_end and a.ids[: a.documents_end] == b.ids[: b.documents_end]
    honest = jambas_own.encode([{"role": "user", "content": "Who?"}], documents=documents)
    assert a.ids == honest and a.documents_end in a.boundaries
    # Other documents may follow the first ones: a checkpoint lies close behind each.
    fewer = Conversation(jambas_own, tokenizer)
    fewer.add_user("Who?", documents[:3])
    shared = next(i for i, (x, y) in enumerate(zip(a.ids, fewer.render().ids, strict=False)) if x != y)
    assert 0 <= shared - max(p for p in a.boundaries if p <= shared) <= 64


def test_parts_larger_than_a_context_are_divided_and_nothing_is_lost() -> None:
    reader = Reader(small_model(), options=SessionOptions(ctx=400, store=False))
    texts = ["".join(f"line {i} of a text\n" for i in range(n)) for n in (3, 200, 5, 40)]
    chosen = plan(reader, entries(*texts), Task("Summarize."))
    assert len(chosen.groups) > 5
    assert "".join(e.text for g in chosen.groups for e in g) == "".join(texts)
    for group in chosen.groups:
        assert len(reader.prompt(group, Task("Summarize."))) < 400


def test_summary_options_are_checked() -> None:
    assert (
        "bullet" in SummaryOptions(style="bullets").instruction()
        and "Write in German" in SummaryOptions(language="German").instruction()
    )
    assert "about 250 words" in SummaryOptions(length="250").instruction()
    for wrong in ({"length": "huge"}, {"length": "0"}, {"style": "haiku"}):
        with pytest.raises(UsageError):
            SummaryOptions(**wrong)


def test_parts_that_are_read_at_once_get_the_replies_of_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    from jambacli.documents import reader as reader_module
    from jambacli.documents.passes import read_in_passes
    from jambacli.engine.generate import Thought

    generation = GenerationOptions(max_tokens=12, temperature=0)
    texts = ["".join(f"line {i} of text {n}\n" for i in range(30 + n)) for n in range(9)]

    def task(i: int, n: int) -> Task:
        return Task(f"Summarize part {i} of {n}.")

    def new_reader(store: bool = False) -> Reader:
        return Reader(small_model(), options=SessionOptions(ctx=700, store=store), generation=generation)

    groups = plan(new_reader(), entries(*texts), Task("Summarize."), each=task(9, 9)).groups
    assert len(groups) > 5
    one = new_reader()
    alone = [
        "".join(p for p in one.stream(g, task(i, len(groups)), max_tokens=12) if not isinstance(p, Thought)).strip()
        for i, g in enumerate(groups, 1)
    ]
    one.close()
    for most in (1, 3, 8):
        monkeypatch.setattr(reader_module, "MOST_IN_BULK", most)
        monkeypatch.setattr(reader_module, "default_parallel", lambda *_, n=most, **__: n)
        said = read_in_passes(new_reader(), groups, task, reply_title="Summary", cache=None)
        assert [e.text for e in said] == alone
