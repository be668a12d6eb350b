"""The field ``lora`` of a request, and the list of adapters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from jambacli.api import Jamba
from jambacli.hub.demo import demo_model_path
from tests.support.adapters import adapter_for
from tests.support.servers import Running, serving

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "How many herons were counted?"}], "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter_for(tmp_path_factory.mktemp("lora") / "legal.gguf", demo_model_path(), size=0.2)


@pytest.fixture(scope="module")
def adapted(lora: Path) -> Iterator[Running]:
    with serving(Jamba.load(demo_model_path(), device="cpu", loras=[(lora, 0.5)])) as server:
        yield server


def answer(server: Running, lora: Any = None, path: str = CHAT, **more: Any) -> str:
    body = {**ASK, **more, **({} if lora is None else {"lora": lora})}
    response = server.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def reply(lora: Path, scale: float) -> str:
    """What a session with the adapter answers."""
    model = Jamba.load(demo_model_path(), device="cpu", loras=[(lora, scale)])
    with model.session(store=False) as session:
        return "".join(session.send("How many herons were counted?", temperature=0, max_tokens=12))


def test_a_request_chooses_its_adapters(adapted: Running, lora: Path) -> None:
    """By number or name; those that are not named are off; without the field the server's own scales hold."""
    half, none, full = (reply(lora, scale) for scale in (0.5, 0.0, 1.0))
    assert len({half, none, full}) > 1
    for _ in range(2):  # and what was read for one is not used for another
        assert answer(adapted) == half
        assert answer(adapted, []) == none
        assert answer(adapted, [{"id": 0, "scale": 1}]) == full
        assert answer(adapted, [{"name": "legal", "scale": 0.0}]) == none
        assert answer(adapted, [{"name": "legal"}]) == full


def test_prefixes_are_reused_for_the_same_adapters_only(adapted: Running) -> None:
    def cached(scale: float) -> int:
        body = {
            **ASK,
            "messages": [{"role": "user", "content": "A new question?"}],
            "lora": [{"id": 0, "scale": scale}],
        }
        usage = adapted.client.post(CHAT, json=body).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert cached(0.25) == 0
    assert cached(0.75) == 0
    assert cached(0.25) > 0


def test_the_adapters_are_listed(adapted: Running) -> None:
    listed = adapted.client.get("/lora-adapters").json()
    assert listed == [{"id": 0, "name": "legal", "path": "legal.gguf", "scale": 0.5}]


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("legal", "must be a list"),
        ([1], "must be an object"),
        ([{"scale": 1}], "'id' or the 'name'"),
        ([{"id": 0, "name": "legal"}], "'id' or the 'name'"),
        ([{"id": 1}], "there is no LoRA adapter"),
        ([{"id": -1}], "there is no LoRA adapter"),
        ([{"name": "../legal"}], "there is no LoRA adapter"),
        ([{"id": "0"}], "no valid id"),
        ([{"id": True}], "no valid id"),
        ([{"id": 0, "scale": "1"}], "scale must be a number"),
        ([{"id": 0, "scale": 1e9}], "scale must be a number"),
        ([{"id": 0}] * 65, "up to 64"),
    ],
)
def test_what_is_wrong_is_refused(adapted: Running, field: Any, words: str) -> None:
    for path in (CHAT, "/v1/completions"):
        response = adapted.client.post(path, json={**ASK, "prompt": "x", "lora": field})
        assert response.status_code == 400
        assert words in response.json()["error"]["message"]


def test_a_server_without_adapters_says_so(server: Running) -> None:
    assert server.client.get("/lora-adapters").json() == []
    assert answer(server, [])
    response = server.client.post(CHAT, json={**ASK, "lora": [{"id": 0}]})
    assert response.status_code == 400 and "none" in response.json()["error"]["message"]
