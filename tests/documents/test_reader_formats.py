"""The table of formats: every reader exists and takes what it is called with."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

from jambacli.documents.extract.formats import FORMATS, Opening


@pytest.mark.parametrize("kind", FORMATS)
def test_readers_take_what_the_table_says(kind: str) -> None:
    for library in ("lxml", "pypdfium2", "olefile", "python_calamine", "PIL"):
        pytest.importorskip(library)
    module, _, function = FORMATS[kind].reader.partition(":")
    reader = getattr(import_module(f"jambacli.documents.extract.{module}"), function)
    takes = FORMATS[kind].takes
    assert set(takes) <= set(Opening.__dataclass_fields__)
    inspect.signature(reader).bind(*(takes or ["opening"]))
    for given, parameter in zip(takes, inspect.signature(reader).parameters, strict=False):
        assert parameter == {"inner": "read"}.get(given, given)
