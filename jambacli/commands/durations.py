"""Durations as people write them, in options of several commands."""

from __future__ import annotations

from jambacli.errors import UsageError
from jambacli.units import parse_duration


def age(text: str) -> float:
    """``--older-than`` in seconds. Raises UsageError for anything but a duration."""
    seconds = parse_duration(text, "--older-than")
    if seconds is None:
        raise UsageError("is not a time that can pass; write it like 30d or 12h", field="older_than", value=text)
    return seconds
