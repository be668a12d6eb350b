"""Options of the Python API that may be given as keywords: a misspelt one is an error with the name that is nearest."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def with_keywords(
    options: T,
    keywords: Mapping[str, Any],
    function: Callable[..., Any],
    elsewhere: Mapping[str, Iterable[str]] | None = None,
) -> T:
    """The dataclass ``options`` with the keywords in place of its fields.

    ``function``: the method that was called, whose own parameters are suggested too. ``elsewhere``: names that other functions
    take, by what to call. Raises TypeError for a keyword that is none of the fields.
    """
    fields = {f.name for f in dataclasses.fields(options)}
    for name in keywords:
        if name not in fields:
            raise TypeError(_unknown(name, fields, function, elsewhere or {}))
    return dataclasses.replace(options, **keywords)


def _unknown(name: str, fields: set[str], function: Callable[..., Any], elsewhere: Mapping[str, Iterable[str]]) -> str:
    parameters = inspect.signature(function).parameters.values()
    own = fields | {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    problem = f"{function.__name__}() got an unexpected keyword argument {name!r}"
    if near := difflib.get_close_matches(name, own, 1, 0.6):
        return f"{problem}; did you mean {near[0]!r}?"
    for other, names in elsewhere.items():
        if near := difflib.get_close_matches(name, list(names), 1, 0.6):
            return f"{problem}; {near[0]!r} is an option of {other}"
    return f"{problem}; there are {', '.join(sorted(own))}"
