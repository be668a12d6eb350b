"""The routes, and the application that they make up."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Mapping
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
from jambacli.server.error_forms import refusal_for
from jambacli.server.errors import ApiError, bad_request
from jambacli.server.file_routes import file_routes
from jambacli.server.http import Access, Guard, Streaming, handler, json_response
from jambacli.server.lora import lora_entries
from jambacli.server.models import Models
from jambacli.server.ollama import ollama_routes
from jambacli.server.openapi import openapi_routes
from jambacli.server.page.page_routes import page_routes
from jambacli.server.request import Call, model_name, read_flag, read_messages, read_variables
from jambacli.server.responses import responses_routes
from jambacli.server.tools import read_tools
from jambacli.server.upstream import Upstream
from jambacli.server.upstream_routes import UpstreamRoutes
from jambacli.text.tokenizer import Markers


class OpenAIRoutes:
    """OpenAI's routes."""

    def __init__(self, server: Server) -> None:
        self.server = server

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
        reply = openai.reply_of(body, await self.server.models.named(call.model), chat=chat, ai21=ai21)
        running = await self.server.start(request, call)
        if reply.stream:
            return Streaming(openai.stream_parts(running, reply, call.choices), "text/event-stream")
        return Streaming(openai.whole_parts(running, reply, call.choices), "application/json")

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        models = self.server.models
        entries = [info.model_entry(model, several=models.several) for model in await models.infos()]
        # Codex reads a catalogue of its own kind under this name, which may be empty but must be there.
        codex: dict[str, Any] = {"models": []} if "client_version" in request.query_params else {}
        return json_response({"object": "list", "data": entries, **codex})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/ID."""
        name, models = request.path_params["name"], self.server.models
        found = await models.infos()
        model = next((m for m in found if m.name == name), None)
        if model is None:
            served = ", ".join(m.name for m in found[:20])
            message = f"the model {name[:80]!r} does not exist; served: {served}"
            raise ApiError(404, message, kind="not_found_error", code="model_not_found")
        return json_response(info.model_entry(model, several=models.several))


class OwnRoutes:
    """The routes about this server and the models that it has loaded."""

    def __init__(self, server: Server, models: Models) -> None:
        self.server, self.models = server, models
        self.started = time.time()

    async def health(self, request: Request) -> Response:
        """GET /health."""
        workers = [m.worker for m in self.models.known() if m.worker is not None]
        waiting = sum(w.waiting for w in workers) + self.models.wanted
        return json_response({"status": "ok", "active": sum(w.active for w in workers), "waiting": waiting})

    async def props(self, request: Request) -> Response:
        """GET /props, as llama-server has it; of several models ``?model=`` names one."""
        name = request.query_params.get("model")
        async with self.models.using(name) as worker:
            return json_response(info.props(worker, await self.models.named(name), self.server.defaults))

    async def lora_adapters(self, request: Request) -> Response:
        """GET /lora-adapters, as llama-server has it."""
        async with self.models.using(request.query_params.get("model")) as worker:
            return json_response(lora_entries(worker.model.loras))

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, in Prometheus' text format."""
        text = await asyncio.to_thread(info.metrics, self.models, self.started)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def load(self, request: Request) -> Response:
        """POST /models/load, as llama-server's router has it."""
        await self.models.load(await self._required_name(request))
        return json_response({"success": True})

    async def unload(self, request: Request) -> Response:
        """POST /models/unload: as soon as the model is idle."""
        await self.models.load(await self._required_name(request), 0)
        return json_response({"success": True})

    async def _required_name(self, request: Request) -> str:
        name = model_name(await self.server.body(request))
        if not name:
            raise bad_request("the field 'model' is required", "model")
        return name

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize: {"content"} or {"messages"} -> {"tokens"}."""
        body = await self.server.body(request)
        async with self.models.using(model_name(body)) as worker:
            tokenizer = worker.model.tokenizer
            if body.get("messages") is not None:
                messages = read_messages(body["messages"])
                variables = read_variables(body.get("chat_template_kwargs"))
                chat = Call(messages=messages, variables=variables, tools=read_tools(body))
                call = await self.server.documents.attach(chat)
                requests, _ = await worker.prepare(functools.partial(worker.requests, call))
                ids = list(requests[0].ids)
            else:
                content = body.get("content", body.get("prompt"))
                if not isinstance(content, str):
                    raise bad_request("the field 'content' must be a text", "content")
                markers: Markers = "all" if read_flag(body, "parse_special", True) else "none"
                ids = await worker.prepare(functools.partial(tokenizer.encode, content, markers=markers))
                if read_flag(body, "add_special") and tokenizer.add_bos and tokenizer.bos_id is not None:
                    ids = [tokenizer.bos_id, *ids]
        if read_flag(body, "with_pieces"):
            return json_response({"tokens": [{"id": t, "piece": tokenizer.decode([t], markers=True)} for t in ids]})
        return json_response({"tokens": ids, "count": len(ids)})

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize: {"tokens"} -> {"content"}, and vLLM's {"prompt"}."""
        body = await self.server.body(request)
        async with self.models.using(model_name(body)) as worker:
            ids, vocabulary = body.get("tokens"), worker.model.config.vocab_size
            if not isinstance(ids, list) or not all(type(t) is int and 0 <= t < vocabulary for t in ids):
                raise bad_request(f"the field 'tokens' must be a list of numbers from 0 to {vocabulary - 1}", "tokens")
            text = worker.model.tokenizer.decode(ids, markers=True)
            return json_response({"content": text, "prompt": text})

    async def tokenizer_info(self, request: Request) -> Response:
        """GET /tokenizer_info, as vLLM has it: with /tokenize and /detokenize, lm-eval needs no tokenizer of its own."""
        async with self.models.using(request.query_params.get("model")) as worker:
            return json_response(info.tokenizer_info(worker))


def openai_routes(context: Server, upstream: UpstreamRoutes | None = None) -> list[Route]:
    """OpenAI's routes and AI21's. The chat's is under AI21's path too; a client's base address may end in a slash.

    ``upstream``: passes completions on.
    """
    server = OpenAIRoutes(context)
    completions = upstream or server
    get: dict[str, Any] = {
        "/v1/models": server.models,
        "/models": server.models,
        "/v1/models/{name:path}": server.model,
    }
    post: dict[str, Any] = {
        "/v1/chat/completions": completions.chat,
        "/chat/completions": completions.chat,
        "/v1/completions": completions.completion,
    }
    ai21 = functools.partial(completions.chat, ai21=True)
    post |= {"/studio/v1/chat/completions": ai21, "/studio/v1//chat/completions": ai21}
    get |= {"/studio/v1/models": server.models, "/studio/v1/models/{name:path}": server.model}
    return _routes(get, post)


def own_routes(context: Server, models: Models) -> list[Route]:
    """The routes about this server."""
    server = OwnRoutes(context, models)
    get = {
        "/health": server.health,
        "/v1/health": server.health,
        "/props": server.props,
        "/lora-adapters": server.lora_adapters,
        "/metrics": server.metrics,
        "/tokenizer_info": server.tokenizer_info,
    }
    post = {"/tokenize": server.tokenize, "/detokenize": server.detokenize}
    post |= {"/models/load": server.load, "/models/unload": server.unload}
    return _routes(get, post)


def upstream_routes(context: Server, upstream: Upstream) -> list[Route]:
    """The routes about this server when another does the work."""
    server = UpstreamRoutes(context, upstream)
    get = {"/health": server.health, "/v1/health": server.health}
    return _routes(get, {"/tokenize": server.tokenize, "/detokenize": server.detokenize})


def _routes(get: Mapping[str, Any], post: Mapping[str, Any]) -> list[Route]:
    found = [Route(path, handler(work), methods=["GET"]) for path, work in get.items()]
    return found + [Route(path, handler(work), methods=["POST"]) for path, work in post.items()]


async def _not_found(request: Request, error: Exception) -> Response:
    refusal = ApiError(404, f"there is no {request.url.path[:200]} here", kind="not_found_error")
    return refusal_for(request.url.path, request.headers)(refusal)


async def _wrong_method(request: Request, error: Exception) -> Response:
    refusal = ApiError(405, f"{request.method} is not a method of {request.url.path[:200]}")
    answer = refusal_for(request.url.path, request.headers)(refusal)
    answer.headers.update(getattr(error, "headers", None) or {})
    return answer


def app_routes(server: Server, key: str | None = None) -> list[Route]:
    """Every route of a server. ``key``: the one that requests need."""
    models = server.models
    own = own_routes(server, models) if isinstance(models, Models) else upstream_routes(server, models)
    routes = [
        *own,
        *openai_routes(server, None if isinstance(models, Models) else UpstreamRoutes(server, models)),
        *ollama_routes(server),
        *anthropic_routes(server),
        *bedrock_routes(server),
        *responses_routes(server),
        *file_routes(server),
    ]
    if server.page is not None:  # browsers get the page, programs what "/" answered before
        root = next(route for route in routes if route.path == "/")
        routes.remove(root)
        routes += page_routes(server, server.page, key, root.endpoint)
    return routes + openapi_routes(routes)


def make_app(server: Server, access: Access | None = None) -> ASGIApp:
    """The server as an ASGI application."""
    access = access or Access()
    handlers: dict[Any, Callable[..., Any]] = {404: _not_found, 405: _wrong_method}
    app: ASGIApp = Starlette(routes=app_routes(server, access.key), exception_handlers=handlers)
    app = Guard(app, access, refusal_for)
    if access.origins:
        app = CORSMiddleware(app, allow_origins=list(access.origins), allow_methods=["*"], allow_headers=["*"])
    return app
