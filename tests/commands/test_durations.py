"""Durations on the command line."""

from __future__ import annotations

import pytest

from jambacli.commands.durations import age
from jambacli.errors import UsageError


def test_a_duration_has_a_unit() -> None:
    assert [age(text) for text in ("30d", "12h", "90m", "1d12h", " 0.5d ", "10S")] == [
        30 * 86_400,
        12 * 3600,
        90 * 60,
        36 * 3600,
        12 * 3600,
        10,
    ]


@pytest.mark.parametrize("text", ["30", "soon", "", "forever", "-1h", "1h30", "30 d", "1e3d"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="write it like 30d, 12h or 90m") as caught:
        age(text)
    assert caught.value.field == "older_than"
