"""The routes in front of another server: OpenAI's own requests are passed on as they are, and what the server says of itself.

The other APIs' routes are those of this server, with ``Upstream`` in place of its models.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import Response

from jambacli.server.context import Server
from jambacli.server.errors import as_api_error
from jambacli.server.http import Streaming, compact, json_response, openai_error
from jambacli.server.request import model_name, read_documents, read_flag
from jambacli.server.upstream import Upstream
from jambacli.server.upstream_call import with_document_text
from jambacli.server.upstream_client import UpstreamStream, json_object, read_all, sse_chunks

_CHAT, _TEXT = "/v1/chat/completions", "/v1/completions"
_DONE = b"data: [DONE]\n\n"


class UpstreamRoutes:
    """The handlers."""

    def __init__(self, server: Server, upstream: Upstream) -> None:
        self.server, self.upstream = server, upstream

    async def chat(self, request: Request, ai21: bool = False) -> Response:
        """POST /v1/chat/completions and /studio/v1/chat/completions."""
        body = await self.server.body(request)
        documents = read_documents(body.get("documents"))
        if documents and await self.upstream.takes_documents():
            body["documents"] = documents
        elif documents:
            del body["documents"]
            messages = body.get("messages")
            if isinstance(messages, list) and all(isinstance(m, dict) for m in messages):
                body["messages"] = with_document_text(messages, documents)
        return await self._passed_on(request, body, _CHAT, ai21)

    async def completion(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._passed_on(request, await self.server.body(request), _TEXT, False)

    async def health(self, request: Request) -> Response:
        """GET /health: whether the other server answers."""
        await self.upstream.entries()
        return json_response({"status": "ok"})

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize, where the other server has it."""
        body = await self.server.body(request)
        return json_response(await self.upstream.client.request("POST", "/tokenize", body))

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize, where the other server has it."""
        body = await self.server.body(request)
        return json_response(await self.upstream.client.request("POST", "/detokenize", body))

    async def _passed_on(self, request: Request, body: dict[str, Any], path: str, ai21: bool) -> Response:
        body["model"] = await self.upstream.named(model_name(body))
        stream = read_flag(body, "stream")
        if stream and ai21:
            body["stream_options"] = {"include_usage": True}
        items = (_ai21_events if ai21 else _events) if stream else _whole
        passed = UpstreamStream(self.upstream.client, path, body, items)
        await self.server.unless_gone(request, passed.open())
        if stream:
            return Streaming(_stream_parts(passed, path == _CHAT, body["model"]), "text/event-stream")
        return Streaming(_whole_parts(passed), "application/json")


async def _stream_parts(passed: UpstreamStream[bytes], chat: bool, model: str) -> AsyncGenerator[bytes, None]:
    empty = _event(_empty_chunk(chat, model))
    try:
        async with contextlib.aclosing(passed.items()) as items:
            async for item in items:
                yield empty if item is None else item
    except Exception as error:
        yield _event(openai_error(as_api_error(error)))


async def _whole_parts(passed: UpstreamStream[bytes]) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(passed.items()) as items:
        async for item in items:
            yield b" " if item is None else item


async def _whole(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    yield compact(json_object(await read_all(response)))


async def _events(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(sse_chunks(response)) as chunks:
        async for chunk in chunks:
            yield _event(chunk)
    yield _DONE


async def _ai21_events(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """AI21's clients want the usage in the last chunk with a choice, which waits for it."""
    held: dict[str, Any] | None = None
    async with contextlib.aclosing(sse_chunks(response)) as chunks:
        async for chunk in chunks:
            choices = chunk.get("choices") or ()
            if not choices:
                held = {**held, "usage": chunk["usage"]} if held is not None and chunk.get("usage") else held
                continue
            if held is not None:
                yield _event(held)
                held = None
            if any(isinstance(c, dict) and c.get("finish_reason") for c in choices):
                held = chunk
            else:
                yield _event(chunk)
    if held is not None:
        yield _event(held)
    yield _DONE


def _empty_chunk(chat: bool, model: str) -> dict[str, Any]:
    """A sign of life."""
    kind, head = ("chat.completion.chunk", "chatcmpl") if chat else ("text_completion", "cmpl")
    choice: dict[str, Any] = {"index": 0, **({"delta": {}} if chat else {"text": ""}), "finish_reason": None}
    name = f"{head}-{uuid.uuid4().hex}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": model, "choices": [choice]}


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + compact(value) + b"\n\n"
