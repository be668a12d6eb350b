"""Lookup decoding: drafts the next tokens from earlier text, so that a step of the model confirms several at once.

Summaries and answers repeat their documents. ``TokenIndex`` finds where the last tokens occurred before, ``Lookup`` says how
probably the tokens that followed there come next, ``draft_lengths`` how many of them are worth a try, and
``TokenSequence.step`` computes them in the step that appends the last drawn token. The sampler then draws from each position's
logits in turn, as it does without drafts: a drafted token that it draws is there already, the others are taken back. So drafts
change how long a reply takes, and nothing else.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from jambacli.engine.token_index import LONGEST, Rival, TokenIndex

# Matches are told apart by their length up to these, and by their rivals; a token that a grammar forces is the last kind.
_LENGTHS = (2, 3, 4, 6, 9, 13, 20, LONGEST)
_FORCED = len(_LENGTHS) * len(Rival)
# How often the next token is the predicted one, before anything was seen: deliberately low for short matches.
_EXPECTED_FIRST = (0.2, 0.3, 0.45, 0.6, 0.75, 0.85, 0.9, 0.93)
_WITH_RIVAL = (1.0, 0.9, 0.5)  # times these
_EXPECTED = (*(share * p for share in _WITH_RIVAL for p in _EXPECTED_FIRST), 0.9)
_WEIGHT = 3.0  # of these expectations, in tokens
_MEMORY = 0.97  # of what was seen, a token
# The kind of a match without rival by its length.
_KINDS = [next(i for i, longest in enumerate(_LENGTHS) if n <= longest) for n in range(LONGEST + 1)]


class Acceptance:
    """How often predicted tokens are drawn, by the length of the match; recent tokens count more."""

    def __init__(self) -> None:
        self._seen = [_WEIGHT] * len(_EXPECTED)
        self._drawn = [_WEIGHT * p for p in _EXPECTED]

    def record(self, kind: int, drawn: bool) -> None:
        """A token was predicted by a match of this kind, and drawn or not."""
        self._seen[kind] = self._seen[kind] * _MEMORY + 1
        self._drawn[kind] = self._drawn[kind] * _MEMORY + drawn

    def share(self, kind: int) -> float:
        """The expected share of predicted tokens that are drawn."""
        return self._drawn[kind] / self._seen[kind]


# The least cost of a further token in a larger step than any measured, as a share of the smallest: low, so that it is tried.
_FURTHER = 0.1
# Measurements are dropped after this many steps, in case they were outliers or the context has grown; few of them earlier.
_VALID, _VALID_ONE = 256, 32


class StepCosts:
    """Seconds of a step by its number of tokens, as measured, and estimated where it was not."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._until: dict[int, int] = {}
        self._counts: dict[int, int] = {}
        self._steps = 0

    def record(self, tokens: int, seconds: float) -> None:
        """A step of ``tokens`` took ``seconds``."""
        self._steps += 1
        known = self._seconds.get(tokens, seconds)
        # Others use the machine too: a step that took very long counts no more than twice.
        self._seconds[tokens] = known + 0.25 * (min(seconds, 2 * known) - known)
        self._counts[tokens] = self._counts.get(tokens, 0) + 1
        self._until[tokens] = self._steps + min(_VALID, _VALID_ONE * self._counts[tokens])
        for n in [n for n, until in self._until.items() if n > 1 and self._steps > until]:
            del self._seconds[n], self._until[n]

    @property
    def largest_tried(self) -> int:
        """The largest step to try next: larger ones would be judged by a guess."""
        return 2 * max(self._seconds, default=1 << 30)

    def seconds(self, tokens: int) -> float | None:
        """The expected time of a step of ``tokens``; None if none of so many or fewer was measured."""
        known = self._seconds
        if tokens in known:
            return known[tokens]
        fewer = [n for n in known if n < tokens]
        if not fewer:
            return None
        below = max(fewer)
        above = min((n for n in known if n > tokens), default=None)
        if above is None:
            least = min(fewer)
            slope = (known[below] - known[least]) / (below - least) if below > least else 0.0
            return known[below] + (tokens - below) * max(slope, _FURTHER * known[least])
        share = (tokens - below) / (above - below)
        return known[below] + share * (known[above] - known[below])


# Step sizes that are tried: kernels take tokens in twos, fours and eights.
_SIZES = (2, 4, 8, 12, 16, 24, 32)
# A gain below the noise is none; in a step of several sequences it is smaller, and their drafts take memory.
_GAIN, _GAIN_SHARED = 1.02, 1.1


def draft_lengths(chances: Sequence[Sequence[float]], costs: StepCosts) -> list[int]:
    """How many predicted tokens of each sequence to add to a step that appends one token to every sequence, so that the most
    tokens a second are expected.

    ``chances``: of each sequence's predicted tokens in turn, that they and those before them are drawn. ``costs``: by all
    tokens of a step.
    """
    drafted = [0] * len(chances)
    chosen, total, expected = list(drafted), len(chances), float(len(chances))
    heads = [(-row[0], 0, i) for i, row in enumerate(chances) if row]  # equal chances: by turns
    seconds = costs.seconds(total)
    if not heads or seconds is None:
        return chosen
    heapq.heapify(heads)
    best = (_GAIN if len(chances) == 1 else _GAIN_SHARED) * expected / seconds
    for size in _SIZES:
        if size > costs.largest_tried:
            break
        while total < size and heads:
            chance, _, i = heapq.heappop(heads)
            expected -= chance
            drafted[i] += 1
            total += 1
            if drafted[i] < len(chances[i]):
                heapq.heappush(heads, (-chances[i][drafted[i]], drafted[i], i))
        rate = expected / (costs.seconds(total) or seconds)
        if rate > best:
            chosen, best = list(drafted), rate
        if total < size:
            break
    return chosen


# A token that is less probable is not worth a place in any step.
_LEAST = 0.03


class Prediction(NamedTuple):
    """Tokens that may come next, and the chance of each that it and those before it are drawn."""

    tokens: list[int]
    chances: list[float]


class Lookup:
    """Predictions for one sequence: its index, and what was learned of them. Belongs to a ``TokenSequence``."""

    def __init__(self) -> None:
        self.acceptance = Acceptance()
        self.costs = StepCosts()
        self._index: TokenIndex | None = None

    @property
    def index(self) -> TokenIndex:
        """The index, made at the first use."""
        if self._index is None:
            self._index = TokenIndex()
        return self._index

    def cut(self, position: int) -> None:
        """The sequence was cut back to its first ``position`` tokens."""
        if self._index is not None:
            self._index.cut(position)

    def push(self, token: int) -> None:
        """A token was drawn; the index then holds the sequence and this token."""
        index = self.index
        kind = None if index.place is None else self._kind
        predicted = index.push(token)
        if kind is not None:
            self.acceptance.record(kind, predicted)

    def predict(self, most: int, forced: Sequence[int] = ()) -> Prediction:
        """At most ``most`` tokens that may come next, none where nothing matches. ``forced``: those that a grammar forces."""
        index = self.index
        if most < 1 or (index.place is None and not forced):
            return Prediction([], [])
        if forced:
            tokens = list(forced[:most])
            kinds = [_FORCED] * len(tokens)
        else:
            tokens = index.draft(most)
            kinds = [self._kind, *(_KINDS[min(index.matched + i, LONGEST)] for i in range(1, len(tokens)))]
        chances, likely = [], 1.0
        for kind, _ in zip(kinds, tokens, strict=False):
            likely *= self.acceptance.share(kind)
            if likely < _LEAST:
                break
            chances.append(likely)
        return Prediction(tokens[: len(chances)], chances)

    @property
    def _kind(self) -> int:
        """The kind of the match."""
        return self.index.rival * len(_LENGTHS) + _KINDS[self.index.matched]
