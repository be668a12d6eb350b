"""Chat templates as models of many families have them, written for these tests, and conversations to render with them."""

from __future__ import annotations

from typing import Any

from tests.support.repository import REPO

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The weather of a place, "now" & <later>',
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "description": "Città"}, "days": {"type": "integer"}},
            "required": ["place"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
CALL = {
    "id": "call12345",
    "type": "function",
    "function": {"name": "weather", "arguments": {"place": "Rom'a", "days": 2}},
}

SHORT: list[dict[str, Any]] = [{"role": "user", "content": "  Hi <b>there</b> & 'you' \n"}]
TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": "Why is the sky blue? 🦩"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nScattering."},
    {"role": "user", "content": "And שלום now?"},
]
CALLS: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call12345", "name": "weather", "content": '{"sun": true}'},
    {"role": "assistant", "content": "Sunny."},
    {"role": "user", "content": "Thanks"},
]
PARTS: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "One."}, {"type": "image"}, {"type": "text", "text": " Two."}],
    }
]
DOCUMENTS = [{"title": "Report <A>", "text": "Herons: 42 & שלום"}, {"title": "B", "text": "None"}]

#: Conversations with what else a template gets.
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "short": (SHORT, {}),
    "turns": (TURNS, {}),
    "no prompt": (TURNS, {"add_generation_prompt": False}),
    "tools": (TURNS, {"tools": [WEATHER, CLOCK]}),
    "calls": (CALLS, {"tools": [WEATHER, CLOCK]}),
    "documents": (TURNS, {"documents": DOCUMENTS}),
    "parts": (PARTS, {}),
    "variables": (TURNS, {"enable_thinking": False, "date_string": "1 May 2026", "reasoning_effort": "low"}),
    "assistant first": (TURNS[2:], {}),
    "nothing": ([], {}),
}

#: The templates, by family: one file each.
TEMPLATES = {
    path.stem: path.read_bytes().decode("utf-8")
    for path in sorted((REPO / "tests/text/chat_templates").glob("*.jinja"))
}
