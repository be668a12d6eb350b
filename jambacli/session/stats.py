"""The statistics of one reply."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jambacli.engine.counters import Counters
    from jambacli.engine.generate import Generated


logger = logging.getLogger(__name__)


@dataclass
class Stats:
    """The statistics of one reply, in seconds and tokens. ``first_token_seconds`` counts from the call to the first text.

    ``document_tokens``: the tokens up to the end of the documents; ``replayed_document_tokens`` of them were prefilled.
    ``decoded_tokens`` were appended in ``decode_steps``. ``drafted_tokens`` came from earlier text; ``accepted_tokens`` of them
    were drawn.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    prefilled_tokens: int = 0
    prefill_seconds: float = 0.0
    generated_tokens: int = 0
    decode_seconds: float = 0.0
    decoded_tokens: int = 0
    decode_steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    first_token_seconds: float = 0.0
    finish: str = ""
    document_tokens: int = 0
    replayed_document_tokens: int = 0

    def end(self, counters: Counters, result: Generated, before: int) -> None:
        """Copy the statistics of a finished reply; its first ``before`` tokens were generated earlier."""
        self.reused_tokens = counters.reused
        self.prefilled_tokens = counters.prefilled
        self.prefill_seconds = counters.prefill_seconds
        self.replayed_document_tokens = max(0, min(counters.prefilled, self.document_tokens - counters.reused))
        self.generated_tokens = len(result.ids) - before
        self.decoded_tokens = counters.decoded
        self.decode_seconds = counters.decode_seconds
        self.decode_steps = counters.steps
        self.drafted_tokens = counters.drafted
        self.accepted_tokens = counters.accepted
        self.finish = result.finish
        logger.debug(
            "prompt of %d tokens: %d reused, %d read in %.2f s; %d written in %.2f s, end: %s",
            self.prompt_tokens, self.reused_tokens, self.prefilled_tokens, self.prefill_seconds,
            self.generated_tokens, self.decode_seconds, self.finish,
        )  # fmt: skip
