"""Many clients at once, some of which vanish, and requests made to do harm: right answers, no 500, nothing stuck."""

from __future__ import annotations

import contextlib
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from jambacli.api import Jamba
from tests.support.servers import Running, serving

CHAT = "/v1/chat/completions"
QUESTIONS = [f"How many {bird} were counted?" for bird in ("herons", "storks", "cranes", "swans", "geese", "gulls")]
LONG = "Mira counted 42 herons at the lake. " * 40


def body(question: str, tokens: int = 12) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": tokens}


def alone(tiny: Jamba, question: str, tokens: int = 12) -> str:
    with tiny.session(store=False) as session:
        return "".join(session.send(question, temperature=0, max_tokens=tokens))


def wait_until_idle(server: Running) -> None:
    deadline = time.monotonic() + 60
    while server.client.get("/health").json() != {"status": "ok", "active": 0, "waiting": 0}:
        assert time.monotonic() < deadline, "requests are stuck"
        time.sleep(0.01)


@pytest.mark.slow
def test_eight_equal_prompts_at_once_have_one_answer_in_every_round(tiny: Jamba) -> None:
    with serving(tiny, parallel=8) as server, ThreadPoolExecutor(8) as pool:
        for number in range(20):
            question = f"{number} times: {QUESTIONS[number % len(QUESTIONS)]}"
            answers = list(pool.map(lambda _, q=question: server.client.post(CHAT, json=body(q)).json(), range(8)))
            assert {a["choices"][0]["message"]["content"] for a in answers} == {alone(tiny, question)}


@pytest.mark.slow
def test_clients_that_vanish_disturb_nobody(tiny: Jamba) -> None:
    prompts = [*QUESTIONS, *(f"{LONG}{q}" for q in QUESTIONS)]
    expected = {p: alone(tiny, p) for p in prompts}
    chosen = random.Random(1)
    work = [(chosen.choice(prompts), chosen.random() < 1 / 3, chosen.random()) for _ in range(200)]

    def ask(job: tuple[str, bool, float]) -> bool:
        prompt, vanishes, when = job
        if not vanishes:
            answer = server.client.post(CHAT, json=body(prompt)).json()
            return bool(answer["choices"][0]["message"]["content"] == expected[prompt])
        with contextlib.suppress(httpx.HTTPError):
            if when < 0.5:
                httpx.post(f"{server.url}{CHAT}", json=body(prompt, 4000), timeout=when / 10, trust_env=False)
            else:
                with server.client.stream("POST", CHAT, json={**body(prompt, 4000), "stream": True}) as response:
                    for _, _line in zip(range(int(when * 10)), response.iter_lines(), strict=False):
                        pass
        return True

    with serving(tiny, parallel=4, queue=256) as server:
        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(ask, work))
        wait_until_idle(server)
        assert len(server.worker.engine.jobs) == 0
        assert (
            server.client.post(CHAT, json=body(prompts[0])).json()["choices"][0]["message"]["content"]
            == (expected[prompts[0]])
        )


PATHS = [
    CHAT,
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/api/chat",
    "/api/generate",
    "/api/show",
    "/studio/v1/chat/completions",
    "/model/x/invoke",
    "/model/x/converse",
    "/model/x/converse-stream",
    "/model/x/invoke-with-response-stream",
    "/tokenize",
    "/detokenize",
]
NAMES = [
    "messages", "prompt", "input", "inputText", "parameters", "textGenerationConfig", "inferenceConfig", "options", "model",
    "system", "instructions", "documents", "stop", "stop_sequences", "n", "seed", "stream", "stream_options", "format", "text",
    "response_format", "logit_bias", "temperature", "top_p", "top_k", "chat_template_kwargs", "tools", "tool_choice",
    "content", "tokens", "raw", "additionalModelRequestFields", "max_output_tokens", "name", "metadata", "logprobs", "think",
]  # fmt: skip


def _value(random_: random.Random, depth: int = 0) -> Any:
    plain: list[Any] = [
        None, True, False, 0, 1, -1, 2, 1e308, -0.5, 10**30, "", "user", "text", "Hello", "\u0000", "\U0001f600", "<|bom|>",
        "\ufdd0", "x" * 1000, [], {},
    ]  # fmt: skip
    kind = random_.random()
    if depth > 3 or kind < 0.5:
        return random_.choice(plain)
    if kind < 0.75:
        return [_value(random_, depth + 1) for _ in range(random_.randrange(4))]
    keys = ["role", "content", "type", "text", "source", "document", "schema", "json_schema", "1", "thinking", "images"]
    return {random_.choice(keys + NAMES): _value(random_, depth + 1) for _ in range(random_.randrange(4))}


def _body(random_: random.Random) -> dict[str, Any]:
    valid: dict[str, Any] = {
        "messages": [
            {"role": "user", "content": random_.choice(["Hello", [{"type": "text", "text": "Hi"}], [{"text": "a"}]])}
        ],
        "prompt": "Hello",
        "input": "Hello",
        "max_tokens": 2,
    }
    kept = {k: v for k, v in valid.items() if random_.random() < 0.8}
    return {
        **kept,
        **{random_.choice(NAMES): _value(random_) for _ in range(random_.randrange(4))},
        "max_output_tokens": 2,
    }


@pytest.mark.parametrize("seed", range(4))
def test_no_body_is_an_error_of_the_server(tiny: Jamba, seed: int) -> None:
    chosen = random.Random(seed)
    small = {"num_predict": 2}
    defaults = None
    with serving(tiny, ctx=256, defaults=defaults) as server:
        for _ in range(150):
            path, sent = chosen.choice(PATHS), _body(chosen)
            if path.startswith("/api/") and isinstance(sent.get("options", {}), dict):
                sent["options"] = {**sent.get("options", {}), **small}
            answer = server.client.post(path, json=sent)
            assert answer.status_code in (200, 400), (path, json.dumps(sent), answer.text)
        wait_until_idle(server)
        assert server.client.post(CHAT, json=body(QUESTIONS[0])).status_code == 200
