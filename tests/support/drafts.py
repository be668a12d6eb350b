"""Drafts for tests of lookup decoding, where a random model says nothing that was said before."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from jambacli.engine.lookup import Lookup


@contextmanager
def drafts_of(reply: Sequence[int], seed: int, n_vocab: int, share: float = 0.8) -> Iterator[None]:
    """Drafts of random lengths within: most tokens are those of ``reply``, the tokens that will be drawn, others random."""
    rng, drawn = random.Random(seed), 0
    push = Lookup.push

    def pushed(self: Lookup, token: int) -> None:
        nonlocal drawn
        drawn += 1
        push(self, token)

    def draft(self: Lookup, most: int, forced: Sequence[int] = ()) -> list[int]:
        length = rng.randint(0, max(0, min(most, 15)))
        right = [*reply[drawn : drawn + length], *[0] * length][:length]
        return [t if rng.random() < share else rng.randrange(n_vocab) for t in right]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lookup, "push", pushed)
        patch.setattr(Lookup, "draft", draft)
        yield
