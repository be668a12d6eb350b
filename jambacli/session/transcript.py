"""A conversation as Markdown, for people: what was said, not what it takes to go on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_HEADINGS = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
# A fence that a message opens and never closes would swallow the rest of the page.
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})(.*)$", re.MULTILINE)


def to_markdown(turns: Sequence[Mapping[str, Any]], *, title: str, model: str, note: str = "") -> str:
    """The turns of a session file as a Markdown page: a heading for each message, its text as it is, thoughts as a quotation
    before it. ``note``: a line below the title, such as the date."""
    lines = [f"# {title}", "", " · ".join(part for part in (model, note) if part), ""]
    for turn in turns:
        role = str(turn.get("role", ""))
        lines += [f"## {_HEADINGS.get(role, role)}", ""]
        if thoughts := str(turn.get("thoughts") or "").strip():
            lines += [f"> {line}".rstrip() for line in thoughts.splitlines()] + [""]
        lines += [_closed(str(turn.get("content", "")).strip("\n")), ""]
    return "\n".join(lines).rstrip() + "\n"


def _closed(text: str) -> str:
    """``text`` with a fence after it if it leaves a code block open."""
    opened = ""
    for match in _FENCE.finditer(text):
        fence, rest = match[1], match[2]
        if not opened:
            if fence[0] == "~" or "`" not in rest:
                opened = fence
        elif fence[0] == opened[0] and len(fence) >= len(opened) and not rest.strip():
            opened = ""
    return f"{text}\n{opened}" if opened else text
