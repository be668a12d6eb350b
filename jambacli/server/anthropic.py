"""Anthropic's Messages API."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jambacli.server.context import Server
from jambacli.server.errors import ApiError, as_api_error, bad_request
from jambacli.server.events import Answer, Piece, Running, Waiting
from jambacli.server.file_parts import FilePart, anthropic_file
from jambacli.server.found_calls import CallDelta
from jambacli.server.http import Streaming, compact, error_response, handler, json_response
from jambacli.server.openai import chat_options
from jambacli.server.request import (
    Call,
    Message,
    in_call_order,
    joined_systems,
    model_name,
    read_count,
    read_flag,
    unsupported,
    without_nulls,
)
from jambacli.server.thinking import read_config
from jambacli.server.tools import call_input, definition, given_call, tool_use
from jambacli.text.tool_calls import ToolCall
from jambacli.text.tools import ToolUse

_TOOL_BLOCKS = ("tool_use", "tool_result")

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large"}


def anthropic_error(error: ApiError) -> dict[str, Any]:
    """An error as Anthropic's API has it."""
    kind = _KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    if error.status == 503:
        kind = "overloaded_error"
    message = error.message
    if error.code == "context_length_exceeded":  # the words by which Claude Code and litellm know it
        message = (
            f"prompt is too long: {error.more['n_prompt_tokens']} tokens > {error.more['n_ctx']} maximum. {message}"
        )
    return {"type": "error", "error": {"type": kind, "message": message}}


def anthropic_refusal(error: ApiError) -> Response:
    return error_response(error, anthropic_error)


def read_call(body: Mapping[str, Any], server: Server, *, counting: bool = False) -> Call:
    """A body of /v1/messages, or with ``counting`` of its count_tokens. Raises ApiError."""
    body = without_nulls(body)
    unsupported(body, "mcp_servers", "container")
    items = body.get("messages")
    if not isinstance(items, list) or not items:
        raise bad_request("the field 'messages' must be a list of messages", "messages")
    system = _text("system", body.get("system", ""), "system")
    messages = [Message("system", system)] if system else []
    messages += [message for i, item in enumerate(items) for message in _messages(i, item)]
    if messages[-1].role not in ("user", "tool"):
        raise bad_request("the last message must be the user's: a reply cannot be begun for the model", "messages")
    if not counting and "max_tokens" not in body:
        raise bad_request("the field 'max_tokens' is required", "max_tokens")
    given: dict[str, Any] = {k: body[k] for k in ("temperature", "top_p", "top_k") if k in body}
    if not counting:
        given["max_tokens"] = read_count(body, "max_tokens", 1, 1 << 31, 1)
    if "stop_sequences" in body:
        given["stop"] = body["stop_sequences"]
    options = chat_options(given, server.defaults)
    messages = joined_systems(in_call_order(messages))
    thinking = read_config(body.get("thinking"))
    return Call(messages=messages, options=options, model=model_name(body), thinking=thinking, tools=_tools(body))


def _tools(body: Mapping[str, Any]) -> ToolUse | None:
    """``tools`` and ``tool_choice``, None without tools. Raises ApiError."""
    items, choice = body.get("tools") or [], body.get("tool_choice") or {}
    if not isinstance(items, list) or not isinstance(choice, dict):
        raise bad_request("the field 'tools' must be a list and 'tool_choice' an object", "tools")
    # Tools of the service itself, such as its web search, have no schema.
    kept = [i for i in items if not isinstance(i, dict) or i.get("type", "custom") in ("custom", None)]
    if not kept:
        return None
    definitions = []
    for i, item in enumerate(kept):
        parts = item if isinstance(item, dict) else {}
        fields = (parts.get(k) for k in ("name", "description", "input_schema", "strict"))
        definitions.append(definition(f"tools[{i}]", *fields))
    kind = choice.get("type")
    wanted: Any = "auto" if kind is None else "required" if kind == "any" else kind
    if kind == "tool":
        wanted = {"type": "function", "name": choice.get("name")}
    return tool_use(definitions, wanted, one=choice.get("disable_parallel_tool_use") is True)


def _messages(index: int, value: Any) -> list[Message]:
    """One message, and before it the results of calls in it, which are messages of their own."""
    content = value.get("content") if isinstance(value, dict) else None
    blocks = content if isinstance(content, list) else []
    kinds = {kind: [b for b in blocks if isinstance(b, dict) and b.get("type") == kind] for kind in _TOOL_BLOCKS}
    if not any(kinds.values()):
        return [_message(index, value)]
    where = f"messages[{index}]"
    results = [
        Message("tool", _text(where, _result(b.get("content")), "messages"), call_id=str(b.get("tool_use_id")))
        for b in kinds["tool_result"]
    ]
    if not all(isinstance(b.get("name"), str) for b in kinds["tool_use"]):
        raise bad_request(f"{where} has a tool_use without a name", "messages")
    calls = tuple(given_call(b["name"], b.get("input"), b.get("id")) for b in kinds["tool_use"])
    rest = [b for b in blocks if not isinstance(b, dict) or b.get("type") not in _TOOL_BLOCKS]
    if not rest and not calls:
        return results
    return [*results, replace(_message(index, {**value, "content": rest}), calls=calls)]


def _result(content: Any) -> Any:
    """The content of a call's result, with documents of plain text as texts."""
    if not isinstance(content, list):
        return content or ""
    blocks = []
    for block in content:
        source = block.get("source") if isinstance(block, dict) and block.get("type") == "document" else None
        plain = isinstance(source, dict) and source.get("type") == "text"
        blocks.append({"type": "text", "text": source.get("data")} if plain and source is not None else block)
    return blocks


def _message(index: int, value: Any) -> Message:
    where = f"messages[{index}]"
    role = value.get("role") if isinstance(value, dict) else None
    if role not in ("user", "assistant", "system"):
        raise bad_request(f"{where} must have the role user or assistant", "messages")
    content = value.get("content")
    thoughts = None
    if isinstance(content, list) and role == "assistant":
        parts = [p.get("thinking") for p in content if isinstance(p, dict) and p.get("type") == "thinking"]
        thoughts = "".join(p for p in parts if isinstance(p, str)) or None
        kept = [p for p in content if not (isinstance(p, dict) and p.get("type") in ("thinking", "redacted_thinking"))]
        content = kept
    files: list[FilePart] = []
    text = _text(where, content, "messages", files if role == "user" else None)
    return Message(role, text, thoughts, files=files)


def _text(where: str, content: Any, field: str, files: list[FilePart] | None = None) -> str:
    """A text, or the texts of blocks; blocks with documents go to ``files``."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request(f"{where} has no text as its content", field)
    texts: list[str] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        text = block.get("text") if kind == "text" else None
        if kind == "document" and files is not None:
            files.append(anthropic_file(where, block, field))
            continue
        if not isinstance(text, str):
            raise bad_request(f"{where} has content of the type {kind!r}; only text and documents are supported", field)
        texts.append(text)
    return "\n".join(texts)


class AnthropicRoutes:
    """The handlers."""

    def __init__(self, server: Server) -> None:
        self.server = server

    async def messages(self, request: Request) -> Response:
        """POST /v1/messages."""
        body = await self.server.body(request)
        call, stream = read_call(body, self.server), read_flag(body, "stream")
        running = await self.server.start(request, call)
        if stream:
            return Streaming(self._stream(running), "text/event-stream", error=anthropic_refusal)
        return Streaming(self._whole(running), "application/json", error=anthropic_refusal)

    async def count(self, request: Request) -> Response:
        """POST /v1/messages/count_tokens."""
        call = read_call(await self.server.body(request), self.server, counting=True)
        call = await self.server.documents.attach(call)
        return json_response({"input_tokens": await self.server.models.count_tokens(call)})

    def _head(
        self, model: str, content: Sequence[Any], stop: Answer | None, usage: Mapping[str, int]
    ) -> dict[str, Any]:
        head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model}
        return {**head, "content": list(content), **_stopped(stop), "usage": dict(usage)}

    async def _whole(self, running: Running) -> AsyncIterator[bytes]:
        async for event in running.events():
            if isinstance(event, Waiting):
                yield b" "
            elif isinstance(event, Answer):
                thoughts = [{"type": "thinking", "thinking": event.thoughts, "signature": ""}] if event.thoughts else []
                texts = [{"type": "text", "text": event.text}] if event.text or not event.calls else []
                content = [*thoughts, *texts, *(tool_use_block(call) for call in event.calls)]
                yield compact(self._head(running.model, content, event, _usage(event)))

    async def _stream(self, running: Running) -> AsyncIterator[bytes]:
        # The prompt's tokens are counted; what of them is known is only found when they are read.
        known = {"input_tokens": running.prompt_tokens, "output_tokens": 0}
        yield _event("message_start", message=self._head(running.model, [], None, known))
        block, open_kind = -1, ""
        try:
            async for event in running.events():
                if isinstance(event, Waiting):
                    yield _event("ping")
                elif isinstance(event, Piece):
                    kind = "thinking" if event.thought else "text"
                    if kind != open_kind:
                        if open_kind:
                            yield _event("content_block_stop", index=block)
                        block, open_kind = block + 1, kind
                        empty: dict[str, Any] = {"type": kind, kind: ""}
                        yield _event("content_block_start", index=block, content_block=empty)
                    yield _event("content_block_delta", index=block, delta={"type": f"{kind}_delta", kind: event.text})
                elif isinstance(event, CallDelta):
                    if event.name is not None:
                        if open_kind:
                            yield _event("content_block_stop", index=block)
                        block, open_kind = block + 1, "tool_use"
                        begun = {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}
                        yield _event("content_block_start", index=block, content_block=begun)
                    piece = {"type": "input_json_delta", "partial_json": event.arguments}
                    yield _event("content_block_delta", index=block, delta=piece)
                else:
                    if not open_kind:
                        block = 0
                        yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
                    yield _event("content_block_stop", index=block)
                    yield _event("message_delta", delta=_stopped(event), usage=_usage(event))
                    yield _event("message_stop")
        except Exception as error:
            yield _event(**anthropic_error(as_api_error(error)))


def _stopped(answer: Answer | None) -> dict[str, Any]:
    if answer is None:
        return {"stop_reason": None, "stop_sequence": None}
    reasons = {"length": "max_tokens", "tool_calls": "tool_use"}
    reason = reasons.get(answer.finish, "stop_sequence" if answer.stop_text else "end_turn")
    return {"stop_reason": reason, "stop_sequence": answer.stop_text}


def tool_use_block(call: ToolCall) -> dict[str, Any]:
    """A call as a block of a message."""
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": call_input(call)}


def _usage(answer: Answer) -> dict[str, int]:
    """``input_tokens`` leaves out those that were known."""
    return {
        "input_tokens": answer.prompt_tokens - answer.cached_tokens,
        "cache_read_input_tokens": answer.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": answer.generated_tokens,
    }


def _event(type: str, **fields: Any) -> bytes:
    return f"event: {type}\ndata: ".encode() + compact({"type": type, **fields}) + b"\n\n"


def anthropic_routes(context: Server) -> list[Route]:
    """Anthropic's routes."""
    server = AnthropicRoutes(context)
    work = {"/v1/messages": server.messages, "/v1/messages/count_tokens": server.count}
    return [Route(path, handler(one, anthropic_refusal), methods=["POST"]) for path, one in work.items()]
