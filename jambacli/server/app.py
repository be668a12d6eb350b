"""The routes, and the application that they make up."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from jambacli.server import info, openai
from jambacli.server.anthropic import anthropic_routes
from jambacli.server.bedrock import bedrock_routes
from jambacli.server.context import Server
from jambacli.server.errors import ApiError, bad_request
from jambacli.server.http import (
    Access,
    Guard,
    Streaming,
    error_response,
    handler,
    json_response,
)
from jambacli.server.ollama import ollama_routes
from jambacli.server.request import Call, read_flag, read_messages, read_variables
from jambacli.server.responses import responses_routes
from jambacli.server.tools import read_tools
from jambacli.text.tokenizer import Markers


class OpenAIRoutes:
    """OpenAI's routes, and those about the server itself."""

    def __init__(self, server: Server) -> None:
        self.server, self.worker = server, server.worker

    # OpenAI

    async def chat(self, request: Request, ai21: bool = False) -> Response:
        """POST /v1/chat/completions and /studio/v1/chat/completions."""
        body = await self.server.body(request)
        return await self._completed(request, body, openai.read_chat(body, self.server.defaults), chat=True, ai21=ai21)

    async def completion(self, request: Request) -> Response:
        """POST /v1/completions."""
        body = await self.server.body(request)
        return await self._completed(request, body, openai.read_completion(body, self.server.defaults), chat=False)

    async def _completed(
        self, request: Request, body: Mapping[str, Any], call: Call, *, chat: bool, ai21: bool = False
    ) -> Response:
        reply = openai.reply_of(body, self.server.name, chat=chat, ai21=ai21)
        running = await self.server.start(request, call)
        if reply.stream:
            return Streaming(openai.stream_parts(running, reply, call.choices), "text/event-stream")
        return Streaming(openai.whole_parts(running, reply, call.choices), "application/json")

    # About the server

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        model = info.model_entry(self.server)
        return json_response({"object": "list", "data": [model]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/ID."""
        name = request.path_params["name"]
        if name != self.server.name:
            raise ApiError(
                404, f"the model {name[:80]!r} does not exist; {self.server.name} is served", code="model_not_found"
            )
        return json_response(info.model_entry(self.server))

    async def health(self, request: Request) -> Response:
        """GET /health."""
        worker = self.worker
        return json_response({"status": "ok", "active": worker.active, "waiting": worker.waiting})

    async def props(self, request: Request) -> Response:
        """GET /props, as llama-server has it."""
        return json_response(info.props(self.server))

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, in Prometheus' text format."""
        text = await asyncio.to_thread(info.metrics, self.server)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize: {"content"} or {"messages"} -> {"tokens"}."""
        body = await self.server.body(request)
        tokenizer = self.worker.model.tokenizer
        if body.get("messages") is not None:
            messages = read_messages(body["messages"])
            variables = read_variables(body.get("chat_template_kwargs"))
            call = Call(messages=messages, variables=variables, tools=read_tools(body))
            requests, _ = await self.worker.prepare(functools.partial(self.worker.requests, call))
            ids = list(requests[0].ids)
        else:
            content = body.get("content", body.get("prompt"))
            if not isinstance(content, str):
                raise bad_request("the field 'content' must be a text", "content")
            markers: Markers = "all" if read_flag(body, "parse_special", True) else "none"
            ids = await self.worker.prepare(functools.partial(tokenizer.encode, content, markers=markers))
            if read_flag(body, "add_special") and tokenizer.add_bos and tokenizer.bos_id is not None:
                ids = [tokenizer.bos_id, *ids]
        if read_flag(body, "with_pieces"):
            return json_response({"tokens": [{"id": t, "piece": tokenizer.decode([t], markers=True)} for t in ids]})
        return json_response({"tokens": ids, "count": len(ids)})

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize: {"tokens"} -> {"content"}."""
        body = await self.server.body(request)
        ids, vocabulary = body.get("tokens"), self.worker.model.config.vocab_size
        if not isinstance(ids, list) or not all(type(t) is int and 0 <= t < vocabulary for t in ids):
            raise bad_request(f"the field 'tokens' must be a list of numbers from 0 to {vocabulary - 1}", "tokens")
        return json_response({"content": self.worker.model.tokenizer.decode(ids, markers=True)})


def openai_routes(context: Server) -> list[Route]:
    """OpenAI's routes and AI21's. The chat's is under AI21's path too; a client's base address may end in a slash."""
    server = OpenAIRoutes(context)
    get: dict[str, Any] = {
        "/v1/models": server.models,
        "/models": server.models,
        "/v1/models/{name:path}": server.model,
        "/health": server.health,
        "/v1/health": server.health,
        "/props": server.props,
        "/metrics": server.metrics,
    }
    post: dict[str, Any] = {
        "/v1/chat/completions": server.chat,
        "/chat/completions": server.chat,
        "/v1/completions": server.completion,
        "/tokenize": server.tokenize,
        "/detokenize": server.detokenize,
    }
    ai21 = functools.partial(server.chat, ai21=True)
    post |= {"/studio/v1/chat/completions": ai21, "/studio/v1//chat/completions": ai21}
    get |= {"/studio/v1/models": server.models, "/studio/v1/models/{name:path}": server.model}
    found = [Route(path, handler(work), methods=["GET"]) for path, work in get.items()]
    return found + [Route(path, handler(work), methods=["POST"]) for path, work in post.items()]


async def _not_found(request: Request, error: Exception) -> Response:
    return error_response(ApiError(404, f"there is no {request.url.path[:200]} here", kind="not_found_error"))


async def _wrong_method(request: Request, error: Exception) -> Response:
    refusal = ApiError(405, f"{request.method} is not a method of {request.url.path[:200]}")
    return error_response(refusal, headers=getattr(error, "headers", None))


def make_app(server: Server, access: Access | None = None) -> ASGIApp:
    """The server as an ASGI application."""
    access = access or Access()
    routes = [
        *openai_routes(server),
        *ollama_routes(server),
        *anthropic_routes(server),
        *bedrock_routes(server),
        *responses_routes(server),
    ]
    app: ASGIApp = Starlette(routes=routes, exception_handlers={404: _not_found, 405: _wrong_method})
    app = Guard(app, access)
    if access.origins:
        app = CORSMiddleware(app, allow_origins=list(access.origins), allow_methods=["*"], allow_headers=["*"])
    return app
