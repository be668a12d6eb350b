"""Says in the log where a prompt departs from an earlier one, because everything after that has to be read again."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jambacli.engine.prefixes import common_prefix

if TYPE_CHECKING:
    from jambacli.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# Prompts remembered; the fewest equal tokens that count as the same conversation; the fewest that are worth a line when they
# are lost; tokens shown of each text.
_PROMPTS, _EQUAL, _LOST, _SHOWN = 16, 32, 64, 12


class PrefixBreaks:
    """The last prompts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._prompts: deque[np.ndarray] = deque(maxlen=_PROMPTS)

    def note(self, ids: Sequence[int]) -> str | None:
        """Remember a prompt. Returns, and logs, where it departs from the most similar earlier one; None if it continues
        that one, or resembles none."""
        prompt = np.asarray(ids, dtype=np.int64)
        shared = [(common_prefix(earlier, prompt), earlier) for earlier in self._prompts]
        self._prompts.append(prompt)
        at, earlier = max(shared, key=lambda pair: pair[0], default=(0, prompt))
        # Another question after the same text loses little.
        if at < _EQUAL or len(earlier) - at < _LOST or at == len(prompt):
            return None
        old, new = (self._text(part[at : at + _SHOWN].tolist()) for part in (earlier, prompt))
        message = (
            f"a prompt is the same as an earlier one for {at:,} of {len(earlier):,} tokens: {old!r} became {new!r}"
        )
        logger.info("%s", message)
        return message

    def _text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, markers=True)
