"""JSON schemas of tools, without what cannot be enforced: schemas of real tools hold much that llguidance does not know."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from jambacli.engine.constraints.json_schema import json_rule
from jambacli.engine.constraints.schema_checks import check_ends
from jambacli.engine.constraints.schema_dates import DATA, NAMED
from jambacli.engine.constraints.schema_objects import closed
from jambacli.errors import UsageError

if TYPE_CHECKING:
    from jambacli.engine.constraints.grammar import Vocabulary

# Rounds of leaving something out before all of a schema is.
_ROUNDS = 16

#: What no schema is left of.
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def relaxed(schema: Mapping[str, Any], vocabulary: Vocabulary) -> tuple[Mapping[str, Any], list[str]]:
    """A schema of arguments that can be enforced and takes everything that ``schema`` does, and what was left out.

    Objects with ``properties`` take no others unless the schema says so: functions know no more.
    """
    known = vocabulary.relaxed
    key = json.dumps(schema, sort_keys=True, default=str)
    if key not in known:
        while len(known) >= 1024:
            known.pop(next(iter(known)), None)
        known[key] = _relaxed(schema, vocabulary)
    return known[key]


def _relaxed(schema: Mapping[str, Any], vocabulary: Vocabulary) -> tuple[Mapping[str, Any], list[str]]:
    part: Any = schema if "type" in schema or "$ref" in schema else {**schema, "type": "object"}
    gone: list[str] = []
    try:
        part = closed(part)
        check_ends(part)
        for _ in range(_ROUNDS):
            problem = vocabulary.refusal(f"start: {json_rule(part)}")
            if not problem:
                return part, gone
            names, change = _remedy(problem)
            if change is None or (next_part := _changed(part, change)) == part:
                break
            part, gone = next_part, [*gone, *names]
    except (UsageError, RecursionError):
        pass
    return ANY_OBJECT, ["the whole schema"]


_Change = Callable[[dict[str, Any]], dict[str, Any]]


def _remedy(problem: str) -> tuple[list[str], _Change | None]:
    """What to leave out of a schema that llguidance refuses: its names for people, and the change to every part."""
    text = re.sub(r"^(at \d+\(\d+\): )?(failed to compile JSON schema: )?", "", problem.strip())
    if found := re.match(r"Unimplemented keys: (\[.*?\])", text):
        keys = json.loads(found[1])
        return keys, lambda one: {k: v for k, v in one.items() if k not in keys}
    if found := re.match(r"Unknown format: (.*)", text):
        name = found[1].split("\n")[0].strip()
        return [f"format {name}"], lambda one: {k: v for k, v in one.items() if (k, v) != ("format", name)}
    if re.match(r"Resource '(.*?)' is not present", text):
        return ["$ref"], lambda one: {
            k: v for k, v in one.items() if k != "$ref" or (isinstance(v, str) and v.startswith("#"))
        }
    if text.startswith("oneOf constraints"):
        return ["oneOf"], _any_of
    if "regex" in text:
        return ["pattern"], lambda one: {k: v for k, v in one.items() if k not in ("pattern", "patternProperties")}
    return [], None


def _any_of(one: dict[str, Any]) -> dict[str, Any]:
    if "oneOf" not in one:
        return one
    choices = one["oneOf"]
    rest = {k: v for k, v in one.items() if k != "oneOf"}
    return {**rest, "anyOf": choices} if "anyOf" not in one else rest


def _changed(part: Any, change: _Change) -> Any:
    """``part`` with the change made to every schema in it."""
    again = functools.partial(_changed, change=change)
    if isinstance(part, list):
        return [again(p) for p in part]
    if not isinstance(part, Mapping):
        return part
    parts: dict[str, Any] = {}
    for key, value in part.items():
        if key in DATA:
            parts[key] = value
        elif key in NAMED and isinstance(value, Mapping):
            parts[key] = {name: again(p) for name, p in value.items()}
        else:
            parts[key] = again(value)
    return change(parts)
