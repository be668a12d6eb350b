"""OpenAI's Responses API, without state: what came before is in the request."""

from __future__ import annotations

import itertools
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jambacli.server.context import Server
from jambacli.server.errors import ApiError, as_api_error, bad_request
from jambacli.server.events import Answer, Piece, Running, Waiting
from jambacli.server.found_calls import CallDelta
from jambacli.server.http import Streaming, compact, handler, openai_error
from jambacli.server.logprobs import MAX_TOP, content_logprobs
from jambacli.server.lora import read_lora
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
from jambacli.server.tools import joined_calls, read_tools
from jambacli.text.tool_calls import ToolCall

logger = logging.getLogger(__name__)

_SAME_NAMES = ("temperature", "top_p", "top_k", "seed")


def read_call(body: Mapping[str, Any], server: Server) -> Call:
    """A body of /v1/responses. Raises ApiError."""
    body = without_nulls(body)
    unsupported(body, "previous_response_id", "conversation", "background", "prompt")
    instructions, given_input = body.get("instructions", ""), body.get("input")
    if not isinstance(instructions, str):
        raise bad_request("the field 'instructions' must be a text", "instructions")
    items: list[Any] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given_input, str):
        items.append({"role": "user", "content": given_input})
    elif isinstance(given_input, list):
        items += [_item(i, item) for i, item in enumerate(given_input) if _is_kept(i, item)]
        if not given_input:  # Codex asks so whether the server answers
            items.append({"role": "user", "content": ""})
    else:
        raise bad_request("the field 'input' must be a text or a list of items", "input")
    messages: list[Message] = read_messages(joined_calls(items), "input")
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
        lora=read_lora(body),
        tools=read_tools(_functions(body)),
    )


def _asked_logprobs(body: Mapping[str, Any]) -> int | None:
    include = body.get("include", [])
    if not isinstance(include, list):
        raise bad_request("the field 'include' must be a list", "include")
    asked = "message.output_text.logprobs" in include or "top_logprobs" in body
    return read_count(body, "top_logprobs", 0, MAX_TOP, 0) if asked else None


def _functions(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The body with functions alone as its tools: clients send kinds that only OpenAI's service has, and expect no call."""
    tools = body.get("tools")
    if not isinstance(tools, list):
        return body
    kept = [t for t in tools if not isinstance(t, dict) or t.get("type", "function") == "function"]
    if len(kept) < len(tools):
        logger.info("tools of other types than function are left out")
    return {**body, "tools": kept}


def _is_kept(index: int, item: Any) -> bool:
    """Whether an item is a message, a call or a result; thoughts are left out, others are refused."""
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if kind not in ("message", "reasoning", "function_call", "function_call_output"):
        raise bad_request(f"input[{index}] is of the type {kind!r}; only messages and calls are supported", "input")
    return bool(kind != "reasoning")


def _item(index: int, item: Mapping[str, Any]) -> dict[str, Any]:
    """An item as a message of a chat."""
    kind = item.get("type", "message")
    if kind == "function_call":
        call = {"id": item.get("call_id"), "function": {"name": item.get("name"), "arguments": item.get("arguments")}}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if kind == "function_call_output":
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
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
            "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": body.get("tools") or [],
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
        output: list[dict[str, Any]] = []
        yield sent("response.created", response=shell)
        yield sent("response.in_progress", response=shell)
        try:
            async for event in running.events():
                if isinstance(event, Waiting):
                    yield sent("response.in_progress", response=shell)
                elif isinstance(event, Piece):
                    if event.thought:
                        continue
                    if not output or output[-1]["type"] != "message":
                        for kind, fields in _closed(output):
                            yield sent(kind, **fields)
                        for kind, fields in _begun(output, _message(name if not output else _item_id("msg"), "")):
                            yield sent(kind, **fields)
                    logprobs = content_logprobs(event.logprobs, running.tokenizer)
                    part = output[-1]["content"][0]
                    part["text"] += event.text
                    part["logprobs"] += logprobs
                    place = {**_place(output), "content_index": 0}
                    yield sent("response.output_text.delta", **place, delta=event.text, logprobs=logprobs)
                elif isinstance(event, CallDelta):
                    if event.name is not None:
                        for kind, fields in _closed(output):
                            yield sent(kind, **fields)
                        for kind, fields in _begun(output, _call(ToolCall(event.name, "", event.id))):
                            yield sent(kind, **fields)
                    if event.arguments:
                        output[-1]["arguments"] += event.arguments
                        kind = "response.function_call_arguments.delta"
                        yield sent(kind, **_place(output), delta=event.arguments)
                else:
                    if not output:
                        for kind, fields in _begun(output, _message(name, "")):
                            yield sent(kind, **fields)
                    whole = event.finish != "length"
                    for kind, fields in _closed(output, "completed" if whole else "incomplete"):
                        yield sent(kind, **fields)
                    ended = "response.completed" if whole else "response.incomplete"
                    yield sent(ended, response={**_finished(shell, event, name, running), "output": output})
        except Exception as error:
            failure: ApiError = as_api_error(error)
            fields = openai_error(failure)["error"]
            failed = {"code": "server_error", "message": failure.message}
            yield sent("response.failed", response={**shell, "status": "failed", "error": failed})
            yield sent("error", code=fields["code"], message=failure.message, param=failure.parameter)


_Events = list[tuple[str, dict[str, Any]]]


def _item_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def _message(
    name: str, text: str, status: str = "in_progress", logprobs: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}]
    return {"id": name, "type": "message", "role": "assistant", "status": status, "content": content}


def _call(call: ToolCall, status: str = "in_progress") -> dict[str, Any]:
    head = {"id": _item_id("fc"), "type": "function_call", "status": status}
    return {**head, "call_id": call.id, "name": call.name, "arguments": call.arguments}


def _place(output: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"item_id": output[-1]["id"], "output_index": len(output) - 1}


def _begun(output: list[dict[str, Any]], item: dict[str, Any]) -> _Events:
    """The events of an item that begins; it is added to the output."""
    output.append(item)
    events: _Events = []
    empty = {**item, "content": []} if item["type"] == "message" else dict(item)
    events.append(("response.output_item.added", {"output_index": len(output) - 1, "item": empty}))
    if item["type"] == "message":
        part = {"type": "output_text", "text": "", "annotations": []}
        events.append(("response.content_part.added", {**_place(output), "content_index": 0, "part": part}))
    return events


def _closed(output: Sequence[dict[str, Any]], status: str = "completed") -> _Events:
    """The events of the last item's end."""
    if not output or output[-1]["status"] != "in_progress":
        return []
    item, place = output[-1], _place(output)
    item["status"] = status
    events: _Events = []
    if item["type"] == "message":
        part = item["content"][0]
        inner = {**place, "content_index": 0}
        events.append(("response.output_text.done", {**inner, "text": part["text"], "logprobs": part["logprobs"]}))
        events.append(("response.content_part.done", {**inner, "part": part}))
    else:
        fields = {**place, "name": item["name"], "arguments": item["arguments"]}
        events.append(("response.function_call_arguments.done", fields))
    events.append(("response.output_item.done", {"output_index": len(output) - 1, "item": dict(item)}))
    return events


def _finished(shell: Mapping[str, Any], answer: Answer, name: str, running: Running) -> dict[str, Any]:
    whole = answer.finish != "length"
    logprobs = content_logprobs(answer.logprobs, running.tokenizer)
    status = "completed" if whole else "incomplete"
    items = [_message(name, answer.text, status, logprobs)] if answer.text or not answer.calls else []
    items += [_call(call, "completed") for call in answer.calls]
    usage = {
        "input_tokens": answer.prompt_tokens,
        "input_tokens_details": {"cached_tokens": answer.cached_tokens},
        "output_tokens": answer.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": answer.thought_tokens},
        "total_tokens": answer.prompt_tokens + answer.generated_tokens,
    }
    details = None if whole else {"reason": "max_output_tokens"}
    return {**shell, "status": status, "incomplete_details": details, "output": items, "usage": usage}


def responses_routes(context: Server) -> list[Route]:
    """The route of the Responses API."""
    return [Route("/v1/responses", handler(ResponsesRoutes(context).respond), methods=["POST"])]
