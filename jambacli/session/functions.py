"""Python functions as tools: a JSON schema from type hints and docstring, and calls with arguments that are checked first."""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jambacli.errors import UsageError
from jambacli.text.tools import ToolDefinition, arguments_value

# Characters of arguments, at most.
_MOST_ARGUMENTS = 1 << 20
_SIMPLE: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


@dataclass(frozen=True)
class Tool:
    """A function that a model may call, and its definition. ``function`` takes the arguments by name."""

    definition: ToolDefinition
    function: Callable[..., Any]

    @property
    def name(self) -> str:
        """The name by which a model calls it."""
        return self.definition.name

    @staticmethod
    def of(function: Callable[..., Any]) -> Tool:
        """A tool from a function with type hints: str, int, float, bool, None, Literal, list, dict, unions of these, and
        Annotated with a description. The docstring describes it, and parameters in lines such as "place: the city".

        Raises UsageError for a function that cannot be described so.
        """
        name = getattr(function, "__name__", "")
        if not name.isidentifier():
            raise UsageError("a tool needs a name: define it with def")
        if inspect.iscoroutinefunction(function):
            raise UsageError(f"the tool {name} is async; only plain functions can be called")
        try:
            hints = typing.get_type_hints(function, include_extras=True)
            parameters = inspect.signature(function).parameters
        except (TypeError, NameError, ValueError) as error:
            raise UsageError(f"the tool {name} has parameters that cannot be read: {error}") from error
        about, described = _documentation(inspect.getdoc(function) or "", parameters)
        properties: dict[str, Any] = {}
        for key, parameter in parameters.items():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise UsageError(f"the tool {name} takes {parameter}; a model can only give arguments by name")
            schema = _schema(hints.get(key, Any), f"the parameter {key} of the tool {name}")
            properties[key] = {**schema, **({"description": described[key]} if key in described else {})}
        schema = {"type": "object", "properties": properties, "additionalProperties": False}
        if required := [k for k, p in parameters.items() if p.default is p.empty]:
            schema["required"] = required
        return Tool(ToolDefinition(name, about or None, schema), function)

    def run(self, arguments: str) -> str:
        """The function's result for arguments in JSON, as text for the model. Arguments that do not fit its parameters and
        exceptions of the function become results too, so that the model can try again."""
        try:
            if len(arguments) > _MOST_ARGUMENTS:
                raise ValueError(f"the arguments are longer than {_MOST_ARGUMENTS:,} characters")
            value = arguments_value(arguments)
            if found := mismatch(value, self.definition.parameters):
                raise ValueError(found)
        except ValueError as error:
            return failure(f"the arguments do not fit: {error}")
        try:
            return result_text(self.function(**value))
        except (Exception, SystemExit) as error:
            return failure(f"{type(error).__name__}: {error}")


def tools_of(functions: Iterable[Callable[..., Any] | Tool]) -> dict[str, Tool]:
    """Tools by name. Raises UsageError for two of one name."""
    tools: dict[str, Tool] = {}
    for one in functions:
        tool = one if isinstance(one, Tool) else Tool.of(one)
        if tool.name in tools:
            raise UsageError(f"two tools have the name {tool.name!r}")
        tools[tool.name] = tool
    return tools


def failure(text: str) -> str:
    """The result of a call that failed."""
    return json.dumps({"error": text}, ensure_ascii=False)


def result_text(value: Any) -> str:
    """A function's result as text: texts as they are, everything else as JSON."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        return str(value)


def mismatch(value: Any, schema: Mapping[str, Any], where: str = "") -> str:
    """What of ``value`` does not follow a schema of ``Tool.of``, "" for nothing."""
    at = where or "the value"
    if "anyOf" in schema:
        found = [mismatch(value, one, where) for one in schema["anyOf"]]
        return "" if not all(found) else found[0]
    if "enum" in schema and not any(value == one and type(value) is type(one) for one in schema["enum"]):
        return f"{at} is not one of {json.dumps(schema['enum'], ensure_ascii=False)}"
    kind = schema.get("type")
    if kind is None:
        return ""
    right = isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
    if kind == "integer" and isinstance(value, float):
        right = value.is_integer()
    if not right:
        return f"{at} is not of type {kind}"
    prefix = f"{where}." if where else ""
    if kind == "array":
        items = schema.get("items", {})
        return next((f for i, v in enumerate(value) if (f := mismatch(v, items, f"{where}[{i}]"))), "")
    if kind == "object":
        known, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        if missing := [k for k in schema.get("required", []) if k not in value]:
            return f"{prefix}{missing[0]} is missing"
        if more is False and (unknown := [k for k in value if k not in known]):
            return f"there is no parameter {unknown[0]!r}"
        rest = more if isinstance(more, Mapping) else {}
        return next((f for k, v in value.items() if (f := mismatch(v, known.get(k, rest), f"{prefix}{k}"))), "")
    return ""


def _schema(hint: Any, what: str) -> dict[str, Any]:
    """The JSON schema of a type hint. Raises UsageError for one that JSON does not have."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is inspect.Parameter.empty:
        return {}
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    if origin is typing.Annotated:
        texts = [a for a in arguments[1:] if isinstance(a, str)]
        return {**_schema(arguments[0], what), **({"description": texts[0]} if texts else {})}
    if origin is Literal and all(isinstance(a, str | int | bool | None) for a in arguments):
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(a, what) for a in arguments]}
    if hint in (list, dict):
        return {"type": "array" if hint is list else "object"}
    if origin in (list, Sequence) and len(arguments) == 1:
        return {"type": "array", "items": _schema(arguments[0], what)}
    if origin in (dict, Mapping) and arguments and arguments[0] is str:
        return {"type": "object", "additionalProperties": _schema(arguments[1], what)}
    raise UsageError(f"{what} has the type {hint!r}, which JSON does not have")


def _documentation(text: str, parameters: Iterable[str]) -> tuple[str, dict[str, str]]:
    """The description in a docstring, and those of parameters in lines "name: text", "name (type): text" or
    ":param name: text"."""
    names = "|".join(re.escape(name) for name in parameters) or "(?!)"
    line = re.compile(rf"\s*(?::param\s+)?({names})(?:\s*\([^)]*\))?\s*:\s*(.+)")
    head, described, in_head = list[str](), dict[str, str](), True
    for one in text.splitlines():
        found = line.match(one)
        if found:
            described[found[1]] = found[2].strip()
        in_head = (
            in_head and not found and not re.match(r"\s*(Args|Arguments|Parameters|Returns|Raises)\s*:|\s*:\w+", one)
        )
        if in_head:
            head.append(one)
    return " ".join(" ".join(head).split()), described
