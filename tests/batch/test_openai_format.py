"""OpenAI's batch format: what is accepted, what is refused and why, what comes back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jambacli.batch.openai_format import BadRequestError, completion_of, output_of, read_line, request_of_line
from jambacli.engine.batch import BatchEngine
from jambacli.engine.options import GenerationOptions
from jambacli.errors import JambaError, UsageError
from jambacli.model.state import ContextFullError
from tests.support.small_models import small_model

ASK = {"messages": [{"role": "user", "content": "Who counted the herons?"}]}


def line(body: Any, url: str = "/v1/chat/completions", **more: Any) -> str:
    return json.dumps({"custom_id": "x", "method": "POST", "url": url, "body": body, **more})


def request(body: dict[str, Any], url: str = "/v1/chat/completions", **defaults: Any) -> Any:
    return request_of_line(small_model(), read_line(1, line(body, url)), GenerationOptions(**defaults))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "not a JSON object"),
        (line(ASK, priority=1), "unknown field 'priority'"),
        (json.dumps({"method": "POST", "url": "/v1/completions", "body": {}}), "no custom_id"),
        (line(ASK, method="GET"), "method 'GET'"),
        (line(ASK, "/v1/embeddings"), "url '/v1/embeddings'"),
        (line([]), "no body"),
    ],
)
def test_a_line_that_is_no_request_says_why(text: str, problem: str) -> None:
    with pytest.raises(BadRequestError, match=problem):
        read_line(1, text)


@pytest.mark.parametrize(
    ("more", "parameter"),
    [
        ({"tools": [{}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"n": 2}, "n"),
        ({"stream": True}, "stream"),
        ({"logprobs": True}, "logprobs"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 101}, "temperature"),
        ({"seed": 1.5}, "seed"),
        ({"seed": True}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [1]}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": "json"}, "response_format"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "messages"),
        ({"documents": [{"title": "x"}]}, "documents"),
    ],
)
def test_unknown_fields_and_unsupported_values_are_refused_by_name(more: dict[str, Any], parameter: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        request({**ASK, **more})
    assert refused.value.parameter == parameter and parameter.partition("_")[0] in str(refused.value)


def test_fields_become_options_and_the_rest_keep_their_defaults() -> None:
    made = request(
        {
            **ASK,
            "temperature": 0,
            "max_completion_tokens": 7,
            "stop": "x",
            "logit_bias": {"5": -2},
            "repetition_penalty": 1.5,
            "model": "gpt",
            "user": "me",
            "stream": False,
            "n": 1,
            "top_p": None,
        },
        seed=3,
        top_k=9,
    )
    assert made.max_tokens == 7 and made.stops == ("x",)
    s = made.sampling
    assert (s.temperature, s.seed, s.top_k, dict(s.logit_bias), s.repeat_penalty) == (0, 3, 9, {5: -2.0}, 1.5)


def test_fields_that_ask_for_nothing_are_accepted() -> None:
    nothing = {
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": True,
        "functions": [],
        "logprobs": False,
        "top_logprobs": 0,
        "modalities": ["text"],
    }
    nulls = dict.fromkeys([*nothing, "temperature", "stop", "documents", "response_format", "logit_bias", "made_up"])
    plain = request(ASK)
    for more in (nothing, nulls):
        assert request({**ASK, **more}) == plain
    message = {"role": "user", "content": "Who counted the herons?", "name": None, "tool_calls": []}
    assert request({"messages": [message]}) == plain


def test_errors_in_a_response_name_fields_of_the_request() -> None:
    read = read_line(1, line({**ASK, "repetition_penalty": 0}))
    for error, parameter in (
        (ContextFullError("2,000 tokens do not fit in the context of 1,024", remedy="use a larger {ctx}"), None),
        (UsageError("has no place for it", field="schema"), "response_format"),
        (JambaError("no valid reply fits", remedy="raise {max_tokens}"), None),
    ):
        body = output_of(read, "k", "small", None, error)["response"]["body"]["error"]
        assert "--" not in body["message"] and "{" not in body["message"] and body["param"] == parameter
    with pytest.raises(BadRequestError, match=r"repeat_penalty 0\.0 is outside"):
        request_of_line(small_model(), read, GenerationOptions())


def test_the_prompt_is_that_of_a_session() -> None:
    model = small_model()
    with model.session(ctx=2048, store=False, system="Be brief.") as session:
        documents = [{"title": "t", "text": "herons at the lake " * 9}]
        list(session.send("Who?", documents=documents, max_tokens=1, temperature=0))
        expected = session.sequence.tokens
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Who?"}]},
    ]
    made = request({"messages": messages, "documents": documents})
    assert list(made.ids) == expected[: len(made.ids)] and len(made.documents) == 1
    assert list(request({"prompt": "one two"}, "/v1/completions").ids) == model.tokenizer.encode(
        "one two", markers="all"
    )
    with pytest.raises(JambaError):
        request({"messages": [{"role": "assistant", "content": "x"}], "documents": documents})


def test_a_reply_has_the_fields_that_clients_read() -> None:
    parsed = read_line(1, line({**ASK, "max_tokens": 4, "temperature": 0}))
    with BatchEngine(small_model(), parallel=1, ctx=512) as engine:
        job = engine.submit(request_of_line(small_model(), parsed, GenerationOptions()))
        engine.run()
    out = output_of(parsed, "k" * 40, "small", job, None)
    body = out["response"]["body"]
    assert out["custom_id"] == "x" and out["error"] is None and out["response"]["status_code"] == 200
    assert body["object"] == "chat.completion" and body["choices"][0]["message"]["content"] == job.text
    assert body["usage"]["total_tokens"] == len(job.ids) + len(job.result.ids)
    assert completion_of("/v1/completions", "k", "small", job)["choices"][0]["text"] == job.text
    failed = output_of(parsed, "k", "small", job, MemoryError("no room"))
    assert failed["response"]["status_code"] == 500 and failed["response"]["body"]["error"]["type"] == "server_error"
    refused = output_of(parsed, "k", "small", None, BadRequestError("no", "seed"))
    assert refused["response"]["status_code"] == 400 and refused["response"]["body"]["error"]["param"] == "seed"


def test_openais_client_reads_the_output_if_it_is_installed() -> None:
    types = pytest.importorskip("openai.types.chat")
    parsed = read_line(1, line({**ASK, "max_tokens": 4}))
    with BatchEngine(small_model(), parallel=1, ctx=512) as engine:
        job = engine.submit(request_of_line(small_model(), parsed, GenerationOptions()))
        engine.run()
    types.ChatCompletion.model_validate(completion_of(parsed.url, "k", "small", job))
