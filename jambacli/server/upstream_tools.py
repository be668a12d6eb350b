"""Tools of another server: definitions and choices as it takes them, and the calls in its stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jambacli.server.found_calls import CallDelta
from jambacli.server.tools import call_id
from jambacli.text.tool_calls import ToolCall
from jambacli.text.tools import ToolUse, arguments_text, arguments_value


def tool_fields(tools: ToolUse) -> dict[str, Any]:
    """The fields of a chat's body. Of tools that may not be called nothing is sent: few servers know OpenAI's
    "allowed_tools"."""
    named = tools.choice == "required" and tools.names is not None and len(tools.names) == 1
    shown = tools.callable if tools.choice != "none" else tools.definitions
    definitions = []
    for tool in shown:
        one = tool.as_message()
        if tool.strict:
            one["function"]["strict"] = True
        definitions.append(one)
    choice: Any = tools.choice
    if named:
        choice = {"type": "function", "function": {"name": shown[0].name}}
    fields = {"tools": definitions, "tool_choice": choice}
    return {**fields, "parallel_tool_calls": False} if tools.one and not named else fields


@dataclass
class _Part:
    """A call of which parts have come."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


class StreamedCalls:
    """The calls in the chunks of the reply ``index``."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._parts: list[_Part] = []
        self._places: dict[int, int] = {}

    def push(self, value: Any) -> list[CallDelta]:
        """The ``tool_calls`` of a chunk's delta."""
        items = [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
        return [delta for item in items if (delta := self._delta(item)) is not None]

    def _delta(self, item: Mapping[str, Any]) -> CallDelta | None:
        function = item.get("function")
        function = function if isinstance(function, dict) else {}
        name, given = function.get("name"), function.get("arguments")
        arguments = given if isinstance(given, str) else arguments_text(given) if given is not None else ""
        number = item.get("index")
        # Without a number every item with a name is a call of its own.
        place = self._places.get(number) if isinstance(number, int) else None if name else len(self._parts) - 1
        if place is None or place < 0:
            if not isinstance(name, str) or not name:
                return None
            place = len(self._parts)
            if isinstance(number, int):
                self._places[number] = place
            identity = item.get("id")
            self._parts.append(_Part(identity if isinstance(identity, str) and identity else call_id(), name))
        else:
            name = None
        part = self._parts[place]
        part.arguments.append(arguments)
        return CallDelta(self._index, place, part.id, name, arguments)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The calls that are complete: their arguments are JSON."""
        found = []
        for part in self._parts:
            text = "".join(part.arguments).strip() or "{}"
            try:
                arguments_value(text)
            except ValueError:
                continue
            found.append(ToolCall(part.name, text, part.id))
        return tuple(found)
