"""Requests with an odd value in the place of any value: answered or refused clearly, never with an error of the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import httpx
import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from jambacli.api import Jamba
from jambacli.server.page.page import Page
from tests.support import fuzz_requests as requests
from tests.support.fuzzing import ODD_VALUES, places, replaced
from tests.support.servers import serving

_JSON = {"content-type": "application/json"}
_SMALL: dict[str, Any] = {"max_tokens": 1, "n": 1, "stream": False}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {**requests._OPENAI, **_SMALL},
    "/v1/completions": {**requests._COMPLETION, **_SMALL, "best_of": 1},
    "/v1/messages": {**requests._ANTHROPIC, "max_tokens": 1},
    "/api/chat": {
        **requests._OLLAMA,
        "options": {**cast("dict[str, Any]", requests._OLLAMA["options"]), "num_predict": 1},
    },
    "/api/generate": {**requests._GENERATE, "stream": False, "options": {"num_predict": 1}},
    "/model/m/converse": requests._CONVERSE,
    "/v1/responses": {**requests._RESPONSES, "max_output_tokens": 1},
    "/v1/library/sessions": {"name": "x", "title": "t", "system": "s", "options": {"temperature": 0, "max_tokens": 1}},
    "/v1/embeddings": {"model": "m", "input": "x"},
    "/tokenize": {"content": "x", "messages": [{"role": "user", "content": "x"}]},
}


@pytest.fixture(scope="module")
def client(tiny: Jamba) -> Iterator[httpx.Client]:
    with serving(tiny, page=Page(keep=False)) as running:
        yield running.client


@pytest.mark.slow
@pytest.mark.parametrize("path", BODIES)
def test_odd_values_are_answered_or_refused(client: httpx.Client, path: str) -> None:
    wrong = []
    for at in places(BODIES[path]):
        for value in ODD_VALUES:
            body = json.dumps(replaced(BODIES[path], at, value))
            answer = client.post(path, content=body, headers=_JSON, timeout=600)
            said = answer.text if answer.is_error else ""  # a reply may have any words
            if answer.status_code == 500 or "internal" in said.lower() or "Traceback" in said:
                wrong.append((at, value, answer.text[:200]))
    assert wrong == []
