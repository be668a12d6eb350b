"""Log-probabilities over a real socket: of replies, of prompts, in every form."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from jambacli import data
from jambacli.api import Jamba
from jambacli.evaluation.perplexity import cut, log_softmax, perplexity
from tests.support.servers import Running, events, serving

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "How many herons were counted?"}],
    "temperature": 0,
    "max_tokens": 12,
}


def references(tiny: Jamba, ids: list[int]) -> list[list[float]]:
    """The log-probabilities after each of the tokens, from the whole sequence in one pass."""
    rows: list[list[float]] = log_softmax(tiny.logits(ids, kv_type="f16")).tolist()
    return rows


def name(tiny: Jamba, token: int) -> str:
    return tiny.tokenizer.token_bytes(token, True).decode("utf-8", "replace")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("changes", [{}, {"temperature": 3, "seed": 1, "top_k": 0, "frequency_penalty": 1.5}])
def test_a_chats_tokens_come_with_the_models_log_probabilities(
    server: Running, tiny: Jamba, stream: bool, changes: dict[str, Any]
) -> None:
    body = {**ASK, **changes, "logprobs": True, "top_logprobs": 3, "stream": stream}
    answer = server.client.post(CHAT, json=body)
    if stream:
        choices = [json.loads(e)["choices"][0] for e in events(answer)[:-1]]
        text = "".join(c["delta"].get("content") or "" for c in choices)
        entries = [one for c in choices if c["logprobs"] for one in c["logprobs"]["content"]]
        assert all(c["delta"].get("content") for c in choices if c["logprobs"])
    else:
        (choice,) = answer.json()["choices"]
        text, entries = choice["message"]["content"], choice["logprobs"]["content"]
        assert len(entries) == answer.json()["usage"]["completion_tokens"]
    assert b"".join(bytes(e["bytes"]) for e in entries).decode().strip() == text.strip()
    assert tiny.template is not None
    prompt = tiny.template.encode(ASK["messages"])
    names = {name(tiny, t): t for t in range(tiny.config.vocab_size)}
    ids = [names[e["token"]] for e in entries]
    rows = references(tiny, [*prompt, *ids])[len(prompt) - 1 :]
    for entry, row, token in zip(entries, rows, ids, strict=False):
        assert entry["logprob"] == pytest.approx(row[token], abs=2e-3)
        best = sorted(row, reverse=True)[:3]
        assert [one["logprob"] for one in entry["top_logprobs"]] == pytest.approx(best, abs=2e-3)
        assert all(bytes(one["bytes"]).decode("utf-8", "replace") == one["token"] for one in entry["top_logprobs"])


def test_tokens_of_a_stop_text_are_left_out(server: Running) -> None:
    whole = server.client.post(CHAT, json=ASK).json()["choices"][0]["message"]["content"]
    word = whole.split()[2]
    for stream in (False, True):
        body = {**ASK, "stop": [word], "logprobs": True, "stream": stream}
        answer = server.client.post(CHAT, json=body)
        choices = [json.loads(e)["choices"][0] for e in events(answer)[:-1]] if stream else answer.json()["choices"]
        said = "".join(e["token"] for c in choices if c["logprobs"] for e in c["logprobs"]["content"])
        assert said.strip() == whole[: whole.index(word)].strip()
        assert all(
            "top_logprobs" in e and not e["top_logprobs"]
            for c in choices
            if c["logprobs"]
            for e in c["logprobs"]["content"]
        )


@pytest.mark.parametrize(
    ("max_tokens", "stream", "as_tokens"), [(0, False, False), (3, True, False), (3, False, True), (0, True, True)]
)
def test_a_prompt_is_repeated_with_its_log_probabilities(
    server: Running, tiny: Jamba, max_tokens: int, stream: bool, as_tokens: bool
) -> None:
    text = "Mira counted 42 herons at the lake – and a stork. " * 8
    ids = tiny.tokenizer.encode(text)
    bos = [tiny.tokenizer.bos_id] if tiny.tokenizer.add_bos else []
    prompt = [*bos, *ids] if as_tokens else text
    body = {"prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": max_tokens, "temperature": 0}
    rows = references(tiny, [*bos, *ids])
    for _ in range(2):  # the second time the text is known, but not the logits
        answer = server.client.post(TEXT, json={**body, "stream": stream})
        choices = [json.loads(e)["choices"][0] for e in events(answer)[:-1]] if stream else answer.json()["choices"]
        said = "".join(c["text"] for c in choices)
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for choice in choices:
            for key, values in (choice["logprobs"] or {}).items():
                found[key] += values
        start = tiny.tokenizer.decode(bos, markers=True) if as_tokens else ""
        assert said.startswith(start + text) and choices[-1]["finish_reason"] == "length"
        assert len(found["tokens"]) == len(bos) + len(ids) + max_tokens
        assert found["tokens"][: len(bos) + len(ids)] == [name(tiny, t) for t in [*bos, *ids]]
        assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
        for i, token in enumerate([*bos, *ids][1:]):
            assert found["token_logprobs"][i + 1] == pytest.approx(rows[i][token], abs=2e-3)
            assert max(found["top_logprobs"][i + 1].values()) == pytest.approx(max(rows[i]), abs=2e-3)
            assert found["tokens"][i + 1] in found["top_logprobs"][i + 1]
        # Each token is in the text where its offset says.
        for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
            if "\ufffd" not in token and not token.startswith("<|"):
                assert said[offset : offset + len(token)] == token


def test_a_repeated_prompt_without_log_probabilities_is_known_the_second_time(server: Running) -> None:
    body = {"prompt": "Seven storks and nine cranes. " * 30, "echo": True, "max_tokens": 2, "temperature": 0}
    first, second = (server.client.post(TEXT, json=body).json() for _ in range(2))
    assert first["choices"] == second["choices"] and first["choices"][0]["text"].startswith(body["prompt"])
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 100


def test_what_is_scored_leaves_nothing_behind(tiny: Jamba) -> None:
    from jambacli.cache.prefix_store import PrefixStore

    with serving(tiny, store=True) as one:
        body = {"prompt": "Five cranes. " * 200, "echo": True, "logprobs": 1, "max_tokens": 1}
        before = PrefixStore().stats()["bytes"]
        one.client.post(TEXT, json=body).raise_for_status()
        one.client.post(TEXT, json={**body, "max_tokens": 0}).raise_for_status()
        assert PrefixStore().stats()["bytes"] == before
        usage = one.client.post(TEXT, json={**body, "logprobs": None}).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 0


def test_the_best_of_several_are_the_most_probable(server: Running) -> None:
    body = {"prompt": "The herons", "max_tokens": 6, "temperature": 2, "seed": 3, "logprobs": 0}
    every = server.client.post(TEXT, json={**body, "n": 6}).json()["choices"]
    means = [sum(c["logprobs"]["token_logprobs"]) / len(c["logprobs"]["tokens"]) for c in every]
    order = sorted(range(6), key=lambda i: -means[i])
    best = server.client.post(TEXT, json={**body, "n": 2, "best_of": 6}).json()
    assert [c["text"] for c in best["choices"]] == [every[i]["text"] for i in order[:2]]
    assert [c["index"] for c in best["choices"]] == [0, 1] and best["usage"]["completion_tokens"] > 12
    alone = server.client.post(TEXT, json={**body, "logprobs": None, "best_of": 3}).json()["choices"]
    assert len(alone) == 1 and alone[0]["logprobs"] is None


@pytest.mark.parametrize(
    ("path", "change", "parameter"),
    [
        (CHAT, {"logprobs": 3}, "logprobs"),
        (CHAT, {"top_logprobs": 3}, "top_logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"echo": True}, "echo"),
        (TEXT, {"logprobs": 21}, "logprobs"),
        (TEXT, {"logprobs": True}, "logprobs"),
        (TEXT, {"logprobs": -1}, "logprobs"),
        (TEXT, {"echo": "yes"}, "echo"),
        (TEXT, {"suffix": "end"}, "suffix"),
        (TEXT, {"n": 3, "best_of": 2}, "best_of"),
        (TEXT, {"best_of": 2, "stream": True}, "best_of"),
        (TEXT, {"best_of": 17}, "best_of"),
    ],
)
def test_what_is_wrong_is_said(server: Running, path: str, change: dict[str, Any], parameter: str) -> None:
    answer = server.client.post(path, json={**ASK, "prompt": "x", **change})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == parameter


def test_other_apis_give_the_same_log_probabilities(server: Running) -> None:
    body = {**ASK, "logprobs": True, "top_logprobs": 2}
    wanted = server.client.post(CHAT, json=body).json()["choices"][0]["logprobs"]["content"]
    asked = {"messages": ASK["messages"], "logprobs": True, "top_logprobs": 2}
    options = {"temperature": 0, "num_predict": ASK["max_tokens"]}
    whole = server.client.post("/api/chat", json={**asked, "options": options, "stream": False}).json()
    assert whole["logprobs"] == wanted
    lines = server.client.post("/api/chat", json={**asked, "options": options}).text.splitlines()
    assert [one for line in lines for one in json.loads(line).get("logprobs", [])] == wanted
    given = {"input": ASK["messages"], "temperature": 0, "max_output_tokens": ASK["max_tokens"], "top_logprobs": 2}
    include = ["message.output_text.logprobs"]
    response = server.client.post("/v1/responses", json={**given, "include": include}).json()
    assert response["output"][0]["content"][0]["logprobs"] == wanted
    stream = server.client.post("/v1/responses", json={**given, "include": include, "stream": True}).text
    sent = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
    assert [one for e in sent if e["type"] == "response.output_text.delta" for one in e["logprobs"]] == wanted


def test_the_openai_client_reads_them(server: Running) -> None:
    openai = pytest.importorskip("openai", reason="the extra `clients` is not installed")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
    answer = client.chat.completions.create(model="x", **ASK, logprobs=True, top_logprobs=2)
    first = answer.choices[0].logprobs.content[0]
    assert first.logprob <= 0 and len(first.top_logprobs) == 2 and bytes(first.bytes).decode() == first.token
    with client.chat.completions.stream(model="x", **ASK, logprobs=True, top_logprobs=2) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].logprobs.content == answer.choices[0].logprobs.content
    text = client.completions.create(model="x", prompt="The herons", logprobs=2, echo=True, max_tokens=2)
    assert text.choices[0].logprobs.text_offset[-1] < len(text.choices[0].text)
    include: Any = ["message.output_text.logprobs"]
    response = client.responses.create(model="x", input="Who?", max_output_tokens=4, include=include)
    assert response.output[0].content[0].logprobs[0].logprob <= 0


def test_a_text_is_scored_as_the_evaluation_scores_it(server: Running, tiny: Jamba) -> None:
    """What lm-eval's local-completions asks: windows of tokens, echoed with one log-probability each."""
    windows = cut(tiny.tokenizer, data.held_out_text(), 700, 2000)
    reference = perplexity(tiny, windows, "f16")
    batch = [w.ids for w in windows]
    body = {"prompt": batch, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0, "seed": 1234}
    choices = server.client.post(TEXT, json=body).json()["choices"]
    total = tokens = 0.0
    for choice, window in zip(choices, windows, strict=True):
        scored = choice["logprobs"]["token_logprobs"][window.first : -1]
        total, tokens = total + sum(scored), tokens + len(scored)
    assert tokens == reference.tokens
    assert math.exp(-total / tokens) == pytest.approx(reference.value, rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_lm_eval_finds_the_perplexity_of_the_evaluation(server: Running, tiny: Jamba, batch_size: int) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    pytest.importorskip("aiohttp", reason="lm-eval's extra `api` is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    texts = [part.strip("\n") for part in data.held_out_text().split("\f") if part.strip()][:4]
    windows = cut(tiny.tokenizer, "\f".join(texts), 4000)
    reference = perplexity(tiny, windows, "f16")
    client = LocalCompletionsAPI(base_url=f"{server.url}{TEXT}", model="x", max_length=4002, batch_size=batch_size)
    assert client.tokenizer_backend == "remote" and client.prefix_token_id == tiny.tokenizer.bos_id
    asked = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    total = sum(client.loglikelihood_rolling(asked, disable_tqdm=True))
    assert math.exp(-total / reference.tokens) == pytest.approx(reference.value, rel=1e-4)
    # A choice, without a bos: the greedy continuation is recognised as such.
    start = tiny.tokenizer.encode("The herons")
    greedy = server.client.post(TEXT, json={"prompt": start, "max_tokens": 3, "temperature": 0}).json()
    pairs = [("The herons", greedy["choices"][0]["text"]), ("The herons", " qqq")]
    (_, first), (_, second) = client.loglikelihood([Instance("loglikelihood", {}, p, i) for i, p in enumerate(pairs)])
    assert first and not second
