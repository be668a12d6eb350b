"""OpenAI's Responses API, without state: what came before is in the request."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jambacli.server.context import Server
from jambacli.server.errors import ApiError, as_api_error, bad_request
from jambacli.server.http import Streaming, compact, handler, openai_error
from jambacli.server.logprobs import MAX_TOP, content_logprobs
from jambacli.server.openai import chat_options
from jambacli.server.request import (
    Call,
    Message,
    model_name,
    read_count,
    read_flag,
    read_messages,
    unsupported,
    without_nulls,
)
from jambacli.server.thinking import read_effort
from jambacli.server.worker import Answer, Piece, Running, Waiting

_SAME_NAMES = ("temperature", "top_p", "top_k", "seed")


def read_call(body: Mapping[str, Any], server: Server) -> Call:
    """A body of /v1/responses. Raises ApiError."""
    body = without_nulls(body)
    unsupported(body, "previous_response_id", "conversation", "background", "tools", "prompt")
    instructions, given_input = body.get("instructions", ""), body.get("input")
    if not isinstance(instructions, str):
        raise bad_request("the field 'instructions' must be a text", "instructions")
    items: list[Any] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given_input, str):
        items.append({"role": "user", "content": given_input})
    elif isinstance(given_input, list):
        items += [_item(i, item) for i, item in enumerate(given_input) if _is_message(i, item)]
        if not given_input:  # Codex asks so whether the server answers
            items.append({"role": "user", "content": ""})
    else:
        raise bad_request("the field 'input' must be a text or a list of items", "input")
    messages: list[Message] = read_messages(items, "input")
    given = {name: body[name] for name in _SAME_NAMES if name in body}
    if "max_output_tokens" in body:
        given["max_tokens"] = body["max_output_tokens"]
    text = body.get("text", {})
    form = text.get("format") if isinstance(text, dict) else text
    if form is not None:
        given["response_format"] = form
    options = chat_options(given, server.defaults)
    return Call(
        messages=messages,
        options=options,
        model=model_name(body),
        logprobs=_asked_logprobs(body),
        thinking=read_effort(body),
    )


def _asked_logprobs(body: Mapping[str, Any]) -> int | None:
    include = body.get("include", [])
    if not isinstance(include, list):
        raise bad_request("the field 'include' must be a list", "include")
    asked = "message.output_text.logprobs" in include or "top_logprobs" in body
    return read_count(body, "top_logprobs", 0, MAX_TOP, 0) if asked else None


def _is_message(index: int, item: Any) -> bool:
    """Whether an item is a message; thoughts are left out, others are refused."""
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if kind not in ("message", "reasoning"):
        raise bad_request(f"input[{index}] is of the type {kind!r}; only messages are supported", "input")
    return bool(kind == "message")


def _item(index: int, item: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": item.get("role"), "content": item.get("content")}


class ResponsesRoutes:
    """The handlers."""

    def __init__(self, server: Server) -> None:
        self.server = server

    async def respond(self, request: Request) -> Response:
        """POST /v1/responses."""
        body = await self.server.body(request)
        call, stream = read_call(body, self.server), read_flag(body, "stream")
        running = await self.server.start(request, call)
        shell = self._shell(body, running.model)
        if stream:
            return Streaming(self._stream(running, shell), "text/event-stream")
        return Streaming(self._whole(running, shell), "application/json")

    def _shell(self, body: Mapping[str, Any], model: str) -> dict[str, Any]:
        """The response before there is anything in it."""
        return {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "status": "in_progress",
            "output": [],
            "error": None,
            "incomplete_details": None,
            "instructions": body.get("instructions"),
            "metadata": body.get("metadata") or {},
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
            "temperature": body.get("temperature"),
            "top_p": body.get("top_p"),
        }

    async def _whole(self, running: Running, shell: dict[str, Any]) -> AsyncIterator[bytes]:
        async for event in running.events():
            if isinstance(event, Waiting):
                yield b" "
            elif isinstance(event, Answer):
                yield compact(_finished(shell, event, f"msg_{uuid.uuid4().hex}", running))

    async def _stream(self, running: Running, shell: dict[str, Any]) -> AsyncIterator[bytes]:
        numbers = itertools.count()

        def sent(kind: str, **fields: Any) -> bytes:
            value = {"type": kind, "sequence_number": next(numbers), **fields}
            return f"event: {kind}\ndata: ".encode() + compact(value) + b"\n\n"

        name = f"msg_{uuid.uuid4().hex}"
        place = {"item_id": name, "output_index": 0, "content_index": 0}
        empty = {"id": name, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        yield sent("response.created", response=shell)
        yield sent("response.in_progress", response=shell)
        yield sent("response.output_item.added", output_index=0, item=empty)
        part = {"type": "output_text", "text": "", "annotations": []}
        yield sent("response.content_part.added", **place, part=part)
        try:
            async for event in running.events():
                if isinstance(event, Waiting):
                    yield sent("response.in_progress", response=shell)
                elif isinstance(event, Piece):
                    if not event.thought:
                        logprobs = content_logprobs(event.logprobs, running.tokenizer)
                        yield sent("response.output_text.delta", **place, delta=event.text, logprobs=logprobs)
                else:
                    whole = _finished(shell, event, name, running)
                    item = whole["output"][0]
                    logprobs = item["content"][0]["logprobs"]
                    yield sent("response.output_text.done", **place, text=event.text, logprobs=logprobs)
                    yield sent("response.content_part.done", **place, part=item["content"][0])
                    yield sent("response.output_item.done", output_index=0, item=item)
                    ended = "response.completed" if event.finish == "stop" else "response.incomplete"
                    yield sent(ended, response=whole)
        except Exception as error:
            failure: ApiError = as_api_error(error)
            fields = openai_error(failure)["error"]
            failed = {"code": "server_error", "message": failure.message}
            yield sent("response.failed", response={**shell, "status": "failed", "error": failed})
            yield sent("error", code=fields["code"], message=failure.message, param=failure.parameter)


def _finished(shell: Mapping[str, Any], answer: Answer, name: str, running: Running) -> dict[str, Any]:
    whole = answer.finish == "stop"
    logprobs = content_logprobs(answer.logprobs, running.tokenizer)
    content = [{"type": "output_text", "text": answer.text, "annotations": [], "logprobs": logprobs}]
    status = "completed" if whole else "incomplete"
    item = {"id": name, "type": "message", "role": "assistant", "status": status, "content": content}
    usage = {
        "input_tokens": answer.prompt_tokens,
        "input_tokens_details": {"cached_tokens": answer.cached_tokens},
        "output_tokens": answer.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": answer.thought_tokens},
        "total_tokens": answer.prompt_tokens + answer.generated_tokens,
    }
    details = None if whole else {"reason": "max_output_tokens"}
    return {**shell, "status": status, "incomplete_details": details, "output": [item], "usage": usage}


def responses_routes(context: Server) -> list[Route]:
    """The route of the Responses API."""
    return [Route("/v1/responses", handler(ResponsesRoutes(context).respond), methods=["POST"])]
