"""An OpenAI-compatible server with canned answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


class Canned:
    """A server that answers chats with ``answer`` and keeps what it was asked."""

    def __init__(self, owner: str = "other", names: tuple[str, ...] = ("one",)) -> None:
        self.owner, self.names = owner, names
        self.answer: Any = None
        self.asked: list[dict[str, Any]] = []
        self.app = Starlette(
            routes=[
                Route("/v1/models", self.models),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/elsewhere", self.chat, methods=["GET", "POST"]),
            ]
        )

    async def models(self, request: Request) -> Response:
        data = [{"id": name, "object": "model", "owned_by": self.owner, "max_model_len": 4096} for name in self.names]
        return JSONResponse({"object": "list", "data": data})

    async def chat(self, request: Request) -> Response:
        self.asked.append(json.loads(await request.body() or b"{}"))
        return self.answer()


def streamed(*chunks: Any, seconds: float = 0.0) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        yield b": a comment\n\n"
        for chunk in chunks:
            await asyncio.sleep(seconds)
            yield chunk if isinstance(chunk, bytes) else b"data: " + json.dumps(chunk).encode() + b"\n\n"

    return StreamingResponse(parts(), media_type="text/event-stream")


def piece(text: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish, **more}]}


USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
}
DONE = b"data: [DONE]\n\n"
