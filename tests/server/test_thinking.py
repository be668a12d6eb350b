"""Thoughts on and off, in the form of each API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from jambacli.api import Jamba
from jambacli.engine.options import GenerationOptions
from tests.support.repository import SHARED_DATA
from tests.support.servers import Running, events, serving
from tests.support.small_models import TEMPLATE, small_model

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Who?"}]
ASK: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 12, "temperature": 0}
THINKER = TEMPLATE.replace("<|im_start|>assistant\n'", "<|im_start|>assistant\n<think>\n'")
SWITCHED = TEMPLATE + "{%- if enable_thinking is not defined or enable_thinking -%}{{ '<think>\n' }}{%- endif -%}"


class Prompts:
    """A server, and the texts of the prompts that reach its engine."""

    def __init__(self, running: Running, model: Jamba) -> None:
        self.client, self.seen = running.client, []
        submit = running.worker.engine.submit

        def watched(request: Any, **more: Any) -> Any:
            self.seen.append(model.tokenizer.decode(request.ids, markers=True))
            return submit(request, **more)

        running.worker.engine.submit = watched

    seen: list[str]


def prompts(template: str) -> Iterator[Prompts]:
    model = small_model(template)
    with serving(model) as running:
        yield Prompts(running, model)


@pytest.fixture(scope="module")
def thinker() -> Iterator[Prompts]:
    """Its template always opens a thought."""
    yield from prompts(THINKER)


@pytest.fixture(scope="module")
def switched() -> Iterator[Prompts]:
    """Its template has a switch."""
    yield from prompts(SWITCHED)


OFF: list[dict[str, Any]] = [
    {"reasoning_effort": "none"},
    {"reasoning": {"effort": "none"}},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"chat_template_kwargs": {"thinking": False}},
]
ON: list[dict[str, Any]] = [
    {},
    {"reasoning_effort": "low"},
    {"reasoning_effort": None},
    {"chat_template_kwargs": {"enable_thinking": True}},
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("change", "thinks"), [*((c, False) for c in OFF), *((c, True) for c in ON)])
def test_a_thought_that_the_prompt_opens_is_closed(
    thinker: Prompts, change: dict[str, Any], thinks: bool, stream: bool
) -> None:
    answer = thinker.client.post(CHAT, json={**ASK, **change, "stream": stream})
    if stream:
        deltas = [json.loads(e)["choices"][0]["delta"] for e in events(answer)[:-1]]
        said = {k: "".join(d.get(k, "") for d in deltas) for k in ("content", "reasoning_content")}
    else:
        said = {"reasoning_content": "", **answer.json()["choices"][0]["message"]}
    assert bool(said["reasoning_content"]) is thinks and (thinks or said["content"])
    end = "<think>\n" if thinks else "<think>\n\n</think>\n\n"
    assert thinker.seen[-1].endswith(f"assistant\n{end}")


@pytest.mark.parametrize(("change", "thinks"), [*((c, False) for c in OFF), *((c, True) for c in ON)])
def test_a_templates_own_switch_is_used(switched: Prompts, change: dict[str, Any], thinks: bool) -> None:
    switched.client.post(CHAT, json={**ASK, **change}).raise_for_status()
    assert switched.seen[-1].endswith("assistant\n<think>\n") is thinks
    assert thinks or switched.seen[-1].endswith(("assistant\n", "</think>\n\n"))


def test_every_api_switches_thoughts(thinker: Prompts) -> None:
    client = thinker.client
    off = "</think>\n\n"
    disabled, enabled = {"type": "disabled"}, {"type": "enabled", "budget_tokens": 1024}
    for given, thinks in ((disabled, False), (enabled, True)):
        body = {"messages": MESSAGES, "max_tokens": 12, "thinking": given}
        content = client.post("/v1/messages", json=body).raise_for_status().json()["content"]
        assert (content[0]["type"] == "thinking") is thinks is not thinker.seen[-1].endswith(off)
        more = {"messages": [{"role": "user", "content": [{"text": "Who?"}]}], "inferenceConfig": {"maxTokens": 12}}
        more["additionalModelRequestFields"] = {"thinking": given}
        blocks = client.post("/model/x/converse", json=more).raise_for_status().json()["output"]["message"]["content"]
        assert ("reasoningContent" in blocks[0]) is thinks is not thinker.seen[-1].endswith(off)
    for think, thinks in ((False, False), (True, True), ("high", True)):
        body = {"messages": MESSAGES, "think": think, "stream": False, "options": {"num_predict": 12}}
        message = client.post("/api/chat", json=body).raise_for_status().json()["message"]
        assert ("thinking" in message) is thinks is not thinker.seen[-1].endswith(off)
        body = {"prompt": "Who?", "think": think, "stream": False, "options": {"num_predict": 12}}
        assert ("thinking" in client.post("/api/generate", json=body).json()) is thinks
    client.post("/v1/responses", json={"input": "Who?", "max_output_tokens": 4, "reasoning": {"effort": "none"}})
    assert thinker.seen[-1].endswith(off)
    assert "thinking" in client.post("/api/show", json={"model": "x"}).json()["capabilities"]


def test_a_model_without_thoughts(server: Running) -> None:
    plain = server.client.post(CHAT, json=ASK).json()["choices"]
    for change in (*OFF, {"reasoning_effort": "high"}):
        assert server.client.post(CHAT, json={**ASK, **change}).json()["choices"] == plain
    ollama = {"messages": MESSAGES, "stream": False, "options": {"num_predict": 2}}
    assert server.client.post("/api/chat", json={**ollama, "think": False}).status_code == 200
    refused = server.client.post("/api/chat", json={**ollama, "think": True})
    assert refused.status_code == 400 and "does not support thinking" in refused.json()["error"]
    assert server.client.post("/api/show", json={"model": "x"}).json()["capabilities"] == ["completion"]


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (CHAT, {"reasoning_effort": 3}),
        (CHAT, {"reasoning": "none"}),
        ("/v1/messages", {"thinking": True}),
        ("/v1/messages", {"thinking": {}}),
        ("/api/chat", {"think": 3}),
    ],
)
def test_what_is_no_switch_is_refused(thinker: Prompts, path: str, change: dict[str, Any]) -> None:
    assert thinker.client.post(path, json={**ASK, **change}).status_code == 400


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_holds_for_the_answer_alone(thinker: Prompts, thinking: bool, stream: bool) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {**schema, "additionalProperties": False}}}
    body = {**ASK, "max_tokens": 150, "response_format": form, "temperature": 2, "seed": 1, "stream": stream}
    variables = {"enable_thinking": thinking}
    answer = thinker.client.post(CHAT, json={**body, "chat_template_kwargs": variables})
    if stream:
        choices = [json.loads(e)["choices"][0] for e in events(answer)[:-1]]
        text = "".join(c["delta"].get("content", "") for c in choices)
        thoughts, finish = "".join(c["delta"].get("reasoning_content", "") for c in choices), choices[-1]
    else:
        finish = answer.json()["choices"][0]
        text, thoughts = finish["message"]["content"], finish["message"].get("reasoning_content", "")
    assert isinstance(json.loads(text)["n"], int) and finish["finish_reason"] == "stop"
    assert bool(thoughts) is thinking


def test_the_next_turn_may_think_again(thinker: Prompts) -> None:
    messages = [{"role": "user", "content": "the quick brown fox jumps over the lazy dog. " * 10}]
    first = thinker.client.post(CHAT, json={**ASK, "messages": messages, "reasoning_effort": "none"}).json()
    messages += [first["choices"][0]["message"], {"role": "user", "content": "And?"}]
    body = {**ASK, "messages": messages, "chat_template_kwargs": {"enable_thinking": True}}
    usage = thinker.client.post(CHAT, json=body).json()["usage"]
    assert usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] < 60


def test_reasoning_3bs_own_template(tiny: Jamba) -> None:
    source = SHARED_DATA / "jamba-reasoning-3b-chat-template.jinja"
    if not source.is_file():
        pytest.skip("../shared/data is not here")
    for one in prompts(source.read_text(encoding="utf-8")):
        one.client.post(CHAT, json=ASK).raise_for_status()
        assert "Begin by thinking" in one.seen[-1] and one.seen[-1].endswith("assistant\n<think>\n")
        body = {**ASK, "reasoning_effort": "none"}
        first = one.client.post(CHAT, json=body).json()
        assert "Begin by thinking" not in one.seen[-1] and one.seen[-1].endswith("<think>\n\n</think>\n\n")
        before = one.seen[-1].split("<think>")[0]
        messages = [*MESSAGES, first["choices"][0]["message"], {"role": "user", "content": "And?"}]
        one.client.post(CHAT, json={**body, "messages": messages}).raise_for_status()
        assert one.seen[-1].startswith(before)


def test_the_servers_default_holds_for_requests_that_do_not_say() -> None:
    model = small_model(THINKER)
    with serving(model, defaults=GenerationOptions(think=False)) as running:
        asked = Prompts(running, model)
        for body, thinks in (({}, False), ({"reasoning_effort": "low"}, True), ({"reasoning_effort": "none"}, False)):
            message = running.client.post(CHAT, json={**ASK, **body}).raise_for_status().json()["choices"][0]["message"]
            assert asked.seen[-1].endswith("<think>\n" if thinks else "<think>\n\n</think>\n\n")
            assert ("reasoning_content" in message) is thinks
