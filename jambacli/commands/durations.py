"""Durations as people write them, in options of several commands."""

from __future__ import annotations

from jambacli.errors import UsageError
from jambacli.units import parse_duration


def age(text: str) -> float:
    """``--older-than`` in seconds. Raises UsageError for anything but a duration with its unit: 30 might be seconds or days."""
    try:
        seconds = parse_duration(text)
    except UsageError:
        seconds = None
    if seconds is None or text.strip()[-1:].isdigit():
        raise UsageError(
            "is not a duration with its unit; write it like 30d, 12h or 90m", field="older_than", value=text
        )
    return seconds
