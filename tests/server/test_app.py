"""Who may ask, limits, and what the server says of itself."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from jambacli.api import Jamba
from jambacli.server.errors import ApiError
from jambacli.server.http import Access, BodyRoom, is_loopback, read_bytes
from tests.support.servers import Running, serving

ASK = {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 1}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:99"}, 200),
        ({"Host": "a.localhost"}, 200),
        ({"Host": "[::1]:8080"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "evil.example@localhost"}, 403),
        ({"Host": "[::1"}, 400),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
        ({"Host": "localhost:1", "Origin": "http://localhost:2"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 200),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_only_local_names_and_pages_may_ask(server: Running, headers: dict[str, str], status: int, method: str) -> None:
    if method == "GET":
        answer = server.client.get("/v1/models", headers=headers)
    else:
        answer = server.client.post("/v1/chat/completions", json=ASK, headers=headers)
    assert answer.status_code == status
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_an_origin_that_was_allowed_may_ask(tiny: Jamba) -> None:
    origin = {"Origin": "https://page.example"}
    with serving(tiny, access=Access(origins=("https://page.example",))) as one:
        answer = one.client.get("/v1/models", headers=origin)
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://page.example"
        assert one.client.get("/v1/models", headers={"Origin": "https://other.example"}).status_code == 403


def test_every_page_may_ask_where_that_was_said(tiny: Jamba) -> None:
    with serving(tiny, access=Access(key="secret", origins=("*",))) as one:
        headers = {"Origin": "https://other.example", "X-Api-Key": "secret", "Sec-Fetch-Site": "cross-site"}
        answer = one.client.get("/v1/models", headers=headers)
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "*"
        assert one.client.get("/v1/models", headers={**headers, "X-Api-Key": "other"}).status_code == 401


def test_a_key_need_not_be_ascii(tiny: Jamba) -> None:
    with serving(tiny, access=Access(key="s\u00e9cret \u2713")) as one:
        key = "s\u00e9cret \u2713".encode()
        assert one.client.get("/v1/models", headers={b"X-Api-Key": key}).status_code == 200
        assert one.client.get("/v1/models", headers={b"Authorization": b"Bearer " + key}).status_code == 200
        assert one.client.get("/v1/models", headers={b"X-Api-Key": "s\u00e9cret".encode("latin-1")}).status_code == 401


def test_many_large_bodies_at_once_are_refused_with_a_time() -> None:
    room = BodyRoom(100)

    def body(parts: int) -> Any:
        sent = iter([{"body": b"x" * 30, "more_body": i < parts - 1, "type": "http.request"} for i in range(parts)])

        async def receive() -> Any:
            return next(sent)

        return receive

    async def read() -> None:
        assert await read_bytes(body(3), 1000, room) == b"x" * 90
        room.take(50)  # another body
        with pytest.raises(ApiError) as error:
            await read_bytes(body(3), 1000, room)
        assert error.value.status == 503 and error.value.headers()["retry-after"] == "5"
        assert await read_bytes(body(1), 1000, room) == b"x" * 30
        with pytest.raises(ApiError) as error:
            await read_bytes(body(2), 40, BodyRoom(100))
        assert error.value.status == 413

    asyncio.run(read())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Basic secret"}, 401),
        ({"X-Api-Key": "secre"}, 401),
        ({"X-Api-Key": b"s\xc3\xa9cret"}, 401),
        ({"Authorization": "Bearer secret"}, 200),
        ({"Authorization": "bearer  secret"}, 200),
        ({"X-Api-Key": "secret"}, 200),
        ({"Authorization": "AWS4-HMAC-SHA256 Credential=secret/20261130/us-east-1/bedrock/aws4_request, Sig=0"}, 200),
        ({"Authorization": "AWS4-HMAC-SHA256 Credential=other/20261130/us-east-1/bedrock/aws4_request, Sig=0"}, 401),
    ],
)
def test_a_key_is_required_in_one_of_its_places(tiny: Jamba, headers: dict[str, Any], status: int) -> None:
    with serving(tiny, access=Access(key="secret")) as one:
        assert one.client.get("/v1/models", headers=headers).status_code == status
        assert one.client.get("/health", headers=headers).status_code == 200


def test_loopback_addresses() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.2", "example.com", ""))


def test_a_body_over_the_limit_is_refused(server: Running) -> None:
    answer = server.client.post("/v1/chat/completions", content=b" " * (33 << 20))
    assert answer.status_code == 413


def test_unknown_paths_and_methods(server: Running) -> None:
    assert server.client.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert server.client.get("/v1/chat/completions").status_code == 405
    assert server.client.get("/v1/models/gpt-9").status_code == 404


PATHS = {
    "/v1/chat/completions": "OpenAI",
    "/studio/v1/chat/completions": "OpenAI",
    "/v1/responses": "OpenAI",
    "/v1/messages": "Anthropic",
    "/v1/messages/count_tokens": "Anthropic",
    "/api/chat": "Ollama",
    "/api/show": "Ollama",
    "/model/ai21.jamba/invoke": "Bedrock",
    "/model/ai21.jamba/converse-stream": "Bedrock",
}


def is_error(answer: Any, form: str) -> bool:
    body = answer.json()
    if form == "Anthropic":
        return set(body) == {"type", "error"} and body["type"] == "error" and set(body["error"]) == {"type", "message"}
    if form == "Ollama":
        return set(body) == {"error"} and isinstance(body["error"], str)
    if form == "Bedrock":
        return set(body) == {"message"} and answer.headers["x-amzn-errortype"].endswith("Exception")
    return set(body) == {"error"} and {"message", "type", "param", "code"} <= set(body["error"])


@pytest.mark.parametrize("path", PATHS)
def test_every_error_has_the_form_of_its_api(server: Running, path: str) -> None:
    def refused(status: int, **request: Any) -> None:
        answer = server.client.request(request.pop("method", "POST"), request.pop("path", path), **request)
        assert answer.status_code == status and is_error(answer, PATHS[path]), answer.text

    refused(400, content=b"{")
    refused(400, content=b"[]")
    refused(400, json={"messages": 1, "model": "x", "max_tokens": 1, "input": 1} if path != "/api/show" else {})
    refused(403, json=ASK, headers={"Host": "evil.example"})
    refused(403, json=ASK, headers={"Origin": "https://evil.example"})
    refused(405, method="DELETE")
    refused(404, path=f"{path}/nothing/at/all")
    refused(413, content=b" " * (33 << 20))


def test_a_missing_key_is_answered_in_the_form_of_each_api(tiny: Jamba) -> None:
    with serving(tiny, access=Access(key="secret")) as one:
        for path, form in PATHS.items():
            answer = one.client.post(path, json=ASK)
            assert answer.status_code == 401 and is_error(answer, form)


def test_models_and_properties(server: Running, tiny: Jamba) -> None:
    (model,) = server.client.get("/v1/models").json()["data"]
    assert model["id"] == "jamba:tiny" and model["object"] == "model" and model["meta"]["n_ctx"] == 16384
    assert None not in model.values()
    assert server.client.get("/v1/models/jamba:tiny").json() == model
    props = server.client.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 16384 and props["total_slots"] == 4
    assert props["chat_template"] == tiny.template.source


def test_text_becomes_tokens_and_text_again(server: Running, tiny: Jamba) -> None:
    text = "Mira counted <|bom|> herons"
    tokens = server.client.post("/tokenize", json={"content": text}).json()["tokens"]
    assert tokens == tiny.tokenizer.encode(text, markers="all")
    assert server.client.post("/detokenize", json={"tokens": tokens}).json() == {"content": text, "prompt": text}
    plain = server.client.post("/tokenize", json={"content": text, "parse_special": False}).json()["tokens"]
    assert plain == tiny.tokenizer.encode(text)
    chat = server.client.post("/tokenize", json={"messages": ASK["messages"]}).json()["tokens"]
    assert chat == tiny.template.encode(ASK["messages"])
    assert server.client.post("/detokenize", json={"tokens": [10**9]}).status_code == 400
    assert server.client.post("/tokenize", json={"content": 1}).status_code == 400


def test_metrics_count_tokens(server: Running) -> None:
    def value(name: str) -> float:
        text = server.client.get("/metrics").text
        found = re.search(rf"^jamba_{name} (\S+)$", text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    before = value("prompt_tokens_total")
    usage = server.client.post("/v1/chat/completions", json=ASK).json()["usage"]
    assert value("prompt_tokens_total") == before + usage["prompt_tokens"]
    assert value("requests_active") == 0
