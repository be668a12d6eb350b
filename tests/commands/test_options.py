"""Arguments that the command line parses itself."""

from __future__ import annotations

import pytest

from jambacli.commands.flags import flag
from jambacli.commands.options import context, parse_logit_bias
from jambacli.errors import UsageError


def test_a_bias_is_a_token_and_a_number() -> None:
    assert parse_logit_bias(["518=-inf", "4=1.5"]) == {518: float("-inf"), 4: 1.5}


@pytest.mark.parametrize("text", ["5", "x=1", "5="])
def test_a_bad_bias_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_logit_bias([text])
    assert refused.value.worded(flag).startswith(f"--logit-bias '{text}' is not TOKEN=BIAS")


def test_a_context_is_a_number_of_tokens() -> None:
    assert context(None) is None and context("256k") == 262_144
    with pytest.raises(UsageError) as refused:
        context("0")
    assert refused.value.worded(flag) == "--ctx must be at least 1"
