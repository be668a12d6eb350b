"""Extends a sequence by the tokens that a sampler draws, several in a step where lookup provides drafts."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jambacli.engine.sampling import Logits, Sampler
    from jambacli.engine.sequence import TokenSequence


class DraftedSteps:
    """Extends a sequence by drawn tokens, as ``TokenSequence.step`` does, with drafts."""

    def __init__(self, sequence: TokenSequence, sampler: Sampler, stop_ids: Collection[int] = ()) -> None:
        """``sampler``: draws the tokens; its constraint may force some. ``stop_ids``: are never in a draft."""
        self._sequence, self._sampler, self._stop_ids = sequence, sampler, stop_ids
        self._begun = False

    def step(self, token: int, left: int) -> Logits:
        """Append ``token`` and return the logits after it. ``left``: how many tokens may still be drawn."""
        sequence = self._sequence
        draft = self.draft(token, left)
        if sequence.expects(token):
            return sequence.step(token)
        start = time.perf_counter()
        logits = sequence.step(token, draft)
        sequence.lookup.costs.record(1 + len(draft), time.perf_counter() - start)
        return logits

    def draft(self, token: int, left: int) -> list[int]:
        """The draft to append after ``token``, which was drawn; none if the sequence expects it. Call it once a token."""
        sequence, lookup = self._sequence, self._sequence.lookup
        if not self._begun:  # at the first token, which is shown by then
            lookup.index.follow(sequence.tokens)
            self._begun = True
        lookup.push(token)
        if sequence.expects(token):
            return []
        forced = self._sampler.forced()
        # The last token that is drawn need not be computed.
        draft = lookup.draft(min(sequence.max_draft, left - 1, sequence.ctx - len(sequence.tokens) - 1), forced)
        end = next((i for i, t in enumerate(draft) if t in self._stop_ids), len(draft))
        return draft[:end]
