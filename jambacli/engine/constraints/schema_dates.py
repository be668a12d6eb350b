"""Restrict the dates and times of a JSON schema to valid ones.

llguidance's own ``date`` takes 29 February in every year and the year 0, its ``time`` a 60th second; validators accept neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_YEAR = r"(000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d\d\d)"
_LEAP_YEAR = r"(\d\d(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
# llguidance checks the days of the other months.
_DATE = rf"({_YEAR}-((0[13-9]|1[0-2])-\d\d|02-([01]\d|2[0-8]))|{_LEAP_YEAR}-02-29)"
_TIME = r"\d\d:\d\d:[0-5]\d"
_PATTERNS = {"date": rf"^{_DATE}$", "time": rf"^{_TIME}", "date-time": rf"^{_DATE}[Tt]{_TIME}"}
#: Values of these keys are data, not schemas.
DATA = frozenset(("const", "enum", "default", "examples"))
#: Values of these keys are schemas by name; a name may be one of the keys above.
NAMED = frozenset(("properties", "patternProperties", "dependentSchemas", "$defs", "definitions"))


def with_calendar(schema: Any) -> Any:
    """A copy of ``schema``, or of a part of one, in which every date and time also follows a pattern of valid ones."""
    if isinstance(schema, list):
        return [with_calendar(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    parts = {key: value if key in DATA else _inside(key, value) for key, value in schema.items()}
    known, others = parts.get("format"), parts.get("allOf", [])
    if isinstance(known, str) and known in _PATTERNS and isinstance(others, list):
        parts["allOf"] = [*others, {"pattern": _PATTERNS[known]}]
    return parts


def _inside(key: Any, value: Any) -> Any:
    if key in NAMED and isinstance(value, Mapping):
        return {name: with_calendar(part) for name, part in value.items()}
    return with_calendar(value)
