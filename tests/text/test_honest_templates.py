"""Templates of many families render as transformers renders them, in the process for templates and without it."""

from __future__ import annotations

import pytest

from jambacli.errors import UsageError
from jambacli.text.template import ChatTemplate, TemplateError
from jambacli.text.template_process import UnavailableError, shared
from jambacli.text.tokenizer import Tokenizer
from tests.support.chat_templates import CONVERSATIONS, TEMPLATES
from tests.support.vocabularies import byte_level_metadata


@pytest.fixture(params=["process", "here"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where templates are rendered."""

    def none(*_: object) -> None:
        raise UnavailableError

    if request.param == "here":
        monkeypatch.setattr(shared(), "ask", none)
    return request.param


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    metadata, _ = byte_level_metadata(["hello"])
    return Tokenizer({**metadata, "tokenizer.ggml.bos_token_id": 3})


def test_there_are_fifty_templates_and_more() -> None:
    assert len(TEMPLATES) >= 50


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_in_transformers(name: str, place: str, tokenizer: Tokenizer) -> None:
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    source = TEMPLATES[name]
    template = ChatTemplate(source, tokenizer)
    rendered = 0
    tokens = {"bos": tokenizer.bos_id, "eos": min(tokenizer.stop_ids, default=None), "unk": tokenizer.unk_id}
    tokens |= {"pad": tokenizer.pad_id} | ({"eos": tokenizer.eos_id} if tokenizer.eos_id is not None else {})
    names = {f"{k}_token": tokenizer.pieces[i] for k, i in tokens.items() if i is not None}
    for messages, options in CONVERSATIONS.values():
        theirs: str | type[Exception]
        try:
            theirs = render_jinja_template(
                conversations=[messages], chat_template=source, **{"add_generation_prompt": True, **names, **options}
            )[0][0]
        except jinja2.TemplateError as error:
            theirs = UsageError if type(error) is jinja2.TemplateError else TemplateError
        except Exception:
            theirs = TemplateError
        try:
            ours: str | type[Exception] = template.render(messages, **options)
        except (UsageError, TemplateError) as error:
            ours = type(error)
        assert ours == theirs
        rendered += isinstance(ours, str)
    assert rendered >= 2
