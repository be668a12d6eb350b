"""Ollama's routes: what editors and its clients ask for. Times are nanoseconds; a stream is one JSON object a line."""

from __future__ import annotations

import datetime
import functools
import math
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from jambacli.errors import UsageError
from jambacli.server.context import Server
from jambacli.server.errors import ApiError, as_api_error, bad_request
from jambacli.server.events import Answer, Piece, Running, Waiting
from jambacli.server.http import Streaming, compact, error_response, handler, json_response
from jambacli.server.logprobs import content_logprobs, read_chat_logprobs
from jambacli.server.model_info import ModelInfo
from jambacli.server.openai import chat_options
from jambacli.server.request import (
    Call,
    Message,
    joined_systems,
    model_name,
    read_flag,
    read_messages,
    unsupported,
    without_nulls,
)
from jambacli.server.thinking import read_think
from jambacli.server.tools import call_input, read_tools
from jambacli.units import format_count, parse_duration

#: The version that clients see: VS Code asks for at least 0.6.4.
VERSION = "0.12.0"
# Options of a body by the names that OpenAI's body has for them; others (num_ctx, num_gpu ...) are the server's own.
_OPTIONS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repeat_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repeat_last_n": "penalty_last_n",
    "seed": "seed",
    "stop": "stop",
    "num_predict": "max_tokens",
}


def ollama_error(error: ApiError) -> dict[str, Any]:
    """An error as Ollama has it."""
    return {"error": error.message}


def ollama_refusal(error: ApiError) -> Response:
    return error_response(error, ollama_error)


def read_call(body: Mapping[str, Any], server: Server, *, chat: bool) -> Call:
    """A body of /api/chat or /api/generate. Raises ApiError."""
    options = body.get("options") or {}
    if not isinstance(options, dict):
        raise bad_request("the field 'options' must be an object", "options")
    unsupported(body, "images", "suffix", "context")
    num_ctx = options.get("num_ctx")
    ctx = num_ctx if isinstance(num_ctx, int) else None
    given = {new: options[old] for old, new in _OPTIONS.items() if options.get(old) is not None}
    if type(given.get("max_tokens")) is int and given["max_tokens"] < 0:
        del given["max_tokens"]
    form = body.get("format")
    if form not in (None, ""):
        if form != "json" and not isinstance(form, dict):
            raise bad_request("the field 'format' must be \"json\" or a JSON schema", "format")
        given["response_format"] = (
            {"type": "json_object"} if form == "json" else {"type": "json_schema", "schema": form}
        )
    chosen, model = chat_options(given, server.defaults), model_name(body)
    same: dict[str, Any] = {"options": chosen, "model": model, "logprobs": read_chat_logprobs(without_nulls(body))}
    same |= {"thinking": read_think(body.get("think")), "ctx": ctx}
    if chat:
        messages = read_messages(_thoughts_renamed(body.get("messages")))
        return Call(messages=messages, tools=read_tools(body), **same)
    unsupported(body, "tools")
    prompt, system = body.get("prompt") or "", body.get("system") or ""
    if not isinstance(prompt, str) or not isinstance(system, str):
        raise bad_request("the fields 'prompt' and 'system' must be texts", "prompt")
    if body.get("template") not in (None, ""):
        raise bad_request("the field 'template' is not supported", "template")
    if read_flag(body, "raw"):
        return Call(prompts=[prompt], **same)
    messages = [Message("system", system)] if system else []
    return Call(messages=joined_systems([*messages, Message("user", prompt)]), **same)


def _thoughts_renamed(messages: Any) -> Any:
    if not isinstance(messages, list):
        return messages
    renamed = []
    for message in messages:
        if isinstance(message, dict) and message.get("images"):
            raise bad_request("images are not supported; only text is", "messages")
        renamed.append(
            {**message, "reasoning_content": message.get("thinking")} if isinstance(message, dict) else message
        )
    return renamed


class OllamaRoutes:
    """The handlers."""

    def __init__(self, server: Server) -> None:
        self.server = server

    async def root(self, request: Request) -> Response:
        """GET and HEAD /."""
        return PlainTextResponse("Ollama is running")

    async def version(self, request: Request) -> Response:
        """GET /api/version."""
        return json_response({"version": VERSION})

    async def tags(self, request: Request) -> Response:
        """GET /api/tags."""
        return json_response({"models": [_entry(m) for m in await self.server.models.infos()]})

    async def running(self, request: Request) -> Response:
        """GET /api/ps."""
        found = [m for m in await self.server.models.infos() if m.status == "loaded"]
        return json_response({"models": [{**_entry(m), **_loaded(m)} for m in found]})

    async def show(self, request: Request) -> Response:
        """POST /api/show."""
        body = await self.server.body(request)
        asked = body.get("model", body.get("name"))
        if not isinstance(asked, str):
            raise bad_request("the field 'model' must be a name", "model")
        name = await self.server.models.named(asked)
        model = next(m for m in await self.server.models.infos() if m.name == name)
        architecture = {
            "general.architecture": "jamba",
            "general.basename": model.name,
            "jamba.context_length": model.context,
            "jamba.embedding_length": model.hidden,
        }
        sampling = self.server.defaults.sampling(model.sampling)
        entry = _entry(model)
        return json_response(
            {
                "modelfile": f"FROM {model.name}",
                "parameters": f"temperature {sampling.temperature}\ntop_p {sampling.top_p}\nnum_ctx {model.context}",
                "template": model.template or "{{ .Prompt }}",
                "details": entry["details"],
                "model_info": architecture,
                "capabilities": entry["capabilities"],
                "modified_at": entry["modified_at"],
            }
        )

    async def chat(self, request: Request) -> Response:
        """POST /api/chat."""
        return await self._answered(request, chat=True)

    async def generate(self, request: Request) -> Response:
        """POST /api/generate."""
        return await self._answered(request, chat=False)

    async def _answered(self, request: Request, *, chat: bool) -> Response:
        body = await self.server.body(request)
        await self.server.models.keep(model_name(body), seconds := _keep_alive(body))
        if not body.get("messages" if chat else "prompt"):  # asks that the model be loaded or, for no time, unloaded
            name = await self.server.models.load(model_name(body), seconds)
            done = {"done": True, "done_reason": "unload" if seconds == 0 else "load"}
            return json_response({**_head(name), **self._said("", "", chat), **done})
        call, stream = read_call(body, self.server, chat=chat), read_flag(body, "stream", True)
        if call.thinking:
            name = await self.server.models.named(call.model)
            if not any(m.thinks for m in await self.server.models.infos() if m.name == name):
                raise bad_request(f"{name} does not support thinking", "think")
        running = await self.server.start(request, call)
        kind = "application/x-ndjson" if stream else "application/json"
        return Streaming(self._parts(running, chat, stream), kind, error=ollama_refusal)

    async def _parts(self, running: Running, chat: bool, stream: bool) -> AsyncIterator[bytes]:
        began = time.perf_counter()
        line = functools.partial(_line, running.model)
        try:
            async for event in running.events():
                if isinstance(event, Waiting):
                    # In a stream an empty piece, which every client adds to nothing.
                    yield line(self._said("", "", chat)) if stream else b" "
                elif isinstance(event, Piece):
                    if stream:
                        said = ("", event.text) if event.thought else (event.text, "")
                        yield line({**self._said(*said, chat), **_logprobs(event, running)})
                elif isinstance(event, Answer):
                    calls = _called(event)
                    if stream and calls:  # whole, as Ollama sends them
                        yield line({"message": {**self._said("", "", chat)["message"], **calls}})
                    text, thoughts = ("", "") if stream else (event.text, event.thoughts)
                    last = self._said(text, thoughts, chat)
                    if calls and not stream:
                        last["message"] |= calls
                    more = {} if stream else _logprobs(event, running)
                    yield line({**last, **more, **_done(event, began)}, True)
        except Exception as error:
            if not stream:
                raise
            yield compact(ollama_error(as_api_error(error))) + b"\n"

    @staticmethod
    def _said(text: str, thoughts: str, chat: bool) -> dict[str, Any]:
        more = {"thinking": thoughts} if thoughts else {}
        return {"message": {"role": "assistant", "content": text, **more}} if chat else {"response": text, **more}


def _called(answer: Answer) -> dict[str, Any]:
    """The calls of a reply, as fields of its message."""
    functions = [{"index": i, "name": call.name, "arguments": call_input(call)} for i, call in enumerate(answer.calls)]
    pairs = zip(answer.calls, functions, strict=True)
    return {"tool_calls": [{"id": call.id, "function": f} for call, f in pairs]} if functions else {}


def _keep_alive(body: Mapping[str, Any]) -> float | None:
    """How long a request wants its model to stay loaded: seconds, infinity, or None for the server's default."""
    value = body.get("keep_alive")
    if value is None:
        return None
    try:
        text = value if isinstance(value, str) else f"{value:.6f}" if _is_number(value) else ""
        seconds = parse_duration(text)
    except UsageError:
        raise bad_request(
            "the field 'keep_alive' must be a duration such as \"5m\", or seconds", "keep_alive"
        ) from None
    return math.inf if seconds is None else seconds


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _line(model: str, fields: dict[str, Any], done: bool = False) -> bytes:
    return compact({**_head(model), "done": done, **fields}) + b"\n"


def _head(model: str) -> dict[str, Any]:
    return {"model": model, "created_at": _rfc3339(time.time())}


def _entry(model: ModelInfo) -> dict[str, Any]:
    details = {
        "parent_model": "",
        "format": "gguf",
        "family": "jamba",
        "families": ["jamba"],
        "parameter_size": format_count(model.parameters) if model.parameters else "unknown",
        "quantization_level": model.quantization,
    }
    able = {"tools": model.tools, "thinking": model.thinks}
    capabilities = ["completion", *(name for name, has in able.items() if has)]
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": _rfc3339(model.created),
        "size": model.size,
        "digest": model.digest,
        "details": details,
        "capabilities": capabilities,
    }


def _loaded(model: ModelInfo) -> dict[str, Any]:
    """What /api/ps adds."""
    until = _rfc3339(model.expires) if model.expires is not None else "9999-12-31T23:59:59Z"
    return {"expires_at": until, "size_vram": model.size if model.on_gpu else 0, "context_length": model.context}


def _logprobs(event: Piece | Answer, running: Running) -> dict[str, Any]:
    found = content_logprobs(event.logprobs, running.tokenizer)
    return {"logprobs": found} if found else {}


def _done(answer: Answer, began: float) -> dict[str, Any]:
    return {
        "done": True,
        "done_reason": "length" if answer.finish == "length" else "stop",
        "total_duration": int((time.perf_counter() - began) * 1e9),
        "load_duration": 0,
        "prompt_eval_count": answer.prompt_tokens,
        "prompt_eval_duration": int(answer.prefill_seconds * 1e9),
        "eval_count": answer.generated_tokens,
        "eval_duration": int(answer.decode_seconds * 1e9),
    }


def _rfc3339(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat().replace("+00:00", "Z")


def ollama_routes(context: Server) -> list[Route]:
    """Ollama's routes."""
    server = OllamaRoutes(context)
    get = {"/": server.root, "/api/version": server.version, "/api/tags": server.tags, "/api/ps": server.running}
    post = {"/api/show": server.show, "/api/chat": server.chat, "/api/generate": server.generate}
    found = [Route(path, handler(work, ollama_refusal), methods=["GET"]) for path, work in get.items()]
    return found + [Route(path, handler(work, ollama_refusal), methods=["POST"]) for path, work in post.items()]
