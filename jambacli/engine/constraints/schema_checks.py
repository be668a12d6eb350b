"""Check a JSON schema before generation, and explain why llguidance refuses one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from jambacli.errors import JambaError, UsageError


def check_ends(schema: Mapping[str, Any]) -> None:
    """Raise UsageError for a schema whose documents would have to contain themselves without end, through its $refs."""
    try:
        if not _Ends(schema).whole():
            raise UsageError(
                "no document of the schema ever ends: a $ref in it requires itself; make it optional or nullable"
            )
    except RecursionError as error:
        raise UsageError("the schema is nested too deeply; put its parts under $defs and refer to them") from error


def refusal(text: str) -> str:
    """Why llguidance refuses a schema, as a clause that says what to do."""
    plain = re.sub(r"^(at \d+\(\d+\): )?(failed to compile JSON schema: )?", "", text.split("\n   1 |", 1)[0].strip())
    if found := re.match(r"Unimplemented keys: (\[.*\])", plain):
        keys = ", ".join(json.loads(found[1]))
        return f"it uses {keys}, which cannot be enforced during generation; leave that out and check it afterwards"
    if found := re.match(r"Resource '(.*?)' is not present", plain):
        return (
            f'it refers to {found[1]}, and nothing is fetched; put that part under "$defs" and refer to "#/$defs/NAME"'
        )
    if found := re.match(r"Unknown format: (.*)", plain):
        return f'the format "{found[1]}" is not known; use a pattern instead'
    if plain.startswith("oneOf constraints"):
        return "the choices of a oneOf overlap; use anyOf instead"
    if plain.startswith("regex parse error"):
        reason = plain.rpartition("error: ")[2]
        return f"a pattern in it cannot be used: {_line(reason)}"
    if found := re.match(r"Unsatisfiable schema: (.*)", plain, re.DOTALL):
        return f"nothing satisfies it: {_line(found[1])}"
    if "recursion limit" in plain:
        return "it is nested too deeply; put its parts under $defs and refer to them"
    return _line(plain)


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


class _Ends:
    """Finds the parts of a schema that have finite documents: those that require only such parts."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._ending: set[str] = set()  # $refs known to have finite documents
        self._met: set[str] = set()

    def whole(self) -> bool:
        """Whether the schema itself has finite documents: such $refs are collected in rounds until no more are found."""
        while True:
            known, met = len(self._ending), len(self._met)
            if self._ends(self._schema):
                return True
            self._ending |= {r for r in self._met - self._ending if self._ends(self._target(r))}
            if (len(self._ending), len(self._met)) == (known, met):
                return False

    def _ends(self, part: Any) -> bool:
        if not isinstance(part, Mapping) or "const" in part or "enum" in part:
            return True
        ref = part.get("$ref")
        if isinstance(ref, str) and (ref == "#" or ref.startswith("#/")):
            self._met.add(ref)
            if ref not in self._ending:
                return False
        each = part.get("allOf")
        if isinstance(each, list) and not all(self._ends(p) for p in each):
            return False
        for key in ("anyOf", "oneOf"):
            some = part.get(key)
            if isinstance(some, list) and some and not any(self._ends(p) for p in some):
                return False
        kinds = part.get("type")
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if any(kind not in ("object", "array", None) for kind in kinds):  # what is no type is refused later
            return True
        return (kinds == ["array"] or self._object_ends(part)) and (kinds == ["object"] or self._array_ends(part))

    def _object_ends(self, part: Mapping[str, Any]) -> bool:
        properties, required = part.get("properties"), part.get("required")
        if part.get("type") is None or not isinstance(properties, Mapping) or not isinstance(required, list):
            return True
        return all(self._ends(properties[name]) for name in required if isinstance(name, str) and name in properties)

    def _array_ends(self, part: Mapping[str, Any]) -> bool:
        least = part.get("minItems")
        if part.get("type") is None or not isinstance(least, int) or least < 1:
            return True
        first = part.get("prefixItems")
        needed = first[:least] if isinstance(first, list) else []
        return all(self._ends(p) for p in needed) and (len(needed) >= least or self._ends(part.get("items")))

    def _target(self, ref: str) -> Any:
        """The part of the schema that a $ref points to (RFC 6901); None when there is none."""
        part: Any = self._schema
        for step in unquote(ref[1:]).split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(part, list):
                part = part[int(name)] if name.isdecimal() and len(name) < 10 and int(name) < len(part) else None
            else:
                part = part.get(name) if isinstance(part, Mapping) else None
        return part


def refused(text: str) -> JambaError:
    """The error for a schema that llguidance refuses."""
    return UsageError(f"the schema cannot be followed: {refusal(text)}")
