"""The description of the routes: complete, valid, and true of the answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from jambacli.api import Jamba
from jambacli.server.app import app_routes
from jambacli.server.context import Server
from jambacli.server.models import Models
from jambacli.server.openapi import OPERATIONS, operations_of
from jambacli.server.page.page import Page
from jambacli.server.upstream import Upstream
from jambacli.server.upstream_client import UpstreamClient
from jambacli.server.worker import Worker
from tests.support.servers import Running, serving, serving_models
from tests.support.tool_models import WEATHER


@pytest.fixture(scope="module")
def server(tiny: Jamba) -> Iterator[Running]:
    with serving(tiny, page=Page(keep=False)) as running:
        yield running


@pytest.fixture(scope="module")
def description(server: Running) -> dict[str, Any]:
    return server.client.get("/openapi.json").json()  # type: ignore[no-any-return]


def with_page(models: Any) -> Server:
    return Server(models, page=Page(keep=False))


def test_it_has_every_route_and_no_other(tiny: Jamba, description: dict[str, Any]) -> None:
    worker = Worker(tiny, ctx=64, parallel=1, store=False)
    try:
        routes = {(method, path) for method, path, _ in operations_of(app_routes(with_page(Models.of(worker, "x"))))}
    finally:
        worker.close()
    described = {(m.upper(), path) for path, methods in description["paths"].items() for m in methods}
    assert described == routes == set(OPERATIONS)


def test_in_front_of_another_server_it_has_the_routes_there() -> None:
    upstream = Upstream(UpstreamClient("http://127.0.0.1:9"))
    routes = {(method, path) for method, path, _ in operations_of(app_routes(with_page(upstream)))}
    with serving_models(upstream, page=Page(keep=False)) as front:
        paths = front.client.get("/openapi.json").json()["paths"]
    assert {(m.upper(), path) for path, methods in paths.items() for m in methods} == routes < set(OPERATIONS)


def test_its_schemas_are_valid(description: dict[str, Any]) -> None:
    assert description["openapi"] == "3.1.0"
    schemas = description["components"]["schemas"]
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    used = set()
    for methods in description["paths"].values():
        for operation in methods.values():
            used |= references(operation)
    assert used <= set(schemas)
    assert len({o["operationId"] for m in description["paths"].values() for o in m.values()}) == len(OPERATIONS)


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"].removeprefix("#/components/schemas/")} if "$ref" in value else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


USER = {"role": "user", "content": "Hello"}
EXAMPLES: dict[str, Any] = {
    "Chat": {"messages": [USER], "max_tokens": 1},
    "Completion": {"prompt": "Hello", "max_tokens": 1},
    "Responses": {"input": "Hello", "max_output_tokens": 1},
    "Messages": {"messages": [USER], "max_tokens": 1},
    "CountTokens": {"messages": [USER]},
    "Show": {"model": "jamba:tiny"},
    "OllamaChat": {"messages": [USER], "stream": False, "options": {"num_predict": 1}},
    "OllamaGenerate": {"prompt": "Hello", "stream": False, "options": {"num_predict": 1}},
    "Invoke": {"inputText": "Hello", "parameters": {"maxTokens": 1}},
    "Converse": {"messages": [{"role": "user", "content": [{"text": "Hi"}]}], "inferenceConfig": {"maxTokens": 1}},
    "Tokenize": {"content": "Hello"},
    "Detokenize": {"tokens": [9, 10]},
    "ModelName": {"model": "jamba:tiny"},
    "PageLogin": {"key": "any"},
    "Empty": {},
}


@pytest.mark.parametrize(
    "operation", [o for o in OPERATIONS if not any(p in o[1] for p in ("/files", "/library", "/static"))], ids=" ".join
)
def test_answers_and_errors_are_as_described(
    server: Running, description: dict[str, Any], operation: tuple[str, str]
) -> None:
    method, path = operation
    described = description["paths"][path][method.lower()]
    url = path.replace("{name}", "jamba:tiny").replace("{id}", "ai21.jamba")
    schemas = description["components"]["schemas"]

    def check(schema: dict[str, Any], value: Any) -> None:
        jsonschema.validate(value, {**schema, "components": {"schemas": schemas}}, jsonschema.Draft202012Validator)

    body = OPERATIONS[operation].body
    sent = {"json": EXAMPLES[body]} if body is not None else {}
    if body is not None:
        check(schemas[body], EXAMPLES[body])
    answer = server.client.request(method, url, **sent)
    kind = answer.headers["content-type"].partition(";")[0]
    content = described["responses"]["200"]["content"]
    assert answer.status_code == 200 and kind in content, answer.text
    if kind == "application/json":
        check(content[kind]["schema"], answer.json())
    refused = server.client.request(method, url, headers={"Origin": "https://evil.example"}, **sent)
    assert refused.status_code == 403
    check(described["responses"]["default"]["content"]["application/json"]["schema"], refused.json())


@pytest.mark.parametrize(
    ("body", "example"),
    [
        ("Chat", {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "weather"}}}),
        ("OllamaChat", {"tools": [WEATHER]}),
        ("Tokenize", {"tools": [WEATHER]}),
        ("Invoke", {"tools": [WEATHER], "tool_choice": "required"}),
    ],
)
def test_tools_are_described(description: dict[str, Any], body: str, example: dict[str, Any]) -> None:
    schemas = description["components"]["schemas"]
    schema = {**schemas[body], "components": {"schemas": schemas}}
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "sunny"},
    ]
    jsonschema.validate({"messages": messages, **example}, schema, jsonschema.Draft202012Validator)
    for wrong in ({"type": "function"}, {"type": "function", "function": {"name": ""}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"messages": messages, "tools": [wrong]}, schema, jsonschema.Draft202012Validator)


def test_tools_of_other_apis_are_described(description: dict[str, Any]) -> None:
    schemas = description["components"]["schemas"]
    function = WEATHER["function"]
    parameters = function["parameters"]
    used = {"type": "tool_use", "id": "a", "name": "weather", "input": {"place": "Rome"}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": "sunny"}
    blocks = [{"role": "assistant", "content": [used]}, {"role": "user", "content": [result]}]
    said = {"toolUse": {"toolUseId": "a", "name": "weather", "input": {}}}
    back = {"toolResult": {"toolUseId": "a", "content": [{"json": {"sun": 1}}]}}
    spec = {"toolSpec": {"name": "weather", "inputSchema": {"json": parameters}}}
    call = {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}"}
    examples: dict[str, Any] = {
        "Messages": {
            "messages": [USER, *blocks],
            "max_tokens": 5,
            "tools": [{"name": "weather", "input_schema": parameters}],
            "tool_choice": {"type": "any"},
        },
        "Converse": {
            "messages": [{"role": "assistant", "content": [said]}, {"role": "user", "content": [back]}],
            "toolConfig": {"tools": [spec], "toolChoice": {"any": {}}},
        },
        "Responses": {
            "input": [USER, call, {"type": "function_call_output", "call_id": "a", "output": "sunny"}],
            "tools": [{"type": "function", **function}],
            "tool_choice": "auto",
        },
    }
    for name, example in examples.items():
        schema = {**schemas[name], "components": {"schemas": schemas}}
        jsonschema.validate(example, schema, jsonschema.Draft202012Validator)
        assert {"tools", "toolConfig"} & set(schemas[name]["properties"])
