"""Close the objects of a JSON schema: those that name their properties take no others unless the schema says so.

JSON Schema itself takes any others, with which a model could go on to the end of the context.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from jambacli.engine.constraints.schema_dates import DATA, NAMED

logger = logging.getLogger(__name__)

# Keywords that say themselves what other properties an object may have.
_SAID = frozenset(("additionalProperties", "patternProperties", "unevaluatedProperties"))
# Keywords whose schemas hold together with the one that they stand in: none of them knows all properties.
_TOGETHER = frozenset(("allOf", "if", "then", "else", "not", "dependentSchemas"))
_CHOICES = frozenset(("anyOf", "oneOf"))
_said = False


def closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """``schema`` with ``"additionalProperties": false`` in every object that names its properties and does not say otherwise.

    Objects that a schema puts together from several parts (allOf, or anyOf beside properties) are left open, and so are those
    without properties: ``{"type": "object"}`` is any object.
    """
    together = {ref for part, beside in _parts(schema, False) if beside for ref in _refs(part)}
    result = _closed(schema, False, together, "#")
    assert isinstance(result, Mapping)
    return result


def say_closed(schema: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    """Log, once in a process, that a schema's objects were closed, if they were."""
    global _said
    if not _said and json.dumps(schema, default=str) != json.dumps(changed, default=str):
        _said = True
        logger.info(
            'the schema\'s objects take no properties besides those it names; "additionalProperties": true in it allows others'
        )


def _closed(part: Any, beside: bool, together: set[str], place: str) -> Any:
    """``part`` closed. ``beside``: it holds together with another. ``place``: where it is, as a $ref writes it."""
    if isinstance(part, list):
        return [_closed(p, beside, together, f"{place}/{i}") for i, p in enumerate(part)]
    if not isinstance(part, Mapping):
        return part
    beside = beside or place in together
    parts: dict[str, Any] = {}
    for key, value in part.items():
        inside = f"{place}/{key}"
        if key in DATA:
            parts[key] = value
        elif key in NAMED and isinstance(value, Mapping):
            held = key in _TOGETHER
            parts[key] = {name: _closed(p, held, together, f"{inside}/{_escaped(name)}") for name, p in value.items()}
        else:
            parts[key] = _closed(value, _holds(part, key, beside), together, inside)
    if beside or "properties" not in part or _SAID & part.keys() or "$ref" in part:
        return parts
    return parts if _has_others(part) else {**parts, "additionalProperties": False}


def _holds(part: Mapping[str, Any], key: str, beside: bool) -> bool:
    """Whether the schemas under ``key`` hold together with others."""
    if key in _TOGETHER:
        return True
    alone = not (beside or "properties" in part or "$ref" in part or "allOf" in part)
    return key in _CHOICES and not alone


def _has_others(part: Mapping[str, Any]) -> bool:
    """Whether schemas that hold together with this one may name more properties."""
    inner = [part[key] for key in _TOGETHER | _CHOICES if key in part]
    return any('"properties"' in text or '"$ref"' in text for text in (json.dumps(p, default=str) for p in inner))


def _parts(part: Any, beside: bool) -> Iterator[tuple[Mapping[str, Any], bool]]:
    """Every schema in ``part``, and whether it holds together with another."""
    if isinstance(part, list):
        for p in part:
            yield from _parts(p, beside)
    elif isinstance(part, Mapping):
        yield part, beside or ("$ref" in part and "properties" in part)
        for key, value in part.items():
            if key in DATA:
                continue
            if key in NAMED and isinstance(value, Mapping):
                for p in value.values():
                    yield from _parts(p, key in _TOGETHER)
            else:
                yield from _parts(value, _holds(part, key, beside))


def _refs(part: Mapping[str, Any]) -> Iterator[str]:
    reference = part.get("$ref")
    if isinstance(reference, str):
        yield reference


def _escaped(name: Any) -> str:
    return str(name).replace("~", "~0").replace("/", "~1")
