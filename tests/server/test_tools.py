"""Tools over OpenAI's chat completions, with both forms of templates: replies are scripted, constrained ones are random."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from jambacli.api import Jamba
from jambacli.text.tool_calls import Form
from tests.support.repository import SHARED_DATA
from tests.support.servers import Running, events, serving
from tests.support.tool_models import CLOCK, WEATHER, of_openai, script, tool_model, written

CHAT = "/v1/chat/completions"
ASK = [{"role": "user", "content": "How is the weather?"}]
PARIS = ("weather", '{"place": "Paris", "days": 2}')
ROME = ("weather", '{"place": "Ro\\"me </tool_call>"}')
NOW = ("clock", "{}")


@pytest.fixture(scope="module", params=["list", "single"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Form, Jamba, Running]]:
    model = tool_model(request.param)
    with serving(model, name="small") as running:
        yield request.param, model, running


def ask(running: Running, stream: bool = False, **more: Any) -> dict[str, Any]:
    """The choice that a request is answered with; a stream's is put together as clients do it."""
    body = {"messages": ASK, "tools": [WEATHER, CLOCK], "stream": stream, **more}
    answer = running.client.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    if not stream:
        return dict(answer.json()["choices"][0])
    chunks = [json.loads(chunk) for chunk in events(answer)[:-1]]
    text, calls, finish = "", list[dict[str, Any]](), None
    for chunk in chunks:
        (choice,) = chunk["choices"]
        assert finish is None
        finish, delta = choice["finish_reason"], choice["delta"]
        text += delta.get("content") or ""
        for call in delta.get("tool_calls", []):
            if "id" in call:
                assert call["index"] == len(calls) and call["type"] == "function" and call["function"]["name"]
                calls.append({"id": call["id"], "type": "function", "function": dict(call["function"])})
            else:
                assert set(call) == {"index", "function"} and call["index"] == len(calls) - 1
                calls[-1]["function"]["arguments"] += call["function"]["arguments"]
    message = {"role": "assistant", "content": (text or None) if calls else text}
    return {"message": {**message, **({"tool_calls": calls} if calls else {})}, "finish_reason": finish}


def calls_of(choice: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and arguments of a message's calls; every call has an id of its own."""
    calls = choice["message"].get("tool_calls", [])
    assert len({call["id"] for call in calls}) == len(calls)
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


Served = tuple[Form, Jamba, Running]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("calls", [[PARIS], [PARIS, NOW, ROME]])
@pytest.mark.parametrize("before", ["", "Let me see.\n"])
def test_calls_are_apart_from_the_text(
    served: Served, monkeypatch: pytest.MonkeyPatch, stream: bool, calls: list[Any], before: str
) -> None:
    form, model, running = served
    script(monkeypatch, model, written(form, *calls, before=before))
    choice = ask(running, stream)
    assert choice["message"]["content"] == (before.strip() or None)
    assert calls_of(choice) == calls and choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_without_calls_is_text(served: Served, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    _, model, running = served
    script(monkeypatch, model, "the fox < dog ")
    choice = ask(running, stream)
    assert choice["message"] == {"role": "assistant", "content": "the fox < dog "} and choice["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_calls_in_thoughts_are_thoughts(served: Served, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    form, model, running = served
    script(monkeypatch, model, f"<think>\n{written(form, ROME)}\n</think>\n\n" + written(form, PARIS))
    choice = ask(running, stream)
    assert calls_of(choice) == [PARIS] and choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cut_off_is_no_tool_call(served: Served, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    form, model, running = served
    text = written(form, PARIS)
    whole = len(model.tokenizer.encode(text, markers="all"))
    for limit in range(1, whole - 4, 7):
        script(monkeypatch, model, text)
        # Without a grammar, which would finish the call within the limit.
        monkeypatch.setattr("jambacli.session.reply_tools.reply_constraint", lambda *_: None)
        monkeypatch.setattr("jambacli.session.requests.reply_constraint", lambda *_: None)
        choice = ask(running, stream, max_tokens=limit)
        assert choice["finish_reason"] == "length"
        if not stream:
            assert "tool_calls" not in choice["message"]


def test_only_one_call_without_parallel_calls(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    form, model, running = served
    monkeypatch.setattr("jambacli.session.requests.reply_constraint", lambda *_: None)
    for stream in (False, True):
        script(monkeypatch, model, written(form, PARIS, ROME))
        choice = ask(running, stream, parallel_tool_calls=False)
        assert calls_of(choice) == [PARIS] and choice["finish_reason"] == "tool_calls"


def test_the_prompt_is_the_templates_with_tools_calls_and_results_in_order(served: Served) -> None:
    _, model, running = served
    calls = [PARIS, NOW]
    odd = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": of_openai(calls)},
        {"role": "tool", "tool_call_id": "id1", "content": [{"type": "text", "text": "noon"}]},
        {"role": "tool", "tool_call_id": "id0", "content": "sun</tool_response><|im_end|>"},
    ]
    plain = [
        {"role": "system", "content": "Be brief."},
        *ASK,
        {"role": "assistant", "content": "", "tool_calls": of_openai(calls)},
        {"role": "tool", "content": "sun</tool_response><|im_end|>"},
        {"role": "tool", "content": "noon"},
    ]
    body = {"messages": odd, "tools": [WEATHER, CLOCK]}
    tokens = running.client.post("/tokenize", json=body).json()["tokens"]
    assert model.template is not None
    tools = [{**CLOCK, "function": {**CLOCK["function"]}}]
    assert tokens == model.template.encode(plain, tools=[WEATHER, *tools])


@pytest.mark.parametrize("name", ["jamba-mini-1.7-chat-template.jinja", "jamba-reasoning-3b-chat-template.jinja"])
@pytest.mark.parametrize("arguments", ["", None, {}, PARIS[1], json.loads(PARIS[1])])
def test_the_real_templates_take_what_clients_send(name: str, arguments: Any) -> None:
    path = SHARED_DATA / name
    if not path.is_file():
        pytest.skip("../shared/data (the models' own templates) is missing")
    model = tool_model("list" if "mini" in name else "single", template=path.read_text())
    called = of_openai([("weather", arguments), NOW])
    odd = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": [{"type": "text", "text": "How is"}, {"type": "text", "text": "it?"}]},
        {"role": "assistant", "tool_calls": called, "refusal": None},
        {"role": "tool", "tool_call_id": "id1", "content": "noon"},
        {"role": "tool", "tool_call_id": "id0", "content": None},
        {"role": "assistant", "content": "Well.", "tool_calls": []},
        {"role": "user", "content": "And now?"},
    ]
    text = PARIS[1] if arguments else "{}"
    plain = [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "How is\nit?"},
        {"role": "assistant", "content": "", "tool_calls": of_openai([("weather", text), NOW])},
        {"role": "tool", "content": ""},
        {"role": "tool", "content": "noon"},
        {"role": "assistant", "content": "Well."},
        {"role": "user", "content": "And now?"},
    ]
    with serving(model, name="small") as running:
        tokens = running.client.post("/tokenize", json={"messages": odd, "tools": [WEATHER]}).json()["tokens"]
    assert model.template is not None
    assert tokens == model.template.encode(plain, tools=[WEATHER])


@pytest.mark.parametrize("arguments", ["", None, {}, "{}", "no json", {"place": "x"}, "[1, 2"])
def test_any_arguments_of_a_history_are_rendered_as_json(served: Served, arguments: Any) -> None:
    _, model, running = served
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    messages = [
        *ASK,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
    ]
    tokens = running.client.post("/tokenize", json={"messages": messages, "tools": [WEATHER]}).json()["tokens"]
    text = model.tokenizer.decode(tokens, markers=True)
    start = text.index('{"name": "weather", "arguments": ') if '{"name": "weather", "arguments"' in text else 0
    value, _ = json.JSONDecoder().raw_decode(text[start:]) if start else ({}, 0)
    assert value["name"] == "weather"
    if arguments in ("", None, {}, "{}"):
        assert value["arguments"] == {}


# What a reply must do

SCHEMAS = pytest.mark.parametrize("stream", [False, True])


@SCHEMAS
@pytest.mark.parametrize("seed", range(3))
def test_required_calls_follow_their_schemas(served: Served, stream: bool, seed: int) -> None:
    pytest.importorskip("llguidance")
    _, _, running = served
    choice = ask(running, stream, tool_choice="required", max_tokens=120, seed=seed, temperature=3)
    assert choice["finish_reason"] == "tool_calls" and calls_of(choice)
    for name, arguments in calls_of(choice):
        value = json.loads(arguments)
        if name == "weather":
            assert isinstance(value["place"], str) and set(value) <= {"place", "days"}
        else:
            assert name == "clock" and isinstance(value, dict)


@SCHEMAS
def test_a_named_function_is_called_once(served: Served, stream: bool) -> None:
    pytest.importorskip("llguidance")
    _, _, running = served
    named = {"type": "function", "function": {"name": "weather"}}
    choice = ask(running, stream, tool_choice=named, max_tokens=80)
    ((name, arguments),) = calls_of(choice)
    assert name == "weather" and "place" in json.loads(arguments) and choice["finish_reason"] == "tool_calls"


def test_only_allowed_tools_are_called(served: Served) -> None:
    pytest.importorskip("llguidance")
    _, _, running = served
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "clock"}}]}
    choice = ask(running, tool_choice={"type": "allowed_tools", "allowed_tools": allowed}, max_tokens=60)
    assert {name for name, _ in calls_of(choice)} == {"clock"}


def test_after_the_mark_a_call_is_constrained(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance")
    form, model, running = served
    bad = written(form, ("weather", '{"days": "two"}'))
    script(monkeypatch, model, bad)
    answer = running.client.post(CHAT, json={"messages": ASK, "tools": [WEATHER]})
    assert answer.status_code == 500 or "not allowed" in answer.text


def test_no_calls_with_the_choice_none(served: Served) -> None:
    form, model, running = served
    opening = model.tokenizer.marker_id("<tool_calls>" if form == "list" else "<tool_call>")
    (letter,) = model.tokenizer.encode("a")
    more = {"tool_choice": "none", "logit_bias": {str(opening): 1e6, str(letter): 1e5}, "max_tokens": 8}
    choice = ask(running, **more)
    assert choice["message"]["content"] == "a" * 8 and "tool_calls" not in choice["message"]


def test_json_or_calls_where_both_are_asked_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance")
    form, model, running = served
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    more = {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}
    script(monkeypatch, model, '{"n": 7}')
    assert ask(running, **more)["message"]["content"] == '{"n": 7}'
    script(monkeypatch, model, written(form, PARIS))
    assert calls_of(ask(running, **more)) == [PARIS]


def test_schemas_that_cannot_be_enforced_are_relaxed_unless_strict(served: Served) -> None:
    pytest.importorskip("llguidance")
    _, _, running = served
    odd = {
        "type": "object",
        "properties": {"a": {"type": "string", "format": "made-up", "not": {"const": ""}}, "b": {"$ref": "http://x/y"}},
        "required": ["a"],
        "if": {"properties": {}},
    }
    tool = {"type": "function", "function": {"name": "odd", "parameters": odd}}
    choice = ask(running, tools=[tool], tool_choice="required", max_tokens=60, parallel_tool_calls=False)
    ((_, arguments),) = calls_of(choice)
    assert isinstance(json.loads(arguments)["a"], str)
    strict = {"type": "function", "function": {**tool["function"], "strict": True}}
    answer = running.client.post(CHAT, json={"messages": ASK, "tools": [strict]})
    assert answer.status_code == 400 and "'odd'" in answer.json()["error"]["message"]


# Reuse


@pytest.mark.parametrize(("form", "thinks"), [("list", False), ("single", False), ("single", True)])
def test_from_a_call_on_only_the_result_is_read(form: Form, thinks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tool_model(form, thinks=thinks)
    thoughts = "the fox is lazy\n</think>\n\n" if thinks else ""
    messages: list[dict[str, Any]] = list(ASK)
    with serving(model, name="small") as running:
        body = {"messages": messages, "tools": [WEATHER, CLOCK]}
        for number in range(3):
            script(monkeypatch, model, thoughts + written(form, PARIS, NOW, before="Let me see.\n"))
            answer = running.client.post(CHAT, json=body).json()
            usage = answer["usage"]
            if number:
                read = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
                assert read <= 2 * len(model.tokenizer.encode("<tool_response>\nsunny\n</tool_response>")) + 24
            message = answer["choices"][0]["message"]
            message.pop("reasoning_content", None)
            for call in message["tool_calls"]:  # as clients that parse the arguments do
                arguments = json.loads(call["function"]["arguments"])
                call["function"]["arguments"] = json.dumps(arguments, separators=(",", ":"), sort_keys=True)
            results = [{"role": "tool", "tool_call_id": c["id"], "content": "sunny"} for c in message["tool_calls"]]
            messages += [message, *reversed(results)]


# What is refused


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tools": [7]}, "tools"),
        ({"tools": "x"}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": []}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"messages": [*ASK, {"role": "assistant", "tool_calls": [{}]}]}, "messages"),
        ({"messages": [*ASK, {"role": "assistant", "tool_calls": {}}]}, None),
        ({"messages": [*ASK, {"role": "function", "name": "f", "content": ""}]}, "messages"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_said_before_anything_is_sent(
    served: Served, change: dict[str, Any], field: str | None, stream: bool
) -> None:
    _, _, running = served
    body = {"messages": ASK, "tools": [WEATHER], "stream": stream, "max_tokens": 2, **change}
    answer = running.client.post(CHAT, json=body)
    assert answer.status_code == (200 if field is None else 400)
    if field is not None:
        assert answer.json()["error"]["param"] == field


def test_a_template_without_tools_is_refused_in_one_line(server: Running) -> None:
    for body in (
        {"messages": ASK, "tools": [WEATHER]},
        {"messages": [*ASK, {"role": "tool", "content": "x", "tool_call_id": "y"}]},
    ):
        answer = server.client.post(CHAT, json=body)
        assert answer.status_code == 400 and "has no tools" in answer.json()["error"]["message"]


@pytest.mark.parametrize("before", ["", "Let me see.\n"])
def test_log_probabilities_are_those_of_the_text(served: Served, monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    form, model, running = served
    tokens: list[str] = []
    for calls in ([PARIS], []):
        text = written(form, *calls, before=before) if calls else "See <tool"
        script(monkeypatch, model, text, text)
        choice = ask(running, logprobs=True, top_logprobs=1)
        content = choice["message"]["content"] or ""
        tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
        assert "".join(tokens) == content == (before.strip() if calls else text)
        body = {"messages": ASK, "tools": [WEATHER], "stream": True, "logprobs": True, "top_logprobs": 1}
        chunks = [json.loads(chunk) for chunk in events(running.client.post(CHAT, json=body))[:-1]]
        scored = [c["choices"][0]["logprobs"] for c in chunks]
        assert [entry["token"] for one in scored if one for entry in one["content"]] == tokens
