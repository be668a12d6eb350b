"""Definitions of tools that a request may not have, and what is said of each."""

from __future__ import annotations

from typing import Any

import pytest

from jambacli.server.errors import ApiError
from jambacli.server.tools import read_tools


def _tool(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": fields}


@pytest.mark.parametrize(
    ("tool", "problem"),
    [
        (_tool(), "has no name"),
        (_tool(name=""), "has no name"),
        (_tool(name=7), "has no name"),
        (_tool(name="n" * 257), "a name of 257 characters; at most 256"),
        (_tool(name="a", description=1), "a description that is no text"),
        (_tool(name="a", parameters=[]), "parameters that are no JSON schema"),
        ({"type": "retrieval"}, "of the type 'retrieval'; only functions"),
    ],
)
def test_a_bad_definition_is_refused_with_its_place_and_fault(tool: dict[str, Any], problem: str) -> None:
    with pytest.raises(ApiError, match=r"tools\[1\]") as raised:
        read_tools({"tools": [_tool(name="good"), tool]})
    assert problem in str(raised.value)


def test_the_longest_name_is_taken() -> None:
    use = read_tools({"tools": [_tool(name="n" * 256)]})
    assert use is not None
    assert [tool.name for tool in use.definitions] == ["n" * 256]
