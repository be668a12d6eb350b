"""A stateless client's conversation is read once: over turns, with documents, after a kill, and from a chat."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from jambacli.api import Jamba
from tests.support.servers import Running, serve_process, serving

CHAT = "/v1/chat/completions"
QUESTIONS = ["How many herons were counted?", "Who counted them?", "Where was that?", "And the storks?"]
DOCUMENT = {"content": "Mira counted 42 herons at the lake. " * 60, "metadata": {"title": "Report"}}
# Tokens that a turn may read besides its message: the header of the message and that of the reply.
AROUND = 16


def turn(client: httpx.Client, messages: list[dict[str, str]], **more: Any) -> dict[str, Any]:
    """Ask, and add the reply to the messages as a client does."""
    body = {"messages": messages, "temperature": 0, "max_tokens": 12, **more}
    answer: dict[str, Any] = client.post(CHAT, json=body).raise_for_status().json()
    messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
    return answer["usage"]


def read(usage: dict[str, Any]) -> int:
    """How many tokens of the prompt were read."""
    return int(usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"])


@pytest.mark.parametrize("documents", [[], [DOCUMENT]])
@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_from_the_second_turn_only_the_new_message_is_read(
    server: Running, tiny: Jamba, documents: list[Any], temperature: float
) -> None:
    messages: list[dict[str, str]] = [{"role": "system", "content": f"Be brief. {temperature} {len(documents)}"}]
    for number, question in enumerate(QUESTIONS):
        messages.append({"role": "user", "content": question})
        # At a high temperature the tokens of a reply are rarely those that its text would be encoded as.
        usage = turn(server.client, messages, documents=documents, temperature=temperature, top_k=0, seed=number)
        if number:
            assert read(usage) <= len(tiny.tokenizer.encode(question)) + AROUND


def test_a_client_that_trims_replies_keeps_its_prefix(server: Running, tiny: Jamba) -> None:
    messages = [{"role": "user", "content": "Tell me of the herons, at length."}]
    turn(server.client, messages, stop=["."])
    messages[-1]["content"] = f"  {messages[-1]['content'].strip()}\n"
    messages.append({"role": "user", "content": "And the storks?"})
    assert read(turn(server.client, messages)) <= len(tiny.tokenizer.encode("And the storks?")) + AROUND


def test_an_edited_reply_is_read_as_it_is_now(server: Running, tiny: Jamba) -> None:
    messages = [{"role": "user", "content": "Who saw the cranes?"}]
    turn(server.client, messages)
    messages[-1]["content"] = "Nobody saw them."
    messages.append({"role": "user", "content": "Really?"})
    answer = server.client.post(CHAT, json={"messages": messages, "temperature": 0, "max_tokens": 12}).json()
    assert tiny.template is not None
    assert answer["usage"]["prompt_tokens"] == len(tiny.template.encode(messages))


def test_documents_stay_where_they_came_first(server: Running) -> None:
    messages = [{"role": "user", "content": "Hello there."}]
    turn(server.client, messages)
    messages.append({"role": "user", "content": "How many herons?"})
    first = turn(server.client, messages, documents=[DOCUMENT])
    assert read(first) > 300
    messages.append({"role": "user", "content": "Who counted?"})
    assert read(turn(server.client, messages, documents=[DOCUMENT])) < 40
    messages.append({"role": "user", "content": "Where?"})
    assert read(turn(server.client, messages, documents=[{**DOCUMENT, "content": "Other text. " * 90}])) > 100


def test_what_a_chat_has_read_is_known_to_the_server(tiny: Jamba) -> None:
    text = "Mira counted 42 herons at the lake. " * 50
    with tiny.session() as session:
        "".join(session.send(text, temperature=0, max_tokens=4))
    with serving(tiny, store=True) as one:
        usage = turn(one.client, [{"role": "user", "content": text}])
        assert usage["prompt_tokens"] > 300 and read(usage) == 0
    with tiny.session() as session:
        "".join(session.send("Storks. " * 200, temperature=0, max_tokens=4))
    with serving(tiny, store=True) as one:
        assert read(turn(one.client, [{"role": "user", "content": text}])) == 0


def test_after_a_kill_only_the_new_message_is_read(own_home: Path, tiny: Jamba) -> None:
    messages: list[dict[str, str]] = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        with serve_process() as (server, client):
            usage = turn(client, messages, documents=[DOCUMENT])
            if len(messages) > 2:
                assert read(usage) <= len(tiny.tokenizer.encode(question)) + AROUND
            # As soon as the answer is complete.
            server.send_signal(signal.SIGKILL)
