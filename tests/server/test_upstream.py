"""Every API in front of another server: this program's own, one of a few canned answers, and llama-server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from starlette.responses import JSONResponse, RedirectResponse, Response

from jambacli.api import Jamba
from jambacli.engine.batch import BatchEngine
from jambacli.hub.demo import demo_model_path
from jambacli.server.http import Access
from jambacli.server.upstream import Upstream
from jambacli.server.upstream_client import UpstreamClient
from tests.support.canned_server import DONE, USAGE, Canned, piece, streamed
from tests.support.servers import Running, events, serving, serving_app, serving_models
from tests.support.tool_models import WEATHER, of_openai, script, tool_model, written

CHAT = "/v1/chat/completions"
ASK: list[Any] = [{"role": "user", "content": "How many herons were counted?"}]
PARIS = ("weather", '{"place": "Paris", "days": 2}')
ROME = ("weather", '{"place": "Rome"}')
BODY = {"model": "x", "messages": ASK, "temperature": 0, "max_tokens": 12}


@contextlib.contextmanager
def in_front_of(url: str, *, key: str | None = None, patience: float = 15.0) -> Iterator[Running]:
    with serving_models(Upstream(UpstreamClient(url, key, patience=patience))) as front:
        yield front


@pytest.fixture(scope="module")
def front(server: Running) -> Iterator[Running]:
    """A server in front of one with the demo model."""
    with in_front_of(server.url) as running:
        yield running


class TestItself:
    """The same answers as from the server behind."""

    def test_chat(self, server: Running, front: Running) -> None:
        here, there = (s.client.post(CHAT, json=BODY).json() for s in (front, server))
        assert here["choices"] == there["choices"] and here["usage"] == {**there["usage"], **cached(here)}
        one, other = (s.client.post(CHAT, json={**BODY, "n": 2, "stream": False}).json() for s in (front, server))
        assert one["choices"] == other["choices"] and len(one["choices"]) == 2

    def test_stream(self, server: Running, front: Running) -> None:
        body = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
        here, there = (events(s.client.post(CHAT, json=body)) for s in (front, server))
        assert here[-1] == there[-1] == "[DONE]" and json.loads(here[-2])["usage"]["completion_tokens"] > 0
        assert deltas(here) == deltas(there)

    def test_completions(self, server: Running, front: Running) -> None:
        body = {"prompt": "The herons", "max_tokens": 5, "temperature": 0}
        here, there = (s.client.post("/v1/completions", json=body).json() for s in (front, server))
        assert here["choices"] == there["choices"]

    def test_ai21(self, server: Running, front: Running) -> None:
        documents = [{"content": "Mira counted 42 herons.", "metadata": {"title": "Report"}}]
        body = {**BODY, "documents": documents}
        here, there = (s.client.post("/studio/v1/chat/completions", json=body).json() for s in (front, server))
        assert here["choices"] == there["choices"] and here["usage"]["prompt_tokens"] == there["usage"]["prompt_tokens"]
        streamed = events(front.client.post("/studio/v1/chat/completions", json={**body, "stream": True}))
        last = json.loads(streamed[-2])
        assert last["choices"][0]["finish_reason"] and last["usage"]["prompt_tokens"] == here["usage"]["prompt_tokens"]

    def test_anthropic(self, server: Running, front: Running) -> None:
        body = {"model": "x", "max_tokens": 12, "temperature": 0, "messages": ASK, "system": "Answer briefly."}
        here, there = (s.client.post("/v1/messages", json=body).json() for s in (front, server))
        assert here["content"] == there["content"] and here["stop_reason"] == there["stop_reason"]
        assert here["usage"]["output_tokens"] == there["usage"]["output_tokens"]
        counts = [s.client.post("/v1/messages/count_tokens", json=body).json() for s in (front, server)]
        assert counts[0] == counts[1]

    @pytest.mark.parametrize("stream", [False, True])
    def test_ollama(self, server: Running, front: Running, stream: bool) -> None:
        body = {"model": "x", "messages": ASK, "stream": stream, "options": {"temperature": 0, "num_predict": 12}}
        answers = []
        for one in (front, server):
            lines = [json.loads(line) for line in one.client.post("/api/chat", json=body).text.splitlines()]
            answers.append(("".join(line["message"]["content"] for line in lines), lines[-1]["eval_count"]))
        assert answers[0] == answers[1]
        (tag,) = front.client.get("/api/tags").json()["models"]
        assert tag["name"] == "jamba:tiny"
        raw = {"prompt": "The herons", "raw": True, "stream": False, "options": {"temperature": 0, "num_predict": 4}}
        one, other = (s.client.post("/api/generate", json=raw).json()["response"] for s in (front, server))
        assert one == other
        assert front.client.post("/api/show", json={"model": "x"}).json()["capabilities"]

    def test_bedrock(self, server: Running, front: Running) -> None:
        titan = {"inputText": "How many herons?", "textGenerationConfig": {"maxTokenCount": 8, "temperature": 0}}
        here, there = (s.client.post("/model/ai21.jamba-x/invoke", json=titan).json() for s in (front, server))
        assert here == there
        converse = {"messages": [{"role": "user", "content": [{"text": "Hi"}]}], "inferenceConfig": {"maxTokens": 4}}
        answer = front.client.post("/model/x/converse", json=converse).json()
        assert answer["usage"]["outputTokens"] > 0 and answer["stopReason"] in ("max_tokens", "end_turn")

    def test_responses(self, server: Running, front: Running) -> None:
        body = {"input": "How many herons?", "temperature": 0, "max_output_tokens": 8}
        here, there = (s.client.post("/v1/responses", json=body).json() for s in (front, server))
        texts = [a["output"][0]["content"] for a in (here, there)]
        assert texts[0] == texts[1] and here["usage"]["output_tokens"] == there["usage"]["output_tokens"]

    def test_models_and_tokens(self, server: Running, front: Running) -> None:
        here, there = (s.client.get("/v1/models").json()["data"] for s in (front, server))
        assert [m["id"] for m in here] == ["jamba:tiny"] and here[0]["meta"]["n_ctx"] == there[0]["meta"]["n_ctx"]
        assert front.client.post("/tokenize", json={"content": "herons"}).json()["count"] > 0
        assert front.client.get("/health").json() == {"status": "ok"}
        assert front.client.get("/props").status_code == 404

    def test_errors_in_the_form_of_each_api(self, front: Running) -> None:
        long = {"max_tokens": 4, "messages": [{"role": "user", "content": "heron " * 40_000}]}
        openai = front.client.post(CHAT, json=long)
        assert openai.status_code == 400 and openai.json()["error"]["code"] == "context_length_exceeded"
        assert openai.json()["error"]["n_ctx"] == 16384
        anthropic = front.client.post("/v1/messages", json=long)
        assert anthropic.status_code == 400 and anthropic.json()["type"] == "error"
        assert "maximum context length" in anthropic.json()["error"]["message"]
        assert "maximum context" in front.client.post("/api/chat", json=long).json()["error"]
        bedrock = front.client.post("/model/x/invoke", json=long)
        assert bedrock.status_code == 400 and bedrock.headers["x-amzn-errortype"] == "ValidationException"
        refused = front.client.post(CHAT, json={**BODY, "temperature": -1})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "temperature"

    def test_a_client_that_goes_away_ends_the_work_behind(self, server: Running, front: Running) -> None:
        bias = {str(token): -1000 for token in range(8)}
        for path in (CHAT, "/v1/messages"):
            body = {**BODY, "max_tokens": 15_000, "stream": True, "logit_bias": bias}
            with front.client.stream("POST", path, json=body) as response:
                lines = response.iter_lines()
                assert [next(lines) for _ in range(6)]
            wait_until_idle(server)

    def test_a_client_that_goes_away_before_the_first_word(self, server: Running, front: Running) -> None:
        body = {**BODY, "max_tokens": 15_000, "logit_bias": {str(token): -1000 for token in range(8)}}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{front.url}{CHAT}", json=body, timeout=0.3, trust_env=False)
        wait_until_idle(server)


def cached(answer: dict[str, Any]) -> dict[str, Any]:
    """How much was known depends on who asked first."""
    return {"prompt_tokens_details": answer["usage"]["prompt_tokens_details"]}


def deltas(lines: list[str]) -> list[Any]:
    return [c["choices"][0]["delta"] for c in map(json.loads, lines[:-1]) if c["choices"]]


def wait_until_idle(server: Running) -> None:
    deadline = time.monotonic() + 60
    while server.client.get("/health").json()["active"]:
        assert time.monotonic() < deadline, "it works for nobody"
        time.sleep(0.01)


def test_its_key_is_sent_and_none_of_the_clients(tiny: Jamba) -> None:
    with serving(tiny, access=Access(key="secret")) as behind:
        with in_front_of(behind.url, key="secret") as front:
            assert front.client.post(CHAT, json=BODY, headers={"Authorization": "Bearer own"}).status_code == 200
        with in_front_of(behind.url) as front:
            refused = front.client.post(CHAT, json=BODY, headers={"Authorization": "Bearer secret"})
            assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"


@pytest.fixture(scope="module")
def tools_behind() -> Iterator[tuple[Jamba, Running]]:
    """A server in front of one whose model has tools."""
    model = tool_model("list")
    with serving(model, name="small") as behind, in_front_of(behind.url) as front:
        yield model, front


def conversations(stream: bool) -> dict[str, dict[str, Any]]:
    """Requests with a tool, its call and its result, by their path."""
    function = WEATHER["function"]
    openai = {"messages": [*ASK, {"role": "assistant", "content": None, "tool_calls": of_openai([PARIS])}]}
    openai["messages"].append({"role": "tool", "tool_call_id": "id0", "content": "sunny"})
    value = json.loads(PARIS[1])
    blocks = [{"type": "tool_use", "id": "id0", "name": "weather", "input": value}]
    result = {"type": "tool_result", "tool_use_id": "id0", "content": "sunny"}
    flat = {"type": "function_call", "call_id": "id0", "name": "weather", "arguments": PARIS[1]}
    said = [{"toolUse": {"toolUseId": "id0", "name": "weather", "input": value}}]
    back = [{"toolResult": {"toolUseId": "id0", "content": [{"text": "sunny"}]}}]
    spec = {"name": "weather", "description": function["description"], "inputSchema": {"json": function["parameters"]}}
    converse = "/model/small/converse" + ("-stream" if stream else "")
    schema = {"name": "weather", "description": function["description"], "input_schema": function["parameters"]}
    return {
        CHAT: {**openai, "tools": [WEATHER], "stream": stream},
        "/api/chat": {**openai, "tools": [WEATHER], "stream": stream},
        "/v1/messages": {
            "messages": [*ASK, {"role": "assistant", "content": blocks}, {"role": "user", "content": [result]}],
            "tools": [schema],
            "max_tokens": 200,
            "stream": stream,
        },
        "/v1/responses": {
            "input": [*ASK, flat, {"type": "function_call_output", "call_id": "id0", "output": "sunny"}],
            "tools": [{"type": "function", **function}],
            "stream": stream,
        },
        converse: {
            "messages": [
                {"role": "user", "content": [{"text": ASK[0]["content"]}]},
                {"role": "assistant", "content": said},
                {"role": "user", "content": back},
            ],
            "toolConfig": {"tools": [{"toolSpec": spec}]},
        },
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/api/chat", "/v1/messages", "/v1/responses", "/model/small/converse"])
def test_tools(tools_behind: Any, monkeypatch: pytest.MonkeyPatch, path: str, stream: bool) -> None:
    model, front = tools_behind
    bodies = conversations(stream)
    path += "-stream" if path not in bodies else ""
    prompts: list[str] = []
    submit = BatchEngine.submit

    def seen(self: Any, request: Any, **more: Any) -> Any:
        prompts.append(model.tokenizer.decode(request.ids, markers=True))
        return submit(self, request, **more)

    monkeypatch.setattr(BatchEngine, "submit", seen)
    script(monkeypatch, model, written("list", PARIS, ROME, before="Again.\n"))
    answer = front.client.post(path, json=bodies[path])
    assert answer.status_code == 200, answer.text
    # The prompt is the same in every API: the definition, the call and its result.
    assert all(part in prompts[0] for part in ("The weather at a place.", '"place": "Paris"', "sunny"))
    assert called_in(answer, path, stream) == [json.loads(PARIS[1]), json.loads(ROME[1])]


def called_in(answer: httpx.Response, path: str, stream: bool) -> list[Any]:
    """The arguments of the calls in an answer of any API, which has said that calls ended it."""
    text = answer.content.decode("utf-8", "replace")
    assert ("Again." in text or stream) and text.count("weather") >= 2
    if path == "/v1/responses" and stream:
        answers = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
        assert answers[-1]["type"] == "response.completed"
        return [json.loads(o["arguments"]) for o in answers[-1]["response"]["output"] if o["type"] == "function_call"]
    if path == "/v1/responses":
        return [json.loads(o["arguments"]) for o in answer.json()["output"] if o["type"] == "function_call"]
    if path == "/api/chat":
        messages = [json.loads(line)["message"] for line in text.splitlines()]
        return [c["function"]["arguments"] for m in messages for c in m.get("tool_calls", [])]
    if path == CHAT and not stream:
        assert answer.json()["choices"][0]["finish_reason"] == "tool_calls"
        return [json.loads(c["function"]["arguments"]) for c in answer.json()["choices"][0]["message"]["tool_calls"]]
    if path == "/model/small/converse":
        assert answer.json()["stopReason"] == "tool_use"
        return [b["toolUse"]["input"] for b in answer.json()["output"]["message"]["content"] if "toolUse" in b]
    if path == "/v1/messages" and not stream:
        assert answer.json()["stop_reason"] == "tool_use"
        return [b["input"] for b in answer.json()["content"] if b["type"] == "tool_use"]
    # A stream of pieces of arguments: OpenAI's, Anthropic's and Bedrock's.
    assert "tool_calls" in text if path == CHAT else "tool_use" in text
    kinds = (r'"arguments":("(?:[^"\\]|\\.)*")', r'"partial_json":("(?:[^"\\]|\\.)*")', r'"input":("(?:[^"\\]|\\.)*")')
    kind = kinds[(CHAT, "/v1/messages", "/model/small/converse-stream").index(path)]
    joined = "".join(json.loads(piece) for piece in re.findall(kind, text))
    first, at = json.JSONDecoder().raw_decode(joined)
    return [first, json.loads(joined[at:])]


@pytest.fixture(scope="module")
def canned() -> Iterator[tuple[Canned, Running]]:
    behind = Canned(names=("one", "two"))
    with serving_app(behind.app) as running, in_front_of(f"{running.url}/v1/", patience=0.05) as front:
        yield behind, front


MESSAGES = {"model": "two", "max_tokens": 5, "messages": ASK}


def test_documents_become_text_where_they_are_not_known(canned: tuple[Canned, Running]) -> None:
    behind, front = canned
    behind.answer = lambda: JSONResponse({"choices": []})
    documents = [{"content": "42 herons", "metadata": {"title": "Report"}}, {"text": "7 storks"}]
    front.client.post("/studio/v1/chat/completions", json={**BODY, "model": "two", "documents": documents})
    asked = behind.asked[-1]
    assert asked["model"] == "two" and "documents" not in asked and asked["messages"][1:] == ASK
    assert "Title: Report" in asked["messages"][0]["content"] and "7 storks" in asked["messages"][0]["content"]


def test_documents_stay_where_they_are_known() -> None:
    behind = Canned(owner="vllm")
    behind.answer = lambda: JSONResponse({"choices": []})
    with serving_app(behind.app) as running, in_front_of(running.url) as front:
        front.client.post(CHAT, json={**BODY, "documents": [{"content": "42", "metadata": {"title": "R"}}]})
    assert behind.asked[-1]["documents"] == [{"title": "R", "text": "42"}] and behind.asked[-1]["messages"] == ASK


def test_thoughts_usage_and_stop_texts_are_translated(canned: tuple[Canned, Running]) -> None:
    behind, front = canned
    thought = {"choices": [{"index": 0, "delta": {"reasoning": "Hm."}}]}
    behind.answer = lambda: streamed(thought, piece("4"), piece("2", "stop", stop_reason="END"), USAGE, DONE)
    answer = front.client.post("/v1/messages", json={**MESSAGES, "stop_sequences": ["END"], "top_k": 3}).json()
    assert [b.get("text", b.get("thinking")) for b in answer["content"]] == ["Hm.", "42"]
    assert answer["stop_reason"] == "stop_sequence" and answer["stop_sequence"] == "END" and answer["model"] == "two"
    assert answer["usage"]["input_tokens"] == 5 and answer["usage"]["cache_read_input_tokens"] == 4
    asked = behind.asked[-1]
    assert asked["stop"] == ["END"] and asked["top_k"] == 3 and asked["max_tokens"] == 5 and asked["stream"] is True


def called(*items: Any, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"tool_calls": list(items)}, "finish_reason": finish}]}


def test_calls_as_other_servers_stream_them(canned: tuple[Canned, Running]) -> None:
    behind, front = canned
    named = {"type": "function", "function": {"name": "weather", "arguments": ""}}
    behind.answer = lambda: streamed(
        piece("So: "),
        called({"index": 7, "id": "a", **named}),
        called({"index": 7, "function": {"name": "weather", "arguments": '{"place": '}}),  # the name once more
        called({"index": 7, "function": {"arguments": '"Rome"}'}}),
        called(
            {"function": {"name": "clock", "arguments": {"zone": 1}}}, {"index": 9, "function": {"arguments": "lost"}}
        ),
        called({"index": 8, "function": {"name": "weather", "arguments": '{"pla'}}, "no object", finish="stop"),
        USAGE,
        DONE,
    )
    tools = [{"name": name, "input_schema": {"type": "object"}} for name in ("weather", "clock")]
    body = {**MESSAGES, "tools": tools, "tool_choice": {"type": "tool", "name": "weather"}}
    answer = front.client.post("/v1/messages", json=body).json()
    assert answer["stop_reason"] == "tool_use" and answer["content"][0] == {"type": "text", "text": "So: "}
    blocks = answer["content"][1:]
    assert [(b["name"], b["input"]) for b in blocks] == [("weather", {"place": "Rome"}), ("clock", {"zone": 1})]
    assert blocks[0]["id"] == "a" and blocks[1]["id"]
    asked = behind.asked[-1]
    assert asked["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert [tool["function"]["name"] for tool in asked["tools"]] == ["weather"]
    front.client.post("/v1/messages", json={**MESSAGES, "tools": tools, "tool_choice": {"type": "none"}})
    assert behind.asked[-1]["tool_choice"] == "none" and len(behind.asked[-1]["tools"]) == 2
    one = {"type": "any", "disable_parallel_tool_use": True}
    front.client.post("/v1/messages", json={**MESSAGES, "tools": tools, "tool_choice": one})
    assert behind.asked[-1]["tool_choice"] == "required" and behind.asked[-1]["parallel_tool_calls"] is False


def test_signs_of_life_come_while_the_other_is_silent(canned: tuple[Canned, Running]) -> None:
    behind, front = canned
    behind.answer = lambda: streamed(piece("42", "stop"), USAGE, DONE, seconds=0.3)
    text = front.client.post("/v1/messages", json={**MESSAGES, "stream": True}).text
    assert text.count("event: ping") >= 3 and "message_stop" in text
    lines = events(front.client.post(CHAT, json={**BODY, "model": "one", "stream": True}))
    assert sum('"delta":{}' in line for line in lines) >= 3 and lines[-1] == "[DONE]"
    behind.answer = lambda: (time.sleep(0.3), JSONResponse({"choices": [], "usage": {}}))[1]
    assert front.client.post(CHAT, json={**BODY, "model": "one"}).json() == {"choices": [], "usage": {}}


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (lambda: JSONResponse({"error": {"message": "full", "type": "t"}}, 503, {"retry-after": "7"}), 503, "full"),
        (lambda: JSONResponse({"object": "error", "message": "too long", "code": 400}, 400), 400, "too long"),
        (lambda: JSONResponse({"detail": [{"msg": "missing"}]}, 422), 422, "missing"),
        (lambda: Response("<html>", 500), 500, "status 500"),
        (lambda: RedirectResponse("/elsewhere"), 502, "redirects"),
        (lambda: Response("no json"), 502, "no JSON object"),
        (lambda: Response(b"[1]", media_type="application/json"), 502, "no JSON object"),
    ],
)
def test_errors_are_passed_on(canned: tuple[Canned, Running], answer: Any, status: int, words: str) -> None:
    behind, front = canned
    behind.answer = answer
    one = front.client.post(CHAT, json={**BODY, "model": "one"})
    assert one.status_code == status and words in one.json()["error"]["message"]
    assert one.headers.get("retry-after") == ("7" if status == 503 else None)
    if status not in (500, 502) or words == "redirects":
        other = front.client.post("/v1/messages", json=MESSAGES)
        assert other.status_code == status and words in other.json()["error"]["message"]


def test_an_error_within_a_stream_is_told(canned: tuple[Canned, Running]) -> None:
    behind, front = canned
    behind.answer = lambda: streamed(piece("4"), {"error": {"message": "out of memory", "code": 500}})
    assert "out of memory" in front.client.post("/v1/messages", json={**MESSAGES, "stream": True}).text
    last = events(front.client.post(CHAT, json={**BODY, "model": "one", "stream": True}))[-1]
    assert json.loads(last)["error"]["message"] == "out of memory"
    # A stream that ends in the middle of a line is no whole answer, but no crash.
    behind.answer = lambda: streamed(piece("4"), b"data: {")
    assert front.client.post("/v1/messages", json={**MESSAGES, "stream": True}).status_code == 200


def test_a_server_that_is_not_there() -> None:
    with in_front_of("http://127.0.0.1:9") as front:
        for path, body in ((CHAT, BODY), ("/v1/messages", MESSAGES), ("/api/chat", BODY)):
            answer = front.client.post(path, json=body)
            assert answer.status_code == 502 and "cannot be reached" in answer.text
        assert front.client.get("/health").status_code == 502


def test_unknown_names_of_several(canned: tuple[Canned, Running]) -> None:
    _, front = canned
    answer = front.client.post(CHAT, json={**BODY, "model": "three"})
    assert answer.status_code == 404 and "one, two" in answer.json()["error"]["message"]


def test_many_at_once_and_some_that_vanish(server: Running, front: Running) -> None:
    expected = server.client.post(CHAT, json=BODY).json()["choices"]
    wrong: list[Any] = []

    def ask(number: int) -> None:
        if number % 3:
            found = front.client.post(CHAT, json=BODY).json()["choices"]
            wrong.extend([found] if found != expected else [])
        else:
            with contextlib.suppress(httpx.HTTPError):
                body = {**BODY, "max_tokens": 4000}
                httpx.post(f"{front.url}/v1/messages", json=body, timeout=0.01 * number, trust_env=False)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    wait_until_idle(server)


@pytest.fixture(scope="module")
def llama_server() -> Iterator[str]:
    """The address of a llama-server with the demo model; its program is $LLAMA_SERVER or on the path."""
    program = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")
    if not program:
        pytest.skip("llama-server is neither on the path nor in $LLAMA_SERVER")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        program,
        "-m",
        str(demo_model_path()),
        "--port",
        str(port),
        "-np",
        "2",
        "-t",
        "1",
        "-c",
        "8192",
        "--jinja",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                    break
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.mark.peer
def test_llama_server(llama_server: str) -> None:
    with in_front_of(llama_server) as front:
        direct = httpx.post(f"{llama_server}{CHAT}", json=BODY, timeout=120, trust_env=False).json()
        said = direct["choices"][0]["message"]["content"]
        chat = front.client.post(CHAT, json=BODY).json()
        assert chat["choices"][0]["message"]["content"] == said and said
        body = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
        lines = events(front.client.post(CHAT, json=body))
        assert "".join(d.get("content") or "" for d in deltas(lines)) == said
        messages = front.client.post("/v1/messages", json=BODY).json()
        assert messages["content"][0]["text"] == said and messages["usage"]["output_tokens"] == 12
        ollama = front.client.post(
            "/api/chat", json={**BODY, "stream": False, "options": {"temperature": 0, "num_predict": 12}}
        )
        assert ollama.json()["message"]["content"] == said and ollama.json()["eval_count"] == 12
        converse = {"messages": [{"role": "user", "content": [{"text": ASK[0]["content"]}]}]}
        converse["inferenceConfig"] = {"maxTokens": 12, "temperature": 0}
        answer = front.client.post("/model/ai21.jamba/converse", json=converse).json()
        assert answer["output"]["message"]["content"][0]["text"] == said and answer["usage"]["outputTokens"] == 12
        responses = front.client.post(
            "/v1/responses", json={"input": ASK, "temperature": 0, "max_output_tokens": 12}
        ).json()
        assert responses["output"][0]["content"][0]["text"] == said
        completion = front.client.post("/v1/completions", json={"prompt": "The herons", "max_tokens": 3}).json()
        assert completion["choices"][0]["text"]
        documents = [{"content": "Mira counted 42 herons.", "metadata": {"title": "Report"}}]
        with_documents = front.client.post("/studio/v1/chat/completions", json={**BODY, "documents": documents}).json()
        assert with_documents["usage"]["prompt_tokens"] > chat["usage"]["prompt_tokens"]
        long = {**BODY, "messages": [{"role": "user", "content": "heron " * 20_000}]}
        for path in (CHAT, "/v1/messages", "/api/chat"):
            refused = front.client.post(path, json=long)
            assert refused.status_code == 400 and "exceed" in refused.text, refused.text[:300]
        assert front.client.post("/v1/messages/count_tokens", json=BODY).status_code in (200, 404)
        (model,) = front.client.get("/v1/models").json()["data"]
        assert model["meta"]["n_ctx"] > 0
