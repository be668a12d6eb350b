"""The parsers of requests and of what other servers and models answer, for ``fuzzing``."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.support.fuzzing import Case, Parser

_TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
_CALLED = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
_OPENAI = {
    "model": "m", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "H"}]},
    {"role": "assistant", "content": None, "tool_calls": [_CALLED]}, {"role": "tool", "tool_call_id": "c", "content": "4"}],
    "tools": [_TOOL], "tool_choice": "auto", "temperature": 0.5, "top_p": 0.9, "stop": ["x", "y"], "logit_bias": {"5": -1},
    "seed": 3, "n": 2, "logprobs": True, "top_logprobs": 3, "stream": True, "max_completion_tokens": 5,
    "documents": [{"title": "t", "text": "x"}], "response_format": {"type": "json_object"},
}  # fmt: skip
_COMPLETION = {"model": "m", "prompt": ["a", [5, 6]], "max_tokens": 3, "echo": True, "logprobs": 2, "stop": "x", "n": 1}
_ANTHROPIC = {
    "model": "m", "max_tokens": 5, "system": [{"type": "text", "text": "s"}], "stop_sequences": ["x"], "top_k": 3,
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [
        {"type": "text", "text": "a"}, {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "4"}]}]}],
    "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}], "tool_choice": {"type": "any"},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
}  # fmt: skip
_OLLAMA = {
    "model": "m", "messages": [{"role": "user", "content": "Hi"}], "options": {"num_ctx": 50, "temperature": 0.1, "stop": ["x"]},
    "format": {"type": "object"}, "tools": [_TOOL], "think": True, "keep_alive": "5m", "stream": False,
}  # fmt: skip
_GENERATE = {"model": "m", "prompt": "Hi", "system": "s", "raw": False, "options": {"num_predict": 3, "top_k": 2}}
_CONVERSE = {
    "messages": [{"role": "user", "content": [{"text": "Hi"}, {"document": {"name": "d", "format": "txt", "source":
    {"bytes": "aGk="}}}]}], "system": [{"text": "s"}], "inferenceConfig": {"maxTokens": 3, "temperature": 0.5,
    "stopSequences": ["x"]}, "toolConfig": {"tools": [{"toolSpec": {"name": "f", "inputSchema": {"json": {}}}}]},
    "additionalModelRequestFields": {"top_k": 3},
}  # fmt: skip
_RESPONSES = {
    "model": "m", "instructions": "s", "input": [{"type": "message", "role": "user", "content": [{"type": "input_text",
    "text": "Hi"}]}, {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}, {"type":
    "function_call_output", "call_id": "c", "output": "4"}], "tools": [{"type": "function", "name": "f", "parameters": {}}],
    "max_output_tokens": 5, "text": {"format": {"type": "text"}}, "reasoning": {"effort": "low"},
}  # fmt: skip
_FORM = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n--b\r\n'
    b"Content-Disposition: form-data; name=\"file\"; filename*=UTF-8''a%20b.txt\r\n\r\nHello\r\n--b--\r\n"
)
_EVENTS = (
    b'data: {"choices": [{"delta": {"content": "a"}, "index": 0}]}\n\n: ping\ndata: {"error": {"message": "x", "code": 429}}\n'
    b"data: [DONE]\n"
)
_CALLS = (
    b'I look.\n<tool_calls>[{"name": "f", "arguments": {"a": [1, 2.5e3, null, "x\\u00e9\\n"]}}, {"name": "g"}]</tool_calls> ok',
    b"<tool_call>{'name': 'f', 'arguments': \"{\\\"a\\\": 1}\"}</tool_call><tool_call>\n{}\n</tool_call>",
)
_CITED = b'The herons [0].\n<citations>[0, 1, "Report of the lake"] documents 3 and 4</citations>'
_MANIFEST = {
    "schemaVersion": 2,
    "layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:" + "a" * 64, "size": 5}],
}


def _bodies(read: Callable[[dict[str, Any], Any], object]) -> Parser:
    from jambacli.server.context import Server
    from jambacli.server.http import parse_json

    server: Any = Server(SimpleNamespace())  # type: ignore[arg-type]

    def parse(path: Path) -> object:
        return read(parse_json(path.read_bytes()), server)

    return parse


def _form(path: Path) -> object:
    from jambacli.server.multipart import MultipartReader

    reader, data = MultipartReader(b"b"), path.read_bytes()
    return [part for at in range(0, len(data), 7) for part in reader.feed(data[at : at + 7])]


def _events(path: Path) -> object:
    from jambacli.server.upstream_client import sse_chunks

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 11):
            yield data[at : at + 11]

    async def read() -> list[Any]:
        response: Any = SimpleNamespace(aiter_bytes=pieces)
        return [chunk async for chunk in sse_chunks(response)]

    data = path.read_bytes()
    return asyncio.run(read())


def _servers() -> list[Case]:
    try:
        from jambacli.server import anthropic, bedrock, ollama, openai, responses
        from jambacli.server.errors import ApiError
    except ImportError:  # without the extra of the server
        return []
    readers: dict[str, tuple[Callable[[dict[str, Any], Any], object], list[Any]]] = {
        "openai": (lambda body, server: openai.read_chat(body, server.defaults), [_OPENAI]),
        "completions": (lambda body, server: openai.read_completion(body, server.defaults), [_COMPLETION]),
        "anthropic": (anthropic.read_call, [_ANTHROPIC]),
        "ollama": (lambda body, server: ollama.read_call(body, server, chat="messages" in body), [_OLLAMA, _GENERATE]),
        "converse": (lambda body, server: bedrock.read_converse(body, server, "m"), [_CONVERSE]),
        "invoke": (lambda body, server: bedrock.read_invoke(body, server, "ai21.jamba"), [_OPENAI, _GENERATE]),
        "responses": (responses.read_call, [_RESPONSES]),
    }
    found = [
        Case(name, _bodies(read), [json.dumps(one).encode() for one in sources], refusals=(ApiError,))
        for name, (read, sources) in readers.items()
    ]
    found.append(Case("multipart", _form, [_FORM], refusals=(ApiError,)))
    found.append(Case("upstream", _events, [_EVENTS], refusals=(ApiError,)))
    return found


def _registry(path: Path) -> object:
    import httpx

    from jambacli.hub.names import Ollama
    from jambacli.hub.ollama import model_blob

    data = path.read_bytes()
    with httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200, content=data))) as client:
        return model_blob(client, Ollama("localhost", "http", "library", "m", "latest"))


def _calls(path: Path, form: Any) -> object:
    from jambacli.text.tool_calls import ToolCallScanner, ToolMarkup

    opening, closing = ("<tool_calls>", "</tool_calls>") if form == "list" else ("<tool_call>", "</tool_call>")
    scanner = ToolCallScanner(ToolMarkup(form, opening, closing))
    text = path.read_bytes().decode("utf-8", "replace")
    pieces = [scanner.push(text[at : at + 3]) for at in range(0, len(text), 3)]
    for call in itertools.chain(scanner.calls):
        json.loads(call.arguments)
    return pieces, scanner.end()


def _citations(path: Path) -> object:
    from jambacli.documents.citations import Cited

    text = path.read_bytes().decode("utf-8", "replace")
    cited = Cited()
    pieces = list(cited.answer(text[at : at + 5] for at in range(0, len(text), 5)))
    return pieces, cited.numbers, cited.unknown([])


def request_cases() -> list[Case]:
    """Requests of each API, answers of other servers, and what models write."""
    return [
        *_servers(),
        Case("registry", _registry, [json.dumps(_MANIFEST).encode()], 0.5),
        Case("tool calls", functools.partial(_calls, form="list"), [_CALLS[0]]),
        Case("tool call", functools.partial(_calls, form="single"), [_CALLS[1]]),
        Case("cited", _citations, [_CITED]),
    ]
