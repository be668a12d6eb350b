"""Tools that a model may call: their definitions, and which of them a reply may or must call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from jambacli.errors import UsageError

#: "auto": the model chooses; "none": no calls; "required": at least one call.
Choice = Literal["auto", "none", "required"]


@dataclass(frozen=True)
class ToolDefinition:
    """A function that a model may call. ``parameters``: the JSON schema of its arguments. ``strict``: the schema has to be
    enforced as a whole, or refused."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False

    def as_message(self) -> dict[str, Any]:
        """The definition as chat templates take it."""
        described = {"description": self.description} if self.description is not None else {}
        function = {"name": self.name, **described, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolUse:
    """The tools of a prompt and what a reply may do with them.

    ``names``: the functions that may be called, None for all. ``one``: at most one call. Raises UsageError for no tools, a name
    that two of them have, and a choice that leaves none.
    """

    definitions: Sequence[ToolDefinition]
    choice: Choice = "auto"
    names: frozenset[str] | None = None
    one: bool = False

    def __post_init__(self) -> None:
        known = [d.name for d in self.definitions]
        if not known:
            raise UsageError("there are no tools to choose from")
        if twice := next((name for name in known if known.count(name) > 1), None):
            raise UsageError(f"two tools have the name {twice!r}")
        if unknown := sorted((self.names or frozenset()) - set(known)):
            raise UsageError(f"there is no tool {unknown[0]!r}; the tools are {', '.join(known[:20])}")
        if self.names is not None and not self.names:
            raise UsageError("the choice of tools allows none of them")

    @property
    def callable(self) -> list[ToolDefinition]:
        """The tools that may be called."""
        return [d for d in self.definitions if self.names is None or d.name in self.names]

    def as_messages(self) -> list[dict[str, Any]]:
        """All definitions as chat templates take them, whatever may be called: another choice leaves the prompt as it is."""
        return [d.as_message() for d in self.definitions]


def tool_choice_of(choice: str) -> tuple[Choice, frozenset[str] | None, bool]:
    """A choice by name, or a function's name, as ``ToolUse`` takes it: (choice, names, one)."""
    if choice in ("auto", "none", "required"):
        return cast(Choice, choice), None, False
    return "required", frozenset([choice]), True


def arguments_text(value: Any) -> str:
    """Arguments as clients send them (an object, its JSON, "" or null) as JSON text that a template can write as it is."""
    if value is None or value == "":
        return "{}"
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        return json.dumps(value, ensure_ascii=False)  # no JSON: as a JSON string, so that the call stays JSON
    return value.strip()


def arguments_value(text: str) -> Any:
    """The value of arguments in JSON. Raises ValueError for text that is not JSON."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def same_arguments(text: str) -> str:
    """One spelling for all JSON texts of equal arguments: clients parse and write them again."""
    try:
        return json.dumps(_whole(arguments_value(text)), sort_keys=True)
    except (ValueError, RecursionError):
        return text


def _whole(value: Any) -> Any:
    """``value`` with 1.0 as 1: languages differ in how they write whole numbers."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {k: _whole(v) for k, v in value.items()}
    return [_whole(v) for v in value] if isinstance(value, list) else value
