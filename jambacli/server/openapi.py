"""GET /openapi.json: an OpenAPI 3.1 description of the routes that the server offers.

Bodies may have more fields than are described: those that are not known are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jambacli import __version__
from jambacli.server.http import compact, handler
from jambacli.server.openapi_page import PAGE_BODIES, PAGE_SCHEMAS
from jambacli.server.openapi_schemas import BODIES, ERRORS, SCHEMAS

_JSON, _SSE, _LINES, _TEXT = "application/json", "text/event-stream", "application/x-ndjson", "text/plain"
_EVENTS = "application/vnd.amazon.eventstream"


@dataclass(frozen=True)
class Operation:
    """One method of one path. ``body``: a name of BODIES; ``answer``: a name of SCHEMAS; ``types``: the content types of
    answers; ``tag``: the API, which has a form of errors; ``status``: of an answer."""

    tag: str
    summary: str
    body: str | None = None
    answer: str = "Object"
    types: Sequence[str] = (_JSON,)
    query: Sequence[str] = ()
    status: str = "200"


def _chat(tag: str) -> Operation:
    return Operation(tag, "Answer a conversation.", "Chat", "ChatCompletion", (_JSON, _SSE))


def _models(tag: str) -> Operation:
    return Operation(tag, "List the models.", answer="Models")


def _begun(summary: str, body: str) -> Operation:
    return _accepted(summary, body, "Begun")


def _accepted(summary: str, body: str, answer: str) -> Operation:
    return Operation("Library", summary, body, answer, status="202")


def _made(summary: str, body: str, answer: str) -> Operation:
    return Operation("Library", summary, body, answer, status="201")


_DOCUMENT, _SESSION = "/v1/library/documents/{id}", "/v1/library/sessions/{name}"
_READING = "/v1/library/reading/{id}"

#: Method and path, as the application's routes have it -> what it does.
OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("GET", "/v1/models"): _models("OpenAI"),
    ("GET", "/models"): _models("OpenAI"),
    ("GET", "/studio/v1/models"): _models("AI21"),
    ("GET", "/v1/models/{name}"): Operation("OpenAI", "Describe a model.", answer="Model"),
    ("GET", "/studio/v1/models/{name}"): Operation("AI21", "Describe a model.", answer="Model"),
    ("POST", "/v1/chat/completions"): _chat("OpenAI"),
    ("POST", "/chat/completions"): _chat("OpenAI"),
    ("POST", "/studio/v1/chat/completions"): _chat("AI21"),
    ("POST", "/studio/v1//chat/completions"): _chat("AI21"),
    ("POST", "/v1/completions"): Operation("OpenAI", "Continue a text.", "Completion", "TextCompletion", (_JSON, _SSE)),
    ("POST", "/v1/responses"): Operation("OpenAI", "Answer, without state.", "Responses", "Response", (_JSON, _SSE)),
    ("POST", "/v1/messages"): Operation("Anthropic", "Answer a conversation.", "Messages", "Message", (_JSON, _SSE)),
    ("POST", "/v1/messages/count_tokens"): Operation("Anthropic", "Count a prompt's tokens.", "CountTokens", "InputTokens"),
    ("GET", "/"): Operation("Ollama", "Say that the server runs.", types=(_TEXT,)),
    ("GET", "/api/version"): Operation("Ollama", "The version of the API.", answer="Version"),
    ("GET", "/api/tags"): Operation("Ollama", "List the models.", answer="Tags"),
    ("GET", "/api/ps"): Operation("Ollama", "List the models that are loaded.", answer="Tags"),
    ("POST", "/api/show"): Operation("Ollama", "Describe a model.", "Show", "Shown"),
    ("POST", "/api/chat"): Operation("Ollama", "Answer a conversation.", "OllamaChat", "OllamaLine", (_JSON, _LINES)),
    ("POST", "/api/generate"): Operation("Ollama", "Answer a prompt.", "OllamaGenerate", "OllamaLine", (_JSON, _LINES)),
    ("POST", "/model/{id}/invoke"): Operation("Bedrock", "Answer a body of Jamba, Titan or J2.", "Invoke"),
    ("POST", "/model/{id}/invoke-with-response-stream"): Operation(
        "Bedrock", "The same, as events.", "Invoke", types=(_EVENTS,)
    ),
    ("POST", "/model/{id}/converse"): Operation("Bedrock", "Answer a conversation.", "Converse", "Conversed"),
    ("POST", "/model/{id}/converse-stream"): Operation("Bedrock", "The same, as events.", "Converse", types=(_EVENTS,)),
    ("GET", "/health"): Operation("Server", "Whether it works, and on how many requests.", answer="Health"),
    ("GET", "/v1/health"): Operation("Server", "Whether it works, and on how many requests.", answer="Health"),
    ("GET", "/props"): Operation("Server", "Properties, as llama-server has them.", query=("model",)),
    ("GET", "/lora-adapters"): Operation(
        "Server", "The loaded LoRA adapters, with their scales.", answer="Adapters", query=("model",)
    ),
    ("GET", "/metrics"): Operation("Server", "Counters for Prometheus.", types=(_TEXT,)),
    ("POST", "/tokenize"): Operation("Server", "Text or messages as tokens.", "Tokenize", "Tokens"),
    ("POST", "/detokenize"): Operation("Server", "Tokens as text.", "Detokenize", "Content"),
    ("POST", "/models/load"): Operation("Server", "Load a model.", "ModelName", "Success"),
    ("POST", "/models/unload"): Operation("Server", "Unload a model when it is idle.", "ModelName", "Success"),
    ("POST", "/v1/files"): Operation("Files", "Upload a file, as a form."),
    ("GET", "/v1/files"): Operation("Files", "List the uploads."),
    ("PUT", "/v1/files/{name}"): Operation("Files", "Upload a file, as the body."),
    ("GET", "/v1/files/{name}"): Operation("Files", "Describe an upload."),
    ("DELETE", "/v1/files/{name}"): Operation("Files", "Remove an upload."),
    ("GET", "/v1/files/{name}/content"): Operation("Files", "The bytes of an upload.", types=("*/*",)),
    ("GET", "/tokenizer_info"): Operation("Server", "The tokenizer's markers, as vLLM has them.", query=("model",)),
    ("GET", "/static/{name}"): Operation("Page", "A file of the page.", types=("*/*",)),
    ("GET", "/v1/page/state"): Operation("Page", "What the page needs to know of the server."),
    ("POST", "/v1/page/login"): Operation("Page", "The key, for a cookie.", "PageLogin"),
    ("POST", "/v1/page/logout"): Operation("Page", "Remove the cookie.", "Empty"),
    ("POST", "/v1/library/documents"): _made("Add a document: a form, or a text.", "PastedText", "Document"),
    ("GET", "/v1/library/documents"): Operation("Library", "List or search the documents.", query=("q",)),
    ("GET", _DOCUMENT): Operation("Library", "Describe a document.", answer="Document"),
    ("PATCH", _DOCUMENT): Operation("Library", "Rename a document.", "NewName", "Document"),
    ("DELETE", _DOCUMENT): Operation("Library", "Delete a document and what was stored of it.", answer="Deleted"),
    ("GET", f"{_DOCUMENT}/pages/{{number}}"): Operation(
        "Library", "A page's text or, with .png after the number, its picture.", types=(_JSON, "image/png"), query=("scale",)
    ),
    ("GET", f"{_DOCUMENT}/locate"): Operation("Library", "Where words stand.", query=("quote", "page")),
    ("POST", "/v1/library/reading"): _accepted("Let the model read documents before a question.", "ToRead", "Reading"),
    ("GET", _READING): Operation("Library", "How far documents have been read.", answer="Reading"),
    ("DELETE", _READING): Operation("Library", "Stop reading documents.", answer="Reading"),
    ("GET", "/v1/library/sessions"): Operation("Library", "List or search the conversations.", query=("q",)),
    ("POST", "/v1/library/sessions"): _made("Begin a conversation.", "NewSession", "Session"),
    ("GET", _SESSION): Operation("Library", "A conversation with its messages.", answer="Session"),
    ("PATCH", _SESSION): Operation("Library", "Change a conversation's name, title, options ...", "NewSession", "Session"),
    ("DELETE", _SESSION): Operation("Library", "Delete a conversation.", answer="Deleted"),
    ("GET", f"{_SESSION}/export"): Operation("Library", "A conversation as a file.", types=("*/*",), query=("format",)),
    ("GET", f"{_SESSION}/events"): Operation(
        "Library", "What happens in a conversation.", types=(_SSE,), query=("from", "until")
    ),
    ("GET", f"{_SESSION}/tables/{{index}}"): Operation(
        "Library", "A message's table as a file.", types=("*/*",), query=("format",)
    ),
    ("POST", f"{_SESSION}/messages"): _begun("Ask.", "Question"),
    ("POST", f"{_SESSION}/regenerate"): _begun("Answer again.", "Again"),
    ("POST", f"{_SESSION}/edit"): _begun("Change a message, and answer it.", "Edit"),
    ("POST", f"{_SESSION}/summarize"): _begun("Summarize documents.", "Summary"),
    ("POST", f"{_SESSION}/compare"): _begun("Compare two documents.", "Comparison"),
    ("POST", f"{_SESSION}/table"): _begun("Make a table.", "Table"),
    ("POST", f"{_SESSION}/branch"): _made("Begin another conversation with the same messages.", "Branch", "Session"),
    ("POST", f"{_SESSION}/select"): Operation("Library", "Show another version of a message.", "Select", "Session"),
    ("POST", f"{_SESSION}/stop"): Operation("Library", "End the reply that is being written.", "Empty"),
    ("GET", "/openapi.json"): Operation("Server", "This description."),
}  # fmt: skip


def operations_of(routes: Sequence[Route]) -> list[tuple[str, str, str]]:
    """The method, the path as OpenAPI writes it, and the work's description, of every route."""
    found = []
    for route in routes:
        path = re.sub(r"\{(\w+):path\}", r"{\1}", route.path)
        for method in sorted(set(route.methods or ()) - {"HEAD"}):
            found.append((method, path, (route.endpoint.__doc__ or "").strip()))
    return found


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """The description of these routes."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, text in operations_of(routes):
        operation = OPERATIONS.get((method, path)) or Operation("Server", text or path)
        paths.setdefault(path, {})[method.lower()] = _described(operation, method, path)
    schemas = {
        **SCHEMAS,
        **PAGE_SCHEMAS,
        **BODIES,
        **PAGE_BODIES,
        **{f"{name}Error": value for name, value in ERRORS.items()},
    }
    key = {"type": "http", "scheme": "bearer", "description": "Only where the server has a key."}
    return {
        "openapi": "3.1.0",
        "info": {"title": "jamba serve", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": key}},
        "security": [{}, {"key": []}],
    }


def _described(operation: Operation, method: str, path: str) -> dict[str, Any]:
    answer = {"$ref": f"#/components/schemas/{operation.answer}"}
    content: dict[str, Any] = {kind: {"schema": answer} if kind == _JSON else {} for kind in operation.types}
    form = operation.tag if operation.tag in ERRORS else "OpenAI"
    error = {"application/json": {"schema": {"$ref": f"#/components/schemas/{form}Error"}}}
    described: dict[str, Any] = {
        "operationId": re.sub(r"\W", "_", f"{method.lower()}{path}"),
        "tags": [operation.tag],
        "summary": operation.summary,
        "responses": {
            operation.status: {"description": "The answer.", "content": content},
            "default": {"description": "Why there is none.", "content": error},
        },
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    parameters += [{"name": name, "in": "query", "schema": {"type": "string"}} for name in operation.query]
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        schema = {"$ref": f"#/components/schemas/{operation.body}"}
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return described


def openapi_routes(routes: Sequence[Route]) -> list[Route]:
    """The route of the description of ``routes`` and itself."""
    made: list[bytes] = []

    async def description(request: Request) -> Response:
        """GET /openapi.json."""
        if not made:
            made.append(compact(describe([*routes, own])))
        return Response(made[0], media_type="application/json")

    own = Route("/openapi.json", handler(description), methods=["GET"])
    return [own]
