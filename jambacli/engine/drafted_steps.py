"""Extends a sequence by the tokens that a sampler draws, several in a step where lookup provides drafts."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from jambacli.engine.lookup import Prediction, draft_lengths

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
        sequence, costs = self._sequence, self._sequence.lookup.costs
        predicted = self.push(token, left)
        if sequence.expects(token):
            return sequence.step(token)
        (length,) = draft_lengths([predicted.chances], costs)
        start, state = time.perf_counter(), sequence.state
        moves = state.moves
        logits = sequence.step(token, predicted.tokens[:length])
        if state.moves == moves:  # else memory was allocated
            costs.record(1 + length, time.perf_counter() - start)
        return logits

    def push(self, token: int, left: int) -> Prediction:
        """What may follow ``token``, which was drawn and not appended yet; nothing if the sequence expects it. Call it once a
        token. ``left``: as for ``step``."""
        sequence, lookup = self._sequence, self._sequence.lookup
        if not self._begun:  # at the first token, which is shown by then
            lookup.index.follow(sequence.tokens)
            self._begun = True
        lookup.push(token)
        if sequence.expects(token):
            return Prediction([], [])
        # The last token that is drawn need not be computed.
        most = min(sequence.max_draft, left - 1, sequence.ctx - len(sequence.tokens) - 1)
        tokens, chances = lookup.predict(most, self._sampler.forced())
        end = next((i for i, t in enumerate(tokens) if t in self._stop_ids), len(tokens))
        return Prediction(tokens[:end], chances[:end])
