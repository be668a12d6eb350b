"""OpenAI's batch format: a line of input -> a request, a reply -> a line of output.

{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...], "max_tokens": 100}}
{"id": "batch_req_...", "custom_id": "1", "response": {"status_code": 200, "request_id": "...", "body": {...}}, "error": null}
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jambacli.engine.options import GenerationOptions
from jambacli.errors import JambaError, UsageError, first_line

if TYPE_CHECKING:
    from jambacli.engine.batch_job import Job, Request
    from jambacli.engine.loaded_model import LoadedModel

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"

# Fields of a body that change nothing here: who asks, where it is billed or cached, which model (the one that is loaded).
_IGNORED = frozenset(
    (
        "model",
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "stream_options",
        "parallel_tool_calls",
    )
)
# Fields of a body that only some values are supported for, those that ask for nothing.
_FIXED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
}
# Fields of a body by the option that they set, with the kind of their values.
_OPTIONS: dict[str, tuple[str, type]] = {
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "top_k": ("top_k", int),
    "min_p": ("min_p", float),
    "typical_p": ("typical_p", float),
    "repeat_penalty": ("repeat_penalty", float),
    "repetition_penalty": ("repeat_penalty", float),
    "presence_penalty": ("presence_penalty", float),
    "frequency_penalty": ("frequency_penalty", float),
    "penalty_last_n": ("penalty_last_n", int),
    "seed": ("seed", int),
    "max_tokens": ("max_tokens", int),
    "max_completion_tokens": ("max_tokens", int),
}
# The names of options that are no fields of a body, or others.
_FIELDS = {"ctx": "context length", "schema": "response_format"}
_TEXT_PARTS = ("text", "input_text")


class BadRequestError(JambaError):
    """A request that cannot be answered; ``parameter`` is the field of its body at fault, if it is one; ``custom_id``: that
    of a line that is no request, if it has one."""

    def __init__(self, problem: str, parameter: str | None = None) -> None:
        super().__init__(problem)
        self.parameter = parameter
        self.custom_id: str | None = None


@dataclass(frozen=True)
class BatchLine:
    """One line of the input. ``number``: counted from 1."""

    number: int
    custom_id: str
    url: str
    body: Mapping[str, Any]


def read_line(number: int, text: str) -> BatchLine:
    """Parse a line. Raises BadRequestError for what is not a request in the batch format.

    Without a ``method``, it is POST: the urls have no other.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRequestError("is not a JSON object")
    try:
        return _batch_line(number, value)
    except BadRequestError as error:
        custom_id = value.get("custom_id")
        error.custom_id = custom_id if isinstance(custom_id, str) else None
        raise


def with_system(line: BatchLine, system: str) -> BatchLine:
    """The request with a system message, if it is a chat that has none."""
    messages = line.body.get("messages")
    if line.url != CHAT or not isinstance(messages, list) or any(_is_system(m) for m in messages):
        return line
    return replace(line, body={**line.body, "messages": [{"role": "system", "content": system}, *messages]})


def _is_system(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ("system", "developer")


def _batch_line(number: int, value: Mapping[str, Any]) -> BatchLine:
    if unknown := sorted(value.keys() - {"custom_id", "method", "url", "body"}):
        raise BadRequestError(f"has the unknown field {unknown[0]!r}")
    custom_id, method, url, body = (value.get(k) for k in ("custom_id", "method", "url", "body"))
    if not isinstance(custom_id, str) or not custom_id:
        raise BadRequestError("has no custom_id, a text that names the request")
    if method is not None and method != "POST":
        raise BadRequestError(f"has the method {method!r}; only 'POST' is supported")
    if url not in (CHAT, COMPLETIONS):
        raise BadRequestError(f"has the url {url!r}; supported are {CHAT} and {COMPLETIONS}")
    if not isinstance(body, dict):
        raise BadRequestError("has no body, an object")
    return BatchLine(number, custom_id, url, body)


def request_of_line(model: LoadedModel, line: BatchLine, defaults: GenerationOptions) -> Request:
    """The request to the engine; ``defaults``: the options that the body does not set.

    Raises BadRequestError for an unknown field or an unsupported value, other JambaErrors for what the engine refuses.
    """
    from jambacli.session.requests import chat_request, text_request

    body = {name: value for name, value in line.body.items() if value is not None}
    own = {"messages", "documents"} if line.url == CHAT else {"prompt"}
    known = {*own, *_IGNORED, *_FIXED, *_OPTIONS, "stop", "logit_bias", "response_format"}
    if unknown := sorted(body.keys() - known):
        raise BadRequestError(f"the field {unknown[0]!r} is not supported", unknown[0])
    options = read_options(body, defaults)
    if line.url == COMPLETIONS:
        prompt = body.get("prompt")
        if not isinstance(prompt, str):
            raise BadRequestError("the field 'prompt' must be one text", "prompt")
        return text_request(model, prompt, options)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("the field 'messages' must be a list of messages", "messages")
    documents = body.get("documents")
    if documents is not None and not (
        isinstance(documents, list) and all(isinstance(d, dict) and isinstance(d.get("text"), str) for d in documents)
    ):
        raise BadRequestError("the field 'documents' must be a list of objects with a 'text'", "documents")
    return chat_request(model, [_message(i, m) for i, m in enumerate(messages)], options, documents=documents)


def read_options(body: Mapping[str, Any], defaults: GenerationOptions) -> GenerationOptions:
    """The options of a reply in a body, over ``defaults``. Raises BadRequestError."""
    for name, values in _FIXED.items():
        if name in body and body[name] not in values:
            only = " or ".join(map(json.dumps, values))
            raise BadRequestError(f"the field {name!r} is only supported as {only}", name)
    chosen: dict[str, Any] = {}
    for name, (option, kind) in _OPTIONS.items():
        if name in body:
            chosen[option] = _number(name, body[name], kind)
    if chosen.get("max_tokens", 1) < 1:
        raise BadRequestError("the field 'max_tokens' must be at least 1", "max_tokens")
    if "stop" in body:
        stop = [body["stop"]] if isinstance(body["stop"], str) else body["stop"]
        if not isinstance(stop, list) or not all(isinstance(s, str) for s in stop):
            raise BadRequestError("the field 'stop' must be a text or a list of texts", "stop")
        chosen["stop"] = tuple(stop)
    if "logit_bias" in body:
        try:
            chosen["logit_bias"] = {int(token): float(bias) for token, bias in body["logit_bias"].items()}
        except (AttributeError, TypeError, ValueError, OverflowError):
            raise BadRequestError("the field 'logit_bias' must map token numbers to numbers", "logit_bias") from None
    if "response_format" in body:
        chosen["schema"] = _schema(body["response_format"])
    try:
        return replace(defaults, **chosen)
    except UsageError as error:
        raise BadRequestError(error_text(error), error.field) from error


def error_text(error: Exception) -> str:
    """An error as one line, with the names that options have in a request."""
    if isinstance(error, JambaError):
        return error.worded(lambda option: _FIELDS.get(option, option))
    return f"{type(error).__name__}: {first_line(error)}"


def _number(name: str, value: Any, kind: type) -> int | float:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole or (kind is float and isinstance(value, float) and math.isfinite(value)):
        try:
            return kind(value)
        except OverflowError:  # a whole number beyond the range of float
            raise BadRequestError(f"the field {name!r} is too large", name) from None
    raise BadRequestError(f"the field {name!r} must be a {'whole number' if kind is int else 'number'}", name)


def _schema(value: Any) -> Mapping[str, Any] | None:
    """The JSON schema of a ``response_format``, None for plain text."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        schema = value.get("schema", {"type": "object"})
    elif kind == "json_schema":
        inner = value.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else value.get("schema")
    else:
        schema = None
    if not isinstance(schema, dict):
        wanted = "text, json_object, or json_schema with a schema"
        raise BadRequestError(f"the field 'response_format' must have the type {wanted}", "response_format")
    return schema


def _message(index: int, value: Any) -> dict[str, str]:
    """A message with a role that templates know and a text as its content."""
    where = f"messages[{index}]"
    if not isinstance(value, dict):
        raise BadRequestError(f"{where} is not an object", "messages")
    if unknown := sorted(k for k in value.keys() - {"role", "content", "name"} if value[k]):
        raise BadRequestError(f"{where} has the field {unknown[0]!r}, which is not supported", "messages")
    role, content = value.get("role"), value.get("content")
    if role not in ("system", "developer", "user", "assistant"):
        raise BadRequestError(f"{where} has the role {role!r}, which is not supported", "messages")
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else {} for part in content]
        wrong = [p.get("type") for p in parts if p.get("type") not in _TEXT_PARTS or not isinstance(p.get("text"), str)]
        if wrong:
            raise BadRequestError(f"{where} has content of the type {wrong[0]!r}; only text is supported", "messages")
        content = "".join(part["text"] for part in parts)
    if not isinstance(content, str):
        raise BadRequestError(f"{where} has no text as its content", "messages")
    return {"role": "system" if role == "developer" else role, "content": content}


def output_of(
    line: BatchLine | None, key: str, model: str, job: Job | None, error: Exception | None, said: str | None = None
) -> dict[str, Any]:
    """The line of output for a request that has ended. ``line`` is None for one that is not in the batch format; ``said``:
    the error as text."""
    message = said if said is not None else "" if error is None else error_text(error)
    custom_id = line.custom_id if line is not None else getattr(error, "custom_id", None)
    head = {"id": f"batch_req_{key[:24]}", "custom_id": custom_id}
    if line is None:
        return {**head, "response": None, "error": {"code": "invalid_request", "message": message}}
    if error is not None:
        bad = isinstance(error, JambaError) and job is None  # refused before it ran
        kind = "invalid_request_error" if bad else "server_error"
        parameter = error.parameter if isinstance(error, BadRequestError) else getattr(error, "field", None)
        parameter = _FIELDS.get(parameter, parameter) if parameter is not None else None
        body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": parameter, "code": None}}
        response = {"status_code": 400 if bad else 500, "request_id": key[:24], "body": body}
        return {**head, "response": response, "error": None}
    assert job is not None
    body = completion_of(line.url, key, model, job)
    return {**head, "response": {"status_code": 200, "request_id": key[:24], "body": body}, "error": None}


def completion_of(url: str, key: str, model: str, job: Job, now: Callable[[], float] = time.time) -> dict[str, Any]:
    """The body of the response to a request that has been answered."""
    prompt, generated = len(job.ids), len(job.result.ids)
    choice: dict[str, Any] = {"index": 0, "logprobs": None}
    if url == CHAT:
        choice["message"] = {"role": "assistant", "content": job.text, "refusal": None}
    else:
        choice["text"] = job.text
    choice["finish_reason"] = "stop" if job.result.finish == "stop" else "length"
    return {
        "id": f"{'chatcmpl' if url == CHAT else 'cmpl'}-{key[:24]}",
        "object": "chat.completion" if url == CHAT else "text_completion",
        "created": int(now()),
        "model": model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": job.counters.reused},
        },
    }
