"""Who may ask, limits, and what the server says of itself."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from jambacli.api import Jamba
from jambacli.server.http import Access, is_loopback
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
