"""Documents given in Python: AI21's words for them are understood, and what is misspelt is refused."""

from __future__ import annotations

from typing import Any

import pytest

from jambacli.errors import UsageError
from jambacli.session.given_documents import given_documents
from tests.support.small_models import small_model


def test_text_content_title_and_metadata_become_what_templates_take() -> None:
    given = [
        {"text": "one"},
        {"content": "two", "title": "T"},
        {"content": "three", "metadata": {"author": "Ada", "year": 1843}},
    ]
    assert given_documents(given) == [
        {"text": "one"},
        {"title": "T", "text": "two"},
        {"author": "Ada", "year": "1843", "text": "three"},
    ]
    assert given_documents(None) is None and given_documents([]) == []


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"txt": "x"}, r"documents\[1\] has the unknown key 'txt'; did you mean 'text'\?"),
        ({"text": "x", "author": "A"}, "unknown key 'author'; what the model is to read of it goes into 'metadata'"),
        ({"text": "x", "contents": "y"}, "did you mean 'content'"),
        ({"text": "x", "content": "y"}, r"documents\[1\] needs one text, as 'text' or 'content'"),
        ({"title": "x"}, "needs one text"),
        ({"text": 5}, "needs one text"),
        ({"text": "x", "title": 5}, "the title of"),
        ({"text": "x", "metadata": ["a"]}, "metadata of"),
        ({"text": "x", "metadata": {"text": "y"}}, "metadata of"),
        ("just text", r"documents\[1\] is str, not a mapping"),
    ],
)
def test_what_is_no_document_is_named(document: Any, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        given_documents([{"text": "fine"}, document])


def test_a_session_takes_both_words_and_refuses_before_it_changes() -> None:
    model = small_model()
    with model.session(store=False) as first, model.session(store=False) as second:
        list(first.send("Who?", documents=[{"text": "Mira counted herons."}], max_tokens=1, temperature=0))
        list(second.send("Who?", documents=[{"content": "Mira counted herons."}], max_tokens=1, temperature=0))
        assert first.stats.prompt_tokens == second.stats.prompt_tokens
        assert first.sequence.tokens == second.sequence.tokens
        turns = list(first.conversation.turns)
        with pytest.raises(UsageError, match="unknown key 'body'"):
            first.send("And?", documents=[{"body": "x"}])
        assert first.conversation.turns == turns
    with model.session(store=False) as plain, pytest.raises(UsageError, match="unknown key 'body'"):
        plain.complete("And", documents=[{"body": "x"}])


def test_a_message_that_does_not_fit_is_taken_back() -> None:
    from jambacli.model.state import ContextFullError

    with small_model().session(store=False, ctx=64) as session:
        with pytest.raises(ContextFullError):
            list(session.send("long " * 200, max_tokens=1))
        assert session.conversation.turns == []
        assert list(session.send("hi", max_tokens=1, temperature=0)) is not None
        assert [turn.role for turn in session.conversation.turns] == ["user", "assistant"]
