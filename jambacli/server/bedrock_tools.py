"""Tools in Bedrock's Converse API."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeAlias

from jambacli.server.errors import bad_request
from jambacli.server.file_parts import FilePart
from jambacli.server.request import Message
from jambacli.server.tools import call_input, definition, given_call, tool_use
from jambacli.text.tool_calls import ToolCall
from jambacli.text.tools import ToolUse

#: Reads the texts of blocks, and puts files into a list if there is one.
ReadTexts: TypeAlias = Callable[[str, Any, list[FilePart] | None], list[str]]


def converse_tools(value: Any) -> ToolUse | None:
    """The tools of a ``toolConfig``, None without one. Raises ApiError."""
    if value is None:
        return None
    items = value.get("tools") if isinstance(value, dict) else None
    if not isinstance(items, list) or not items:
        raise bad_request("the field 'toolConfig' has no tools", "toolConfig")
    definitions = []
    for i, item in enumerate(items):
        if isinstance(item, dict) and "cachePoint" in item:  # every position is one here
            continue
        spec = item.get("toolSpec") if isinstance(item, dict) else None
        if not isinstance(spec, dict):
            raise bad_request(f"toolConfig.tools[{i}] is no toolSpec", "toolConfig")
        schema = spec.get("inputSchema")
        json_schema = schema.get("json") if isinstance(schema, dict) else None
        where = f"toolConfig.tools[{i}]"
        definitions.append(
            definition(where, spec.get("name"), spec.get("description"), json_schema, spec.get("strict"))
        )
    choice = value.get("toolChoice")
    wanted: Any = "auto"
    if isinstance(choice, dict) and isinstance(choice.get("tool"), dict):
        wanted = {"type": "function", "name": choice["tool"].get("name")}
    elif isinstance(choice, dict) and "any" in choice:
        wanted = "required"
    return tool_use(definitions, wanted)


def converse_messages(where: str, role: str, blocks: Any, texts: ReadTexts) -> list[Message]:
    """A message as messages of a chat: results of calls come before its texts. ``texts`` reads blocks of other kinds, and
    puts a user's documents into a list.

    Raises ApiError.
    """
    results, calls, rest = list[Message](), list[ToolCall](), list[Any]()
    for block in blocks if isinstance(blocks, list) else []:
        used = block.get("toolUse") if isinstance(block, dict) else None
        result = block.get("toolResult") if isinstance(block, dict) else None
        if isinstance(used, dict) and isinstance(used.get("name"), str):
            calls.append(given_call(used["name"], used.get("input"), used.get("toolUseId")))
        elif isinstance(result, dict):
            parts = result.get("content") or []
            if not isinstance(parts, list):
                raise bad_request(f"{where}: the content of a toolResult must be a list", "messages")
            parts = [{"text": _json(p)} if isinstance(p, dict) and "json" in p else p for p in parts]
            content = "\n".join(texts(where, parts, None))
            results.append(Message("tool", content, call_id=str(result.get("toolUseId"))))
        else:
            rest.append(block)
    if results and not rest and not calls:
        return results
    files: list[FilePart] = []
    kept = files if role == "user" else None
    said = "\n".join(texts(where, rest if isinstance(blocks, list) else blocks, kept))
    return [*results, Message(role, said, calls=tuple(calls), files=files)]


def _json(part: dict[str, Any]) -> str:
    return json.dumps(part["json"], ensure_ascii=False)


def converse_call(call: ToolCall) -> dict[str, Any]:
    """A call as a block of a message."""
    return {"toolUse": {"toolUseId": call.id, "name": call.name, "input": call_input(call)}}
