"""Drafts for tests of lookup decoding, where a random model says nothing that was said before."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from jambacli.engine import batch_steps, drafted_steps
from jambacli.engine.lookup import Lookup, Prediction, StepCosts


@contextmanager
def drafts_of(reply: Sequence[int], seed: int, n_vocab: int, share: float = 0.8) -> Iterator[None]:
    """Drafts of random lengths within: most tokens are those of ``reply``, the tokens that will be drawn, others random."""
    rng, drawn = random.Random(seed), 0
    push = Lookup.push

    def pushed(self: Lookup, token: int) -> None:
        nonlocal drawn
        drawn += 1
        push(self, token)

    def predict(self: Lookup, most: int, forced: Sequence[int] = ()) -> Prediction:
        length = rng.randint(0, max(0, min(most, 15)))
        right = [*reply[drawn : drawn + length], *[0] * length][:length]
        return certain([t if rng.random() < share else rng.randrange(n_vocab) for t in right])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lookup, "push", pushed)
        draft_all(patch, predict)
        yield


def certain(tokens: list[int]) -> Prediction:
    """A prediction that is sure of itself."""
    return Prediction(tokens, [1.0] * len(tokens))


def draft_all(patch: pytest.MonkeyPatch, predict: Callable[..., Prediction]) -> None:
    """From here on every token that ``predict`` (instead of ``Lookup.predict``) says is drafted, whatever steps cost."""

    def lengths(chances: Sequence[Sequence[float]], _: StepCosts) -> list[int]:
        return [len(row) for row in chances]

    patch.setattr(Lookup, "predict", predict)
    for module in (batch_steps, drafted_steps):
        patch.setattr(module, "draft_lengths", lengths)
