"""The options of replies that a conversation has, as the page sets them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jambacli.engine.options import GenerationOptions
from jambacli.server.errors import bad_request
from jambacli.server.openai import chat_options

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens")
_FLAGS = ("think", "citations")


def read_reply_options(value: Any, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The options that are set in a body's "options", over those ``before``; null removes one. Raises ApiError."""
    if value is None:
        return dict(before or {})
    if not isinstance(value, Mapping):
        raise bad_request("the field 'options' must be an object", "options")
    unknown = sorted(str(name)[:40] for name in value if name not in (*_SAMPLING, *_FLAGS))
    if unknown:
        raise bad_request(f"the field 'options' has no {unknown[0]!r}", "options")
    merged = {k: v for k, v in {**(before or {}), **value}.items() if v is not None}
    for name in _FLAGS:
        if name in merged and not isinstance(merged[name], bool):
            raise bad_request(f"options.{name} must be true or false", "options")
    generation_options(merged, GenerationOptions())
    return merged


def generation_options(options: Mapping[str, Any], defaults: GenerationOptions) -> GenerationOptions:
    """The options of a reply. Raises ApiError for a value out of its range."""
    chosen = chat_options({k: v for k, v in options.items() if k in _SAMPLING}, defaults)
    return replace(chosen, think=options.get("think", defaults.think))
