"""Tools in requests: definitions and choices in OpenAI's form, calls and results in messages. Other APIs translate to it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from jambacli.errors import UsageError
from jambacli.server.errors import ApiError, bad_request
from jambacli.text.tool_calls import ToolCall
from jambacli.text.tools import ToolDefinition, ToolUse, arguments_text, arguments_value

# Tools of a request, at most.
_MOST_TOOLS = 1024
# The longest name of a tool, in characters.
_LONGEST_NAME = 256


def call_id() -> str:
    """A new id of a call."""
    return f"call_{uuid.uuid4().hex[:24]}"


def read_tools(body: Mapping[str, Any]) -> ToolUse | None:
    """``tools``, ``tool_choice`` and ``parallel_tool_calls`` of a body in OpenAI's form, or None. Raises ApiError."""
    items, choice = body.get("tools"), body.get("tool_choice")
    if not items:
        if choice not in (None, "none", "auto"):
            raise ApiError(400, "the field 'tool_choice' needs tools", parameter="tool_choice")
        if items in (None, []):
            return None
    if not isinstance(items, list) or len(items) > _MOST_TOOLS:
        raise bad_request(f"the field 'tools' must be a list of up to {_MOST_TOOLS} tools", "tools")
    parallel = body.get("parallel_tool_calls")
    if parallel not in (None, True, False):
        raise bad_request("the field 'parallel_tool_calls' must be true or false", "parallel_tool_calls")
    return tool_use([_definition(f"tools[{i}]", item) for i, item in enumerate(items)], choice, one=parallel is False)


def tool_use(definitions: Sequence[ToolDefinition], choice: Any, *, one: bool = False) -> ToolUse:
    """The tools with a ``tool_choice`` in OpenAI's form. Raises ApiError."""
    kind: Any = choice if choice is not None else "auto"
    names: frozenset[str] | None = None
    try:
        if isinstance(kind, dict) and kind.get("type") == "allowed_tools":
            # Chat has the mode and the tools one level deeper than responses.
            inner = kind.get("allowed_tools", kind)
            names = frozenset(_name("tool_choice", item) for item in inner["tools"])
            kind = inner.get("mode", "auto")
        elif isinstance(kind, dict):
            names, kind, one = frozenset([_name("tool_choice", kind)]), "required", True
        if kind not in ("auto", "none", "required"):
            raise bad_request("the field 'tool_choice' must be auto, none, required or name a function", "tool_choice")
    except (KeyError, TypeError, AttributeError):
        raise bad_request("the field 'tool_choice' is not valid", "tool_choice") from None
    try:
        return ToolUse(tuple(definitions), kind, names, one)
    except UsageError as error:
        field = "tool_choice" if "two tools" not in error.problem else "tools"
        raise bad_request(error.problem, field) from error


def _name(where: str, value: Any) -> str:
    """The name in {"type": "function", "function": {"name"}}, or with the name beside the type. Raises ApiError."""
    inner = value.get("function", value) if isinstance(value, dict) else None
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str) or not name or value.get("type", "function") != "function":
        raise bad_request(f"{where} does not name a function", where.partition("[")[0])
    return name


def _definition(where: str, value: Any) -> ToolDefinition:
    inner = value.get("function", value) if isinstance(value, dict) else None
    kind = value.get("type", "function") if isinstance(value, dict) else None
    if kind != "function" or not isinstance(inner, dict):
        raise bad_request(f"{where} is of the type {kind!r}; only functions are supported", "tools")
    return definition(where, inner.get("name"), inner.get("description"), inner.get("parameters"), inner.get("strict"))


def definition(where: str, name: Any, description: Any, parameters: Any, strict: Any = None) -> ToolDefinition:
    """A tool from its parts. Raises ApiError."""
    if not isinstance(name, str) or not name:
        raise bad_request(f"{where} has no name", "tools")
    if len(name) > _LONGEST_NAME:
        raise bad_request(
            f"{where} has a name of {len(name):,} characters; at most {_LONGEST_NAME} are allowed", "tools"
        )
    if description is not None and not isinstance(description, str):
        raise bad_request(f"{where} has a description that is no text", "tools")
    if parameters is not None and not isinstance(parameters, dict):
        raise bad_request(f"{where} has parameters that are no JSON schema", "tools")
    return ToolDefinition(name, description, parameters or {}, strict is True)


def read_calls(where: str, value: Any, name: str) -> tuple[ToolCall, ...]:
    """The ``tool_calls`` of a message. Raises ApiError."""
    if not isinstance(value, list):
        raise bad_request(f"{where} has tool calls that are no list", name)
    calls = []
    for item in value:
        inner = item.get("function", item) if isinstance(item, dict) else None
        called = inner.get("name") if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or not isinstance(called, str):
            raise bad_request(f"{where} has a tool call without a function's name", name)
        identity = item.get("id")
        calls.append(given_call(called, inner.get("arguments"), identity))
    return tuple(calls)


def given_call(name: str, arguments: Any, identity: Any) -> ToolCall:
    """A call from a client's history."""
    return ToolCall(name, arguments_text(arguments), identity if isinstance(identity, str) else "")


def joined_calls(items: Sequence[Any]) -> list[Any]:
    """Messages in which calls are items of their own: those that follow an assistant's message become part of it."""
    joined: list[Any] = []
    for item in items:
        last = joined[-1] if joined else None
        calls = item.get("tool_calls") if isinstance(item, dict) else None
        if isinstance(calls, list) and isinstance(last, dict) and last.get("role") == "assistant":
            joined[-1] = {**last, "tool_calls": [*last.get("tool_calls", []), *calls]}
        else:
            joined.append(item)
    return joined


def call_object(call: ToolCall) -> dict[str, Any]:
    """A call in OpenAI's form."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def call_input(call: ToolCall) -> dict[str, Any]:
    """The arguments of a call as an object, for APIs that have no text of them."""
    value = arguments_value(call.arguments)
    return value if isinstance(value, dict) else {"value": value}
