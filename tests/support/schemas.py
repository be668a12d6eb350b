"""Random JSON schemas: nested objects, arrays, enums, patterns, unions, numbers, all strings and arrays bounded."""

from __future__ import annotations

import random
from typing import Any

_WORDS = [
    "name",
    "date",
    "party",
    "amount",
    "Währung",
    "items",
    "note",
    "ok",
    "x",
    "long key with spaces",
    'quo"te',
    "ключ",
]
_PATTERNS = ["^[A-Z]{2,4}-[0-9]{3}$", "^(yes|no|maybe)$", "^[a-f0-9]{8}$", "^\\d{4}-\\d{2}-\\d{2}$", "^[^,;]{1,12}$"]


def random_schema(seed: int) -> dict[str, Any]:
    """The schema of that number; its root is an object."""
    return _object(random.Random(seed), 0)


def _object(r: random.Random, depth: int) -> dict[str, Any]:
    names = r.sample(_WORDS, r.randint(1, 5 if depth < 2 else 2))
    properties = {name: _value(r, depth + 1) for name in names}
    required = [n for n in names if r.random() < 0.7]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _value(r: random.Random, depth: int) -> dict[str, Any]:
    kinds = ["string", "pattern", "integer", "number", "range", "boolean", "null", "enum", "const", "format"]
    if depth < 4:
        kinds += ["object", "array", "union", "tuple"] * 2
    kind = r.choice(kinds)
    if kind == "object":
        return _object(r, depth)
    if kind == "array":
        low = r.randint(0, 2)
        return {"type": "array", "items": _value(r, depth + 1), "minItems": low, "maxItems": low + r.randint(0, 3)}
    if kind == "tuple":
        items = [_value(r, depth + 1) for _ in range(r.randint(1, 3))]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    if kind == "union":
        return {"anyOf": [_value(r, depth + 1) for _ in range(r.randint(2, 3))]}
    if kind == "string":
        low = r.randint(0, 3)
        return {"type": "string", "minLength": low, "maxLength": low + r.randint(0, 30)}
    if kind == "range":
        low = r.randint(-1000, 1000)
        return {"type": r.choice(["integer", "number"]), "minimum": low, "maximum": low + r.randint(0, 5000)}
    if kind == "enum":
        return {"enum": r.sample(["red", "grün", 1, 2.5, None, True, "a b", ""], r.randint(1, 4))}
    return {
        "pattern": {"type": "string", "pattern": r.choice(_PATTERNS)},
        "integer": {"type": "integer"},
        "number": {"type": "number"},
        "boolean": {"type": "boolean"},
        "null": {"type": "null"},
        "const": {"const": r.choice(["fixed", 7, False])},
        "format": {"type": "string", "format": r.choice(["date", "time", "uuid", "ipv4"])},
    }[kind]
