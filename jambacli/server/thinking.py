"""Whether a request is to be answered with thoughts or without, in the form of each API. ``session.thinking`` does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jambacli.server.errors import bad_request
from jambacli.session.thinking import SWITCHES


def read_effort(body: Mapping[str, Any]) -> bool | None:
    """Whether a body of OpenAI's APIs wants thoughts: by ``reasoning_effort``, ``reasoning`` or the template's variables; None
    if it does not say. Raises ApiError."""
    variables = body.get("chat_template_kwargs")
    if isinstance(variables, Mapping):
        for name in SWITCHES:
            if isinstance(variables.get(name), bool):
                return bool(variables[name])
    reasoning = body.get("reasoning")
    if reasoning is not None and not isinstance(reasoning, Mapping):
        raise bad_request("the field 'reasoning' must be an object", "reasoning")
    effort = body.get("reasoning_effort", (reasoning or {}).get("effort"))
    if effort is None:
        return None
    if not isinstance(effort, str):
        raise bad_request("the field 'reasoning_effort' must be a text", "reasoning_effort")
    return effort != "none"


def read_config(value: Any) -> bool | None:
    """The same in Anthropic's form: ``{"type": "enabled" | "disabled" | "adaptive"}``. Raises ApiError."""
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(kind, str):
        raise bad_request("the field 'thinking' must be an object with a type", "thinking")
    return kind != "disabled"


def read_think(value: Any) -> bool | None:
    """The same in Ollama's form: true, false, or a text for how much. Raises ApiError."""
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise bad_request("the field 'think' must be true, false or a text", "think")
    return value != "none"
