"""Sections of citations: taken out of a reply however it is cut, and led back to the right file and page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from jambacli.documents.citations import Cited
from jambacli.documents.pages import DocumentEntry, Source
from jambacli.documents.reader import Reader, Task
from jambacli.engine.generate import Thought
from jambacli.engine.options import GenerationOptions
from jambacli.session.options import SessionOptions
from tests.support.small_models import small_model


def entries(count: int) -> list[DocumentEntry]:
    return [
        DocumentEntry(f"r.pdf, page {i}", f"Page {i}.", (Source("a/r.pdf", "page", i, i),)) for i in range(1, count + 1)
    ]


@pytest.mark.parametrize(
    ("text", "answer", "numbers"),
    [
        ("It is 42.<citations>[0, 2]</citations>", "It is 42.", [0, 2]),
        ("It is 42. \n<citations>[1]</citations>\n", "It is 42.", [1]),
        ("One.<citations>[3]</citations> Two. <citations>[0]</citations>", "One. Two.", [3, 0]),
        ("no section \n", "no section \n", []),
        ("a <b> <c", "a <b> <c", []),
        ("a <b> <cit> d", "a <b> <cit> d", []),
        ("<citations>[]</citations>", "", []),
        ("x<citations>[3", "x", [3]),
        ("x<citations>[3] and much more", "x and much more", [3]),
        ("x<citations>", "x", []),
        ("x<citations>[0, 3-4], 5; Documents 6 and 7, ID: 8", "x, 5; Documents 6 and 7, ID: 8", [0, 3, 4]),
        ("x<citations>3-4, 5; Documents 6 and 7, ID: 8</citations>", "x", [3, 4, 5, 6, 7, 8]),
        ("x<citations>[-1, 1.5, 12345678901234567890]</citations>", "x", [-1, 123456789012]),
        ("x<citations>[page 3]</citations>", "x", []),
        ("x<citations>[0, 1]</citations></citations>", "x</citations>", [0, 1]),
        (" \ny\n\nz", " \ny\n\nz", []),
    ],
)
def test_sections_are_taken_out_however_the_text_is_cut(text: str, answer: str, numbers: list[int]) -> None:
    for step in (1, 2, 3, 7, 1000):
        cited = Cited()
        pieces = [text[i : i + step] for i in range(0, len(text), step)]
        assert "".join(cited.answer(iter(pieces))) == answer, step
        assert cited.numbers == numbers and cited.has_section == ("<citations>" in text)


def test_thoughts_pass_as_they_are() -> None:
    cited = Cited()
    out = list(cited.answer([Thought("<citations>"), "yes", "<citations>[0]</citations>"]))
    assert out == ["<citations>", "yes"] and isinstance(out[0], Thought)


@pytest.mark.parametrize(
    ("section", "pages", "unknown"),
    [
        ("[0, 700, 1, 0]", [1, 2], [700]),
        ("[249, 200, 10]", [250, 201, 11], []),
        ("[250, 251, 250, -1]", [], [250, 251, -1]),
        ("[12345678901]", [], [12345678901]),
        ("[]", [], []),
        ("none", [], []),
        ("[r.pdf, page 30; r.pdf, page 3]", [30, 3], []),
        ("page 3", [], []),
    ],
)
def test_numbers_and_titles_lead_to_pages(section: str, pages: list[int], unknown: list[int]) -> None:
    cited = Cited()
    list(cited.answer([f"x<citations>{section}</citations>"]))
    assert cited.sources(entries(250)) == [Source("a/r.pdf", "page", p, p) for p in pages]
    assert cited.unknown(entries(250)) == unknown


def test_a_section_inside_a_json_string_is_none() -> None:
    document = {"quote": "as in <citations>[9]</citations>", "n": 1}
    for step in (1, 5, 1000):
        text = " " + json.dumps(document) + "<citations>[0, 3]</citations>"
        cited = Cited(json=True)
        said = "".join(cited.answer(text[i : i + step] for i in range(0, len(text), step)))
        assert json.loads(said) == document and cited.numbers == [0, 3]
    cited = Cited(json=True)
    assert "".join(cited.answer(['{"cut": "off'])) == '{"cut": "off' and not cited.has_section


def test_an_interrupted_stream_leaves_what_was_said() -> None:
    def cut(*said: str) -> Iterator[str]:
        yield from said
        raise KeyboardInterrupt

    for pieces, kept, numbers in ((("half ",), ["half"], []), (("x<citations>[4, 1",), ["x"], [4, 1])):
        said, cited = [], Cited()
        with pytest.raises(KeyboardInterrupt):
            for piece in cited.answer(cut(*pieces)):
                said.append(piece)
        assert said == kept and cited.numbers == numbers


@pytest.mark.parametrize("max_tokens", [40, 60, 400])
def test_json_of_a_schema_comes_with_citations_of_documents_there_are(max_tokens: int) -> None:
    """A random model at temperature 1.5: the section is whole, and every number is one of the three documents'."""
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"who": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["who"],
        "additionalProperties": False,
    }
    task, given = Task("Who?", citations=True, schema=schema), entries(3)
    session = SessionOptions(ctx=2048, store=False)
    named = set()
    for seed in range(8):
        options = GenerationOptions(temperature=1.5, top_p=1.0, max_tokens=max_tokens, seed=seed)
        reader = Reader(small_model(), options=session, generation=options)
        assert "After the JSON" in reader.instruction(task)
        cited = Cited(json=True)
        value = json.loads("".join(cited.answer(reader.stream(given, task))))
        assert isinstance(value["who"], str) and set(value) <= {"who", "n"}
        assert cited.has_section and not cited.unknown(given)
        named |= set(cited.cited(given))
        reader.close()
    assert named <= {0, 1, 2} and named
