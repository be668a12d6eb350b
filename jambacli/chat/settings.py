"""The options of replies that a chat can change: their names, how they are typed, what they are now."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jambacli.engine.options import GenerationOptions
from jambacli.engine.sampling import Sampling
from jambacli.errors import UsageError

_OFF = ("default", "none")


def _switch(text: str) -> bool:
    if text.lower() not in ("on", "off"):
        raise ValueError(text)
    return text.lower() == "on"


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _bias(text: str) -> dict[int, float]:
    pairs = (part.split("=") for part in text.split())
    return {int(token): float(bias) for token, bias in pairs}


#: By the name that is typed: the field of GenerationOptions, what reads its value, and what a value looks like.
SETTINGS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "temp": ("temperature", float, "0.2"),
    "top-p": ("top_p", float, "0.9"),
    "top-k": ("top_k", int, "40"),
    "min-p": ("min_p", float, "0.05"),
    "typical-p": ("typical_p", float, "0.9"),
    "repeat-penalty": ("repeat_penalty", float, "1.1"),
    "presence-penalty": ("presence_penalty", float, "0.5"),
    "frequency-penalty": ("frequency_penalty", float, "0.5"),
    "penalty-last-n": ("penalty_last_n", int, "64"),
    "logit-bias": ("logit_bias", _bias, "518=-inf 42=1.5"),
    "seed": ("seed", int, "7"),
    "max-tokens": ("max_tokens", _positive, "500"),
    "stop": ("stop", lambda text: (text.encode().decode("unicode_escape") if "\\" in text else text,), "END"),
    "lookup": ("lookup", _switch, "on, off"),
}
_ALIASES = {"temperature": "temp", "n": "max-tokens"}


def changed(options: GenerationOptions, text: str) -> tuple[GenerationOptions, str]:
    """The options after "temp 0.2" or "temp default", and the name of what was set. Raises UsageError."""
    typed, value = re.fullmatch(r"([^\s=]*)[\s=]*(.*)", text.strip(), re.DOTALL).groups()  # type: ignore[union-attr]
    name = typed.lower().lstrip("-").replace("_", "-")
    name, value = _ALIASES.get(name, name), value.strip()
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the options are {', '.join(SETTINGS)}"
        raise UsageError(f"there is no option {typed[:40]!r}; {hint}")
    field, read, example = SETTINGS[name]
    if not value:
        raise UsageError(f"/set {name} needs a value, such as {example}; default takes it back")
    if value.lower() in _OFF:
        nothing: Any = () if field == "stop" else None
        return replace(options, **{field: nothing}), name
    try:
        found = read(value)
    except ValueError:
        raise UsageError(f"{name} {value[:40]!r} is not a value of it; write it like {example}") from None
    return replace(options, **{field: found}), name


def shown(options: GenerationOptions, defaults: Sampling, name: str) -> str:
    """An option and its value; ``defaults`` are the model's, used where nothing is set."""
    field = SETTINGS[name][0]
    own = getattr(options, field)
    value = own if own not in (None, ()) else getattr(defaults, field, None)
    if isinstance(value, bool):
        text = "on" if value else "off"
    elif isinstance(value, dict):
        text = " ".join(f"{t}={b:g}" for t, b in value.items()) or "none"
    elif isinstance(value, tuple):
        text = repr(value[0]) if value else "none"
    else:
        text = {"max_tokens": "no limit", "lookup": "where it is fast", "seed": "another each time"}.get(field, "none")
        text = text if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return f"{name:<18} {text}{'' if own in (None, ()) else ' (set here)'}"
