"""What the page offers to ask with one click, from ``presets.json``."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from jambacli.server.errors import ApiError


@functools.cache
def presets() -> tuple[dict[str, Any], ...]:
    """All of them, in the order in which they are shown."""
    return tuple(json.loads(Path(__file__).with_name("presets.json").read_text(encoding="utf-8")))


def preset(name: object) -> dict[str, Any]:
    """The one of that id. Raises ApiError when there is none."""
    found = next((one for one in presets() if one["id"] == name), None)
    if found is None:
        known = ", ".join(one["id"] for one in presets())
        raise ApiError(400, f"there is no preset {str(name)[:40]!r}; there are: {known}", parameter="preset")
    return found
