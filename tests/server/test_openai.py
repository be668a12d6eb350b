"""/v1/chat/completions and /v1/completions over a real socket."""

from __future__ import annotations

import contextlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from jambacli.api import Jamba
from tests.support.servers import Running, events, serving
from tests.support.small_models import small_model

ASK = {"messages": [{"role": "user", "content": "How many herons were counted?"}], "temperature": 0, "max_tokens": 24}
CHAT = "/v1/chat/completions"


def said(tiny: Jamba, text: str = "How many herons were counted?", **options: Any) -> str:
    """What a session of its own answers."""
    with tiny.session(store=False) as session:
        return "".join(session.send(text, **{"temperature": 0, "max_tokens": 24, **options}))


def test_a_chat_is_answered_as_a_session_answers(server: Running, tiny: Jamba) -> None:
    answer = server.client.post(CHAT, json=ASK).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": said(tiny)}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["object"] == "chat.completion" and answer["model"] == "jamba:tiny"
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_stream_has_the_role_first_and_the_same_text(server: Running, tiny: Jamba) -> None:
    response = server.client.post(CHAT, json={**ASK, "stream": True, "stream_options": {"include_usage": True}})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(response)
    assert done == "[DONE]"
    parsed = [json.loads(chunk) for chunk in chunks]
    assert len({chunk["id"] for chunk in parsed}) == 1
    assert parsed[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    usage = parsed.pop()
    assert usage["choices"] == [] and usage["usage"]["prompt_tokens_details"]["cached_tokens"] >= 0
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in parsed) == said(tiny)
    assert [chunk["choices"][0]["finish_reason"] for chunk in parsed] == [None] * (len(parsed) - 1) + ["stop"]


def test_under_ai21s_path_the_last_choice_has_the_usage(server: Running) -> None:
    response = server.client.post("/studio/v1/chat/completions", json={**ASK, "stream": True})
    *chunks, done = events(response)
    assert done == "[DONE]" and all(json.loads(chunk)["choices"] for chunk in chunks)
    assert json.loads(chunks[-1])["usage"]["completion_tokens"] > 0


def test_parts_null_content_and_developer_are_read_as_text(server: Running, tiny: Jamba) -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello.", "name": None},
        {"role": "assistant", "content": None, "tool_calls": [], "refusal": None},
        {"role": "user", "content": [{"type": "text", "text": "How many"}, {"type": "text", "text": "herons?"}]},
    ]
    body = {**ASK, "messages": messages, "tools": [], "user": "me", "seed": None, "unknown": 1}
    answer = server.client.post(CHAT, json=body)
    assert answer.status_code == 200
    plain = [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "How many\nherons?"},
    ]
    same = server.client.post(CHAT, json={**ASK, "messages": plain}).json()
    assert answer.json()["choices"] == same["choices"]
    assert answer.json()["usage"]["prompt_tokens"] == same["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "", "tool_call_id": "1"}]}, "messages"),
        ({"messages": [7]}, "messages"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"n": 1000}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"stop": 7}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"documents": "x"}, "documents"),
        ({"documents": [{"title": "x"}]}, "documents"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"model": 3}, "model"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_said_before_anything_is_sent(
    server: Running, change: dict[str, Any], parameter: str, stream: bool
) -> None:
    answer = server.client.post(CHAT, json={**ASK, "stream": stream, **change})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == parameter and error["type"] == "invalid_request_error" and error["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"[" * 100_000, b'{"a": NaN}', b'{"a": "\\ud800"}', b"\xff", b"1" * 9999]
)
def test_a_body_that_is_no_json_object_is_refused(server: Running, body: bytes) -> None:
    answer = server.client.post(CHAT, content=body)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers_and_never_cut(server: Running, stream: bool) -> None:
    long = {"role": "user", "content": "Mira counted 42 herons. " * 6000}
    answer = server.client.post(CHAT, json={**ASK, "messages": [long], "stream": stream})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded" and error["n_ctx"] == 16384 < error["n_prompt_tokens"]
    assert "context_length_exceeded" in error["message"]
    assert "This model's maximum context length is 16384 tokens" in error["message"]


def test_seeds_repeat_and_several_choices_differ(server: Running) -> None:
    body = {**ASK, "temperature": 5, "top_k": 0, "seed": 7, "n": 3}
    first, again = (server.client.post(CHAT, json=body).json() for _ in range(2))
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2] and len(set(texts)) > 1
    assert texts == [choice["message"]["content"] for choice in again["choices"]]
    one = server.client.post(CHAT, json={**body, "n": 1}).json()
    assert one["choices"][0]["message"]["content"] == texts[0]
    assert first["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]


def test_stop_texts_and_limits_end_a_reply(server: Running, tiny: Jamba) -> None:
    whole = said(tiny)
    word = whole.split()[2]
    stopped = server.client.post(CHAT, json={**ASK, "stop": [word]}).json()["choices"][0]
    assert stopped["message"]["content"] == whole[: whole.index(word)] and stopped["finish_reason"] == "stop"
    short = server.client.post(CHAT, json={**ASK, "max_tokens": 2}).json()
    assert short["choices"][0]["finish_reason"] == "length" and short["usage"]["completion_tokens"] == 2
    endless = server.client.post(CHAT, json={**ASK, "max_tokens": -1, "seed": -1}).json()
    assert endless["choices"][0]["message"]["content"] == whole


def test_a_biased_token_is_never_chosen(server: Running, tiny: Jamba) -> None:
    whole = said(tiny)
    forbidden = {str(token): -1000 for token in tiny.tokenizer.encode(f" {whole}")}
    answer = server.client.post(CHAT, json={**ASK, "logit_bias": forbidden}).json()["choices"][0]["message"]["content"]
    assert answer and not set(map(str, tiny.tokenizer.encode(answer))) & set(forbidden)


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_holds_and_is_complete_within_the_limit(server: Running, stream: bool) -> None:
    pytest.importorskip("llguidance")
    properties = {"name": {"type": "string"}, "count": {"type": "integer"}}
    schema = {"type": "object", "properties": properties, "required": ["name", "count"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    response = server.client.post(CHAT, json={**ASK, "response_format": form, "stream": stream, "max_tokens": 24})
    if stream:
        chunks = [json.loads(chunk) for chunk in events(response)[:-1]]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        finish = chunks[-1]["choices"][0]["finish_reason"]
    else:
        choice = response.json()["choices"][0]
        text, finish = choice["message"]["content"], choice["finish_reason"]
    assert set(json.loads(text)) == {"name", "count"} and finish == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_cannot_be_enforced_is_refused(server: Running, stream: bool) -> None:
    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "not": {}}}}
    answer = server.client.post(CHAT, json={**ASK, "response_format": form, "stream": stream})
    assert answer.status_code == 400


def test_texts_and_tokens_are_completed(server: Running, tiny: Jamba) -> None:
    ids = tiny.tokenizer.encode("The herons were", markers="all")
    body = {"prompt": ["The herons were", "Mira counted"], "max_tokens": 6, "temperature": 0, "n": 2}
    answer = server.client.post("/v1/completions", json=body).json()
    texts = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert texts[0] == texts[1] and texts[2] == texts[3]
    with tiny.session(store=False) as session:
        assert texts[0] == "".join(session.complete("The herons were", temperature=0, max_tokens=6))
    start = [tiny.tokenizer.bos_id] if tiny.tokenizer.add_bos else []
    same = server.client.post("/v1/completions", json={**body, "prompt": [*start, *ids], "n": 1}).json()
    assert same["choices"][0]["text"] == texts[0]
    stream = server.client.post("/v1/completions", json={**body, "prompt": "The herons were", "n": 1, "stream": True})
    assert "".join(json.loads(e)["choices"][0]["text"] for e in events(stream)[:-1]) == texts[0]


@pytest.mark.parametrize("prompt", [None, "", [], [[]], [1, "x"], [10**9], [-1], {}])
def test_prompts_of_other_forms_are_refused(server: Running, prompt: Any) -> None:
    assert server.client.post("/v1/completions", json={"prompt": prompt}).status_code in (200, 400)
    answer = server.client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1})
    assert answer.status_code == (200 if prompt == "" else 400)


def test_equal_prompts_at_once_have_one_answer(server: Running, tiny: Jamba) -> None:
    body = {"messages": [{"role": "user", "content": "Who counted the storks and the herons?"}], "temperature": 0}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.client.post(CHAT, json={**body, "max_tokens": 16}).json(), range(8)))
    texts = {answer["choices"][0]["message"]["content"] for answer in answers}
    assert texts == {said(tiny, "Who counted the storks and the herons?", max_tokens=16)}


def test_signs_of_life_come_while_nothing_else_does(tiny: Jamba) -> None:
    # So short a silence that reading any prompt is one.
    with serving(tiny, keep_alive=0.001) as quick:
        body = {**ASK, "messages": [{"role": "user", "content": "Mira counted 42 herons. " * 300}]}
        chunks = [json.loads(e) for e in events(quick.client.post(CHAT, json={**body, "stream": True}))[:-1]]
        alive = [chunk for chunk in chunks if "prompt_progress" in chunk]
        assert alive and all(chunk["choices"][0]["delta"] == {} for chunk in alive)
        assert all(chunk["choices"][0]["finish_reason"] is None for chunk in alive)
        assert alive[-1]["prompt_progress"]["total"] > 1000
        other = {**body, "messages": [{"role": "user", "content": "Storks. " * 600}]}
        whole = quick.client.post(CHAT, json=other)
        assert whole.text.startswith(" ") and whole.json()["choices"]


@pytest.mark.parametrize("_", range(8))  # it depends on what comes first, the end of the connection or the next token
def test_a_client_that_goes_away_ends_its_own_request_alone(tiny: Jamba, _: int) -> None:
    with serving(tiny, parallel=2) as one:
        endless = {
            **ASK,
            "max_tokens": 8000,
            "stream": True,
            "logit_bias": {str(t): -1000 for t in tiny.tokenizer.stop_ids},
        }
        ended = threading.Event()
        submit = one.worker.engine.submit

        def watched(*values: Any, on_end: Any, **named: Any) -> Any:
            def end(job: Any) -> None:
                on_end(job)
                if job.cancelled:
                    ended.set()

            return submit(*values, on_end=end, **named)

        one.worker.engine.submit = watched
        with contextlib.suppress(httpx.HTTPError), one.client.stream("POST", CHAT, json=endless) as response:
            lines = response.iter_lines()  # kept: without it the connection is closed
            next(line for line in lines if "content" in line and "role" not in line)
            other = one.client.post(CHAT, json=ASK).json()
        assert ended.wait(60)
        assert other["choices"][0]["message"]["content"] == said(tiny)
        assert one.client.get("/health").json() == {"status": "ok", "active": 0, "waiting": 0}


def test_a_full_queue_says_when_to_come_back(tiny: Jamba) -> None:
    with serving(tiny, parallel=1, queue=1) as one:
        endless = {
            **ASK,
            "max_tokens": 8000,
            "stream": True,
            "logit_bias": {str(t): -1000 for t in tiny.tokenizer.stop_ids},
        }
        with one.client.stream("POST", CHAT, json=endless) as first:
            lines = first.iter_lines()  # kept: without them the connections are closed
            next(line for line in lines if "content" in line and "role" not in line)
            with one.client.stream("POST", CHAT, json=endless) as second:
                more = second.iter_lines()
                assert "role" in next(more)
                assert one.client.get("/health").json()["waiting"] == 1
                refused = one.client.post(CHAT, json=ASK)
                assert refused.status_code == 503 and refused.json()["error"]["code"] == "server_busy"
                assert 1 <= int(refused.headers["retry-after"]) <= 120
                assert refused.headers["x-should-retry"] == "true"
                assert one.client.get("/v1/models").status_code == 200


def test_an_error_in_a_stream_is_an_event(tiny: Jamba, monkeypatch: pytest.MonkeyPatch) -> None:
    from jambacli.engine import batch_steps

    def fail(*_: Any) -> int:
        raise RuntimeError("broken")

    with serving(tiny) as one:
        monkeypatch.setattr(batch_steps, "draw", fail)
        *_, last = events(one.client.post(CHAT, json={**ASK, "stream": True}))
        assert json.loads(last)["error"]["type"] == "server_error"
        whole = one.client.post(CHAT, json=ASK)
        assert whole.status_code == 500 and "broken" not in whole.text
        monkeypatch.undo()
        assert one.client.post(CHAT, json=ASK).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_come_apart_and_stay_known_though_they_do_not_come_back(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jambacli.engine import batch

    model = small_model()
    tokenizer = model.tokenizer
    marks = [tokenizer.marker_id("<think>"), tokenizer.marker_id("</think>")]
    script = [
        marks[0],
        *tokenizer.encode("hm the fox"),
        marks[1],
        *tokenizer.encode("\n\nthe dog"),
        *tokenizer.stop_ids,
    ]

    class Scripted:
        def __init__(self, *_: object) -> None:
            self.tokens = iter(script)

        def sample(self, logits: object) -> int:
            return next(self.tokens)

        def forced(self) -> list[int]:
            return []

    monkeypatch.setattr(batch, "Sampler", Scripted)
    messages = [{"role": "user", "content": "Who?"}]
    with serving(model) as server:
        answer = server.client.post(CHAT, json={"messages": messages, "stream": stream})
        if stream:
            deltas = [json.loads(e)["choices"][0]["delta"] for e in events(answer)[:-1]]
            said = {k: "".join(d.get(k, "") for d in deltas) for k in ("content", "reasoning_content")}
        else:
            said = answer.json()["choices"][0]["message"]
            assert answer.json()["usage"]["completion_tokens_details"]["reasoning_tokens"] == len(script) - len(
                [*marks, *tokenizer.encode("\n\nthe dog"), *tokenizer.stop_ids]
            )
        assert said["content"] == "the dog" and said["reasoning_content"] == "hm the fox"
        messages += [{"role": "assistant", "content": "the dog"}, {"role": "user", "content": "And?"}]
        usage = server.client.post(CHAT, json={"messages": messages}).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] > len(script) // 2


def test_variables_reach_the_template() -> None:
    template = "{{ mood }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with serving(small_model(template)) as server:
        body = {"messages": ASK["messages"], "max_tokens": 1}
        plain, moody = (
            server.client.post(CHAT, json={**body, "chat_template_kwargs": v}).json()["usage"]["prompt_tokens"]
            for v in ({}, {"mood": "quick brown fox <think>"})
        )
        assert moody > plain


def test_without_a_template_only_texts_are_completed() -> None:
    with serving(small_model(None)) as server:
        assert server.client.post(CHAT, json=ASK).status_code == 400
        assert server.client.post("/v1/completions", json={"prompt": "the fox"}).status_code == 200


def test_the_log_says_where_a_prompt_departs_from_an_earlier_one(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "jambacli.server")
    for day in ("Monday", "Friday"):
        system = {"role": "system", "content": "Be kind to birds. " * 20 + f"Today is {day}. " + "Be brief. " * 40}
        server.client.post(CHAT, json={**ASK, "messages": [system, *ASK["messages"]]})
    (line,) = [record.getMessage() for record in caplog.records if "became" in record.getMessage()]
    assert "Mon" in line.split("became")[0] and "Fri" in line.split("became")[1]
