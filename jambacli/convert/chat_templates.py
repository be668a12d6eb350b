"""Finds the chat templates of an HF checkpoint, in each of the places that transformers has used.

Newest: chat_template.jinja and additional_chat_templates/NAME.jinja. Before: chat_template.json. Oldest: "chat_template" in
tokenizer_config.json, one string or a list of named templates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jambacli.convert.hf_checkpoint import read_json, read_text
from jambacli.errors import BadFileError
from jambacli.gguf.jamba_metadata import CHAT_TEMPLATE

MAX_TEMPLATE_BYTES = 4 << 20
NAMES = "tokenizer.chat_templates"


def chat_templates(folder: Path) -> dict[str, str]:
    """The templates in ``folder`` by name; "default" is the one for chats.

    As in transformers, the newest place takes precedence. BadFileError for a template that is not text.
    """
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "chat_template.json"):
        if (path := folder / name).is_file():
            found |= _named(path, read_json(path).get("chat_template"))
    if (path := folder / "chat_template.jinja").is_file():
        found["default"] = read_text(path, MAX_TEMPLATE_BYTES)
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = read_text(path, MAX_TEMPLATE_BYTES)
    return found


def template_metadata(templates: Mapping[str, str]) -> list[tuple[str, Any, str]]:
    """The tokenizer.chat_template* keys as (key, value, GGUF type): the default template, and the others by name."""
    others = {re.sub(r"[^0-9A-Za-z]", "_", name): text for name, text in templates.items() if name != "default"}
    rows: list[tuple[str, Any, str]] = []
    if "default" in templates:
        rows.append((CHAT_TEMPLATE, templates["default"], "str"))
    rows += [(f"{CHAT_TEMPLATE}.{name}", text, "str") for name, text in others.items()]
    if others:
        rows.append((NAMES, list(others), "arr[str]"))
    return rows


def _named(path: Path, value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    entries = value if isinstance(value, list) else [None]
    found: dict[str, str] = {}
    for entry in entries:
        name, text = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not name or not isinstance(text, str):
            raise BadFileError(path, "chat_template is neither a string nor a list of named templates")
        found[name] = text
    return found
