"""The measurement of lookup decoding: replies with a known share of quotations, and that nothing but time changes."""

from __future__ import annotations

import itertools
import random

import pytest

from jambacli.engine.lookup import StepCosts
from jambacli.errors import UsageError
from jambacli.evaluation.lookup import forced_reply, own_replies, quoting
from tests.support.small_models import small_model


def test_a_reply_quotes_the_share_that_is_asked_for() -> None:
    document = random.Random(0).sample(range(10_000), 3000)  # no token twice
    pairs = set(itertools.pairwise(document))
    for share in (0.0, 0.3, 0.7, 1.0):
        reply = quoting(document, share, 2000, seed=1)
        followed = sum(pair in pairs for pair in itertools.pairwise(reply)) / 2000
        assert len(reply) == 2000 and followed == pytest.approx(share, abs=0.06)
    assert quoting(document, 0.5, 300, seed=1) == quoting(document, 0.5, 300, seed=1) != quoting(document, 0.5, 300)


@pytest.mark.parametrize(("share", "length"), [(1.2, 500), (-0.1, 500), (0.5, 10)])
def test_a_share_or_text_that_does_not_do_is_refused(share: float, length: int) -> None:
    with pytest.raises(UsageError):
        quoting(list(range(length)), share, 100)


def test_a_forced_reply_takes_fewer_steps_the_more_it_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepCosts, "seconds", lambda self, tokens: 1 + 0.1 * (tokens - 1))  # not this machine's
    model = small_model()
    document = random.Random(0).choices(range(10, 300), k=400)
    results = [
        forced_reply(model, document, quoting(document, share, 120), "", repetitions=1) for share in (0, 0.5, 0.9)
    ]
    for result in results:
        assert result.same and result.tokens == 119 and result.tokens == result.steps + result.accepted
    assert results[0].steps > 110 > results[1].steps > results[2].steps and results[2].steps < 50


def test_a_models_own_replies_are_compared() -> None:
    done: list[int] = []
    rows = list(
        own_replies(
            small_model(), "herons counted at the lake. " * 5, ["What?", "Who?"], max_tokens=8, done=done.append
        )
    )
    assert [r.reply for r in rows] == ["What?", "Who?"] and all(r.same for r in rows) and len(done) == 8
