"""Tools with the real clients: a call comes out, its result goes in, and only that is read."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from jambacli.api import Jamba
from jambacli.text.tool_calls import Form
from tests.support.servers import Running, serving
from tests.support.tool_models import WEATHER, script, tool_model, written

QUESTION = "How is the weather?"
PARIS = ("weather", '{"place": "Paris", "days": 2}')
ROME = ("weather", '{"place": "Rome"}')
INPUTS = [json.loads(PARIS[1]), json.loads(ROME[1])]
SCHEMA = WEATHER["function"]["parameters"]
REASON = "the extra `clients` is not installed"
# A turn reads the results of two calls and what is around them.
MOST = 2 * 40 + 24


@pytest.fixture(scope="module", params=["list", "single"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Form, Jamba, Running]]:
    model = tool_model(request.param)
    with serving(model, name="small") as running:
        yield request.param, model, running


@pytest.fixture
def calling(served: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """A server whose next reply calls twice, and whose second is a text; returns its address."""
    form, model, running = served
    script(monkeypatch, model, written(form, PARIS, ROME, before="Let me see.\n"), "It is sunny.")
    return str(running.url)


@pytest.mark.parametrize("stream", [False, True])
def test_openai(calling: str, stream: bool) -> None:
    openai = pytest.importorskip("openai", reason=REASON)
    client = openai.OpenAI(base_url=f"{calling}/v1", api_key="x", max_retries=0)
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    if stream:
        with client.chat.completions.stream(model="x", messages=messages, tools=[WEATHER]) as events:
            answer = events.get_final_completion()
    else:
        answer = client.chat.completions.create(model="x", messages=messages, tools=[WEATHER])
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me see."
    called = choice.message.tool_calls
    assert [(c.function.name, c.function.arguments) for c in called] == [PARIS, ROME]
    messages.append(choice.message)
    messages += [{"role": "tool", "tool_call_id": c.id, "content": "sunny"} for c in reversed(called)]
    answer = client.chat.completions.create(model="x", messages=messages, tools=[WEATHER])
    assert answer.choices[0].message.content == "It is sunny."
    usage = answer.usage
    assert usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens <= MOST


@pytest.mark.parametrize("stream", [False, True])
def test_openai_responses(calling: str, stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    openai = pytest.importorskip("openai", reason=REASON)
    client = openai.OpenAI(base_url=f"{calling}/v1", api_key="x", max_retries=0)
    tools: list[Any] = [{"type": "function", **WEATHER["function"], "strict": False}, {"type": "web_search"}]
    items: list[Any] = [{"role": "user", "content": QUESTION}]
    with caplog.at_level(logging.INFO):
        if stream:
            with client.responses.stream(model="x", input=items, tools=tools) as events:
                kinds = [event.type for event in events]
                answer = events.get_final_response()
            assert kinds.count("response.function_call_arguments.done") == 2 and kinds[-1] == "response.completed"
        else:
            answer = client.responses.create(model="x", input=items, tools=tools)
    assert "other types" in caplog.text
    called = [item for item in answer.output if item.type == "function_call"]
    assert [(c.name, c.arguments) for c in called] == [PARIS, ROME] and answer.output_text == "Let me see."
    items += answer.output
    items += [{"type": "function_call_output", "call_id": c.call_id, "output": "sunny"} for c in called]
    answer = client.responses.create(model="x", input=items, tools=tools)
    assert answer.output_text == "It is sunny."
    assert answer.usage.input_tokens - answer.usage.input_tokens_details.cached_tokens <= MOST


@pytest.mark.parametrize("stream", [False, True])
def test_anthropic(calling: str, stream: bool) -> None:
    anthropic = pytest.importorskip("anthropic", reason=REASON)
    client = anthropic.Anthropic(base_url=calling, api_key="x", max_retries=0)
    tools: list[Any] = [{"name": "weather", "description": "The weather at a place.", "input_schema": SCHEMA}]
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    common = {"model": "x", "max_tokens": 200, "tools": tools}
    if stream:
        with client.messages.stream(messages=messages, **common) as events:
            answer = events.get_final_message()
    else:
        answer = client.messages.create(messages=messages, **common)
    assert answer.stop_reason == "tool_use" and answer.content[0].text == "Let me see."
    called = [block for block in answer.content if block.type == "tool_use"]
    assert [block.input for block in called] == INPUTS
    results: list[Any] = [{"type": "tool_result", "tool_use_id": c.id, "content": "sunny"} for c in reversed(called)]
    messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]
    assert client.messages.count_tokens(model="x", messages=messages, tools=tools).input_tokens > 50
    answer = client.messages.create(messages=messages, **common)
    assert answer.content[0].text == "It is sunny." and answer.usage.input_tokens <= MOST


@pytest.mark.parametrize("stream", [False, True])
def test_ollama(calling: str, stream: bool) -> None:
    ollama = pytest.importorskip("ollama", reason=REASON)
    client = ollama.Client(host=calling)
    assert client.show("small").capabilities[:2] == ["completion", "tools"]
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    answer = client.chat(model="x", messages=messages, tools=[WEATHER], stream=stream)
    parts = list(answer) if stream else [answer]
    called = [call for part in parts for call in part.message.tool_calls or []]
    assert [dict(call.function.arguments) for call in called] == INPUTS
    text = "".join(part.message.content or "" for part in parts)
    assert text == "Let me see." and parts[-1].done
    messages.append({"role": "assistant", "content": text, "tool_calls": [c.model_dump() for c in called]})
    messages += [{"role": "tool", "tool_name": "weather", "content": "sunny"} for _ in called]
    assert client.chat(model="x", messages=messages, tools=[WEATHER]).message.content == "It is sunny."


@pytest.mark.parametrize("stream", [False, True])
def test_bedrock(calling: str, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    boto3 = pytest.importorskip("boto3", reason=REASON)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    client = boto3.client("bedrock-runtime", endpoint_url=calling, region_name="us-east-1")
    spec = {"name": "weather", "description": "The weather at a place.", "inputSchema": {"json": SCHEMA}}
    common = {"modelId": "ai21.jamba-1-5-mini-v1:0", "toolConfig": {"tools": [{"toolSpec": spec}]}}
    messages: list[Any] = [{"role": "user", "content": [{"text": QUESTION}]}]
    if stream:
        content, reason = _blocks(client.converse_stream(messages=messages, **common)["stream"])
    else:
        answer = client.converse(messages=messages, **common)
        content, reason = answer["output"]["message"]["content"], answer["stopReason"]
    assert reason == "tool_use" and content[0] == {"text": "Let me see."}
    called = [block["toolUse"] for block in content[1:]]
    assert [use["input"] for use in called] == INPUTS
    results = [
        {"toolResult": {"toolUseId": use["toolUseId"], "content": [{"json": {"sky": "sunny"}}]}}
        for use in reversed(called)
    ]
    messages += [{"role": "assistant", "content": content}, {"role": "user", "content": results}]
    answer = client.converse(messages=messages, **common)
    assert answer["output"]["message"]["content"] == [{"text": "It is sunny."}]
    usage = answer["usage"]
    assert usage["inputTokens"] - usage["cacheReadInputTokens"] <= MOST + 20


def _blocks(events: Any) -> tuple[list[dict[str, Any]], str]:
    """The content of a stream of Converse, and why it ended."""
    blocks: dict[int, dict[str, Any]] = {}
    reason = ""
    for event in events:
        if start := event.get("contentBlockStart"):
            blocks[start["contentBlockIndex"]] = {"toolUse": {**start["start"]["toolUse"], "input": ""}}
        elif change := event.get("contentBlockDelta"):
            delta, block = change["delta"], blocks.setdefault(change["contentBlockIndex"], {"text": ""})
            if "toolUse" in delta:
                block["toolUse"]["input"] += delta["toolUse"]["input"]
            else:
                block["text"] += delta["text"]
        elif stop := event.get("messageStop"):
            reason = stop["stopReason"]
    for block in blocks.values():
        if "toolUse" in block:
            block["toolUse"]["input"] = json.loads(block["toolUse"]["input"])
    return [blocks[i] for i in sorted(blocks)], reason


@pytest.mark.parametrize("stream", [False, True])
def test_ai21(calling: str, stream: bool) -> None:
    ai21 = pytest.importorskip("ai21", reason=REASON)
    from ai21.models.chat import ChatMessage, ToolDefinition

    client = ai21.AI21Client(api_key="x", api_host=f"{calling}/studio/v1")
    asked = [ChatMessage(role="user", content=QUESTION)]
    answer = client.chat.completions.create(
        model="jamba-mini", messages=asked, tools=[ToolDefinition(**WEATHER)], stream=stream
    )
    if stream:
        chunks = list(answer)
        assert chunks[-1].choices[0].finish_reason == "tool_calls" and chunks[-1].usage.completion_tokens > 0
        return
    called = answer.choices[0].message.tool_calls
    assert [(c.function.name, c.function.arguments) for c in called] == [PARIS, ROME]
