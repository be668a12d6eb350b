"""LoRA adapters of a request: which of those that the server has loaded apply to it, and how strongly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jambacli.model.lora import MAX_SCALE
from jambacli.server.errors import bad_request

if TYPE_CHECKING:
    from jambacli.model.lora import Adapter, AdapterSet

_MOST = 64


@dataclass(frozen=True)
class AskedLora:
    """One entry of a body's ``lora``: an adapter by its number or its name, and its scale."""

    adapter: int | str
    scale: float


def read_lora(body: Mapping[str, Any]) -> tuple[AskedLora, ...] | None:
    """The field ``lora``, as llama-server has it: [{"id": 0, "scale": 0.5}], or with "name" in place of "id". None without it.

    Raises ApiError.
    """
    value = body.get("lora")
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > _MOST:
        raise bad_request(f"the field 'lora' must be a list of up to {_MOST} adapters", "lora")
    return tuple(_entry(i, item) for i, item in enumerate(value))


def _entry(i: int, item: Any) -> AskedLora:
    if not isinstance(item, dict) or ("id" in item) == ("name" in item):
        raise bad_request(f"lora[{i}] must be an object with the 'id' or the 'name' of an adapter", "lora")
    adapter, scale = item.get("id", item.get("name")), item.get("scale", 1.0)
    if isinstance(adapter, bool) or not isinstance(adapter, int if "id" in item else str):
        raise bad_request(f"lora[{i}] has no valid id or name", "lora")
    finite = isinstance(scale, int | float) and not isinstance(scale, bool) and abs(scale) <= MAX_SCALE
    if not finite or not math.isfinite(scale):
        raise bad_request(f"lora[{i}].scale must be a number from -{MAX_SCALE:g} to {MAX_SCALE:g}", "lora")
    return AskedLora(adapter, float(scale))


def chosen_adapters(loras: AdapterSet, asked: Sequence[AskedLora] | None) -> AdapterSet | None:
    """The adapters for a request: those not named have a scale of 0. None for the server's own scales. Raises ApiError."""
    if asked is None:
        return None
    scales = [0.0] * len(loras.parts)
    for one in asked:
        at = _place(loras, one.adapter)
        if at is None:
            there = ", ".join(_name(adapter) for adapter, _ in loras.parts) or "none: start the server with --lora"
            raise bad_request(f"there is no LoRA adapter {str(one.adapter)[:80]!r}; loaded: {there}", "lora")
        scales[at] = one.scale
    return loras.scaled(scales)


def lora_entries(loras: AdapterSet) -> list[dict[str, Any]]:
    """The loaded adapters, as llama-server lists them."""
    return [
        {"id": i, "name": _name(adapter), "path": adapter.path.name, "scale": scale}
        for i, (adapter, scale) in enumerate(loras.parts)
    ]


def _place(loras: AdapterSet, adapter: int | str) -> int | None:
    if isinstance(adapter, int):
        return adapter if 0 <= adapter < len(loras.parts) else None
    names = [_name(one) for one, _ in loras.parts]
    return names.index(adapter) if adapter in names else None


def _name(adapter: Adapter) -> str:
    """An adapter's name in requests: that of its file."""
    return adapter.path.stem
