"""Thoughts on and off in sessions, batches, chats and commands: the same prompts and limits as in the server."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from jambacli.api import Jamba
from jambacli.chat.commands import Chat
from jambacli.documents.pages import DocumentEntry
from jambacli.documents.reader import Reader, Task
from jambacli.engine.generate import Thought
from jambacli.engine.options import GenerationOptions
from jambacli.errors import UsageError
from jambacli.session.options import SessionOptions
from jambacli.session.requests import chat_request, text_request
from jambacli.session.thinking import can_think
from tests.support.cli_runner import jamba
from tests.support.small_models import TEMPLATE, small_file, small_model

THINKER = TEMPLATE.replace("<|im_start|>assistant\n'", "<|im_start|>assistant\n<think>\n'")
SWITCHED = TEMPLATE + "{%- if enable_thinking is not defined or enable_thinking -%}{{ '<think>\n' }}{%- endif -%}"
CLOSED = "<think>\n\n</think>\n\n"
ASK = [{"role": "user", "content": "Who?"}]


def prompt(model: Jamba, ids: list[int]) -> str:
    return model.tokenizer.decode(ids, markers=True)


@pytest.mark.parametrize(("template", "off"), [(THINKER, f"assistant\n{CLOSED}"), (SWITCHED, "assistant\n")])
def test_a_session_thinks_or_not_as_each_reply_asks(template: str, off: str) -> None:
    model = small_model(template)
    with model.session(store=False) as session:
        for think in (None, False, True, False):
            pieces = list(session.send("Who?", think=think, max_tokens=12, temperature=0))
            end = off if think is False else "assistant\n<think>\n"
            assert prompt(model, session._prompt).endswith(end)
            assert any(isinstance(p, Thought) for p in pieces) is (think is not False)
        assert session.conversation.turns[-1].thoughts is None


def test_a_reply_without_thoughts_cannot_open_one() -> None:
    model = small_model(TEMPLATE)
    begin = model.tokenizer.marker_id("<think>")
    assert begin is not None
    for made in (chat_request, lambda m, _, o: text_request(m, "Who?", o)):
        request = made(model, ASK, GenerationOptions(think=False, logit_bias={3: 1.0}))
        assert request.sampling.logit_bias == {3: 1.0, begin: -math.inf}
        assert begin not in made(model, ASK, GenerationOptions(think=True)).sampling.logit_bias
    with model.session(store=False) as session:
        said = session.send("Who?", think=False, logit_bias={begin: 50.0}, temperature=0, max_tokens=3)
        assert "<think>" not in "".join(said) and begin not in session._reply_ids


def test_batches_and_documents_are_asked_as_sessions_are() -> None:
    model = small_model(THINKER)
    entries = [DocumentEntry("a.txt", "Mira counted 42 herons.", ())]
    for think, end in ((False, CLOSED), (None, "<think>\n"), (True, "<think>\n")):
        options = GenerationOptions(think=think)
        assert prompt(model, chat_request(model, ASK, options).ids).endswith(f"assistant\n{end}")
        reader = Reader(model, options=SessionOptions(store=False), generation=options)
        assert prompt(model, reader.prompt(entries, Task("Who?"))).endswith(f"assistant\n{end}")
        assert prompt(model, reader.request(entries, Task("Who?")).ids).endswith(f"assistant\n{end}")
        reader.close()
    (reply,) = model.generate_batch(["Who?"], think=False, max_tokens=8, temperature=0)
    with model.session(store=False) as session:
        assert reply.text == "".join(session.send("Who?", think=False, max_tokens=8, temperature=0))


def test_reasoning_3bs_own_prefix_is_switched(shared_data: Path) -> None:
    source = (shared_data / "jamba-reasoning-3b-chat-template.jinja").read_text(encoding="utf-8")
    model = small_model(source)
    documents = [{"title": "a.txt", "text": "Mira counted 42 herons."}]
    with model.session(store=False) as session:
        for think in (True, False, False, None):
            list(session.send("Who?", documents=documents, think=think, max_tokens=3, temperature=0))
            text = prompt(model, session._prompt)
            question = text[text.rindex("<|im_start|>user") :]
            assert ("Begin by thinking" in question) is (think is not False) is not question.endswith(CLOSED)
            assert question.count("Mira counted 42 herons.") == 1


def test_a_chat_switches_thoughts_between_messages() -> None:
    chat = Chat(small_model(THINKER), options=SessionOptions(store=False), generation=GenerationOptions(max_tokens=6))
    assert chat.handle("/think off").lines == ["the model answers without thinking"]
    assert not any(isinstance(p, Thought) for p in chat.handle("Who?").reply or ())
    assert chat.handle("/think on").lines == ["the model thinks first"]
    assert any(isinstance(p, Thought) for p in chat.handle("/regenerate").reply or ())
    assert chat.handle("/think").lines == ["thoughts are hidden"] and chat.handle("/think").lines == [
        "thoughts are shown"
    ]
    with pytest.raises(UsageError, match="on or off"):
        chat.handle("/think loudly")
    plain = Chat(small_model(), options=SessionOptions(store=False))
    with pytest.raises(UsageError, match="has no thoughts to switch on"):
        plain.handle("/think on")
    assert plain.handle("/think off").lines == ["small does not think; there is nothing to switch off"]
    chat.close()
    plain.close()


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_file(tmp_path_factory.mktemp("thinker"), "q8_0", template=THINKER))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_file(tmp_path_factory.mktemp("plain"), "q8_0"))


def test_commands_switch_thoughts(thinker: str, tmp_path: Path) -> None:
    document = tmp_path / "d.txt"
    document.write_text("Mira counted 42 herons.", encoding="utf-8")
    loaded = Jamba.load(thinker)
    closed = len(loaded.tokenizer.encode("\n\n")) * 2 + 1
    for command in (("run", thinker, "Who?"), ("ask", str(document), "Who?", "--model", thinker),
                    ("summarize", str(document), "--model", thinker)):  # fmt: skip
        tokens = {}
        for option in ("--think", "--no-think", None):
            done = jamba(*command, "--json", "-n", "8", "--temp", "0", "--no-store", *([option] if option else []))
            assert done.returncode == 0, done.stderr
            tokens[option] = json.loads(done.stdout)["prompt_tokens"]
        assert tokens["--think"] == tokens[None] == tokens["--no-think"] - closed + 1
    done = jamba("chat", thinker, "-n", "8", "--temp", "0", "--no-store", "--no-think", stdin=b"Who?\n")
    assert done.returncode == 0 and done.stdout.strip()
    prompts = tmp_path / "p.txt"
    prompts.write_text("Who?\n", encoding="utf-8")
    done = jamba("batch", str(prompts), "--model", thinker, "-n", "8", "--no-think", "--no-store")
    assert json.loads(done.stdout)["answer"]


def test_a_model_without_thoughts_is_said_in_one_line(plain: str) -> None:
    refused = jamba("run", plain, "Who?", "--think")
    assert refused.returncode == 2
    assert refused.stderr.decode() == "error: --think needs a chat template with thoughts; small q8_0 has none\n"
    done = jamba("run", plain, "Who?", "--no-think", "-n", "2")
    assert done.returncode == 0
    assert done.stderr.decode() == "small q8_0 does not think; there is nothing to switch off\n"


def test_what_can_think() -> None:
    assert can_think(small_model(THINKER).template, small_model(THINKER).tokenizer)
    assert not can_think(small_model().template, small_model().tokenizer) and not can_think(
        None, small_model().tokenizer
    )
