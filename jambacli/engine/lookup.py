"""Lookup decoding: drafts the next tokens from earlier text, so that a step of the model confirms several at once.

Summaries and answers repeat their documents. ``TokenIndex`` finds where the last tokens occurred before, ``Lookup`` decides how
many of the tokens that followed there are worth a try, and ``TokenSequence.step`` computes them in the step that appends the
last drawn token. The sampler then draws from each position's logits in turn, as it does without drafts: a drafted token that
it draws is there already, the others are taken back. So drafts change how long a reply takes, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Most tokens of text that an index holds, 12 bytes each.
MAX_INDEXED = 1 << 19

# Runs of this many last tokens are looked up, the longest first. A run's later occurrences are tried first, and no more than
# this many of them; a match is measured up to this length.
_RUNS = (4, 2)
_CANDIDATES = 16
_LONGEST = 32
# Buckets of the hash tables, as a power of two.
_BITS = 18
_MULTIPLIER = 0x9E3779B1
_MASK = 0xFFFFFFFF
# The hash of a run is the sum of its tokens times these: for each length of run, powers of the multiplier.
_FACTORS = tuple((run, tuple(pow(_MULTIPLIER, run - 1 - i, _MASK + 1) for i in range(run))) for run in _RUNS)
# Separates texts that do not follow one another. It equals no token.
_BREAK = -1
# After a jump to other text, this many of its tokens before the new ones are indexed again, to be matched with.
_CONTEXT = 32


class TokenIndex:
    """Where runs of tokens occur in the text of a sequence so far, including what has been replaced in it.

    The text only grows; a hash table for each of ``_RUNS`` links the places of equal runs, the last first. ``follow`` and
    ``cut`` keep it to a sequence, ``push`` adds a token. ``place`` is where the longest known match continues, None without
    one, and ``matched`` its length.
    """

    def __init__(self) -> None:
        self.place: int | None = None
        self.matched = 0
        self._length = 0
        # The tokens of the sequence that are in the text: its end is these, unless the sequence was cut back.
        self._covered = 0
        self._broken = False
        self._allocate(1024)

    def __len__(self) -> int:
        """Tokens of text, with breaks."""
        return self._length

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(a.nbytes for a in (self._text, *self._earlier, *self._last))

    def cut(self, position: int) -> None:
        """The sequence was cut back to its first ``position`` tokens."""
        if position < self._covered:
            self._covered, self._broken = position, True

    def follow(self, tokens: Sequence[int]) -> None:
        """Add what the sequence, now ``tokens``, holds beyond the tokens that were added or cut before."""
        self.cut(len(tokens))
        if not self._broken and self._covered == len(tokens):
            return
        new = len(tokens) - self._covered
        context = min(self._covered, _CONTEXT) if self._broken else 0
        if self._length + context + new >= MAX_INDEXED:  # start over, with the sequence alone
            self._length, context, new = 0, 0, min(len(tokens), MAX_INDEXED // 2)
            self._allocate(new)
        elif self._broken and self._length:
            self._extend([_BREAK])
        self._extend(tokens[len(tokens) - new - context :])
        self._covered, self._broken = len(tokens), False
        self._search()

    def push(self, token: int) -> bool:
        """Add one token to the text and the sequence; returns whether the match predicted it."""
        if self._length >= MAX_INDEXED:
            self._forget_half()
        place = self.place
        predicted = place is not None and self._text_view[place] == token
        self._extend([token])
        self._covered += 1
        if predicted:
            assert place is not None
            self.place, self.matched = place + 1, min(self.matched + 1, _LONGEST)
        else:
            self._search()
        return predicted

    def draft(self, most: int) -> list[int]:
        """Up to ``most`` tokens that followed the match."""
        drafted: list[int] = []
        if self.place is None:
            return drafted
        text, end = self._text_view, self._length
        for at in range(self.place, self.place + most):
            # Beyond the end of the text a repetition continues with its own tokens.
            token = text[at] if at < end else drafted[at - end]
            if token == _BREAK:
                break
            drafted.append(token)
        return drafted

    def _allocate(self, tokens: int) -> None:
        """Empty tables, with room for ``tokens``."""
        self._text = np.empty(tokens, dtype=np.int32)
        self._earlier = [np.empty(tokens, dtype=np.int32) for _ in _RUNS]  # the place before with the same hash, or -1
        self._last = [np.full(1 << _BITS, -1, dtype=np.int32) for _ in _RUNS]  # the last place of each hash, or -1
        self._see()

    def _see(self) -> None:
        # Single elements of a memoryview take a third of the time of an array's.
        self._text_view = self._text.data
        self._earlier_views = [a.data for a in self._earlier]
        self._last_views = [a.data for a in self._last]

    def _forget_half(self) -> None:
        """Keep the later half of the text."""
        kept = self._text[self._length - MAX_INDEXED // 2 : self._length].copy()
        self._length = 0
        self._allocate(len(kept))
        self._extend(kept)
        self._search()

    def _extend(self, tokens: Sequence[int] | np.ndarray) -> None:
        start, end = self._length, self._length + len(tokens)
        if end > len(self._text):
            grown = max(end, 2 * len(self._text))
            for name in ("_text", "_earlier"):
                old = getattr(self, name)
                arrays = [np.empty(grown, dtype=np.int32) for _ in (old if isinstance(old, list) else [old])]
                for new, was in zip(arrays, old if isinstance(old, list) else [old], strict=True):
                    new[:start] = was[:start]
                setattr(self, name, arrays if isinstance(old, list) else arrays[0])
            self._see()
        self._length = end
        if end - start == 1:
            self._text_view[start] = int(tokens[0])
            self._link_last()
            return
        self._text[start:end] = tokens
        for i, run in enumerate(_RUNS):
            self._link(i, run, max(start, run - 1), end)

    def _link_last(self) -> None:
        """Enter the runs that end with the last token."""
        text, at = self._text_view, self._length - 1
        for (run, factors), earlier, last in zip(_FACTORS, self._earlier_views, self._last_views, strict=True):
            if at < run - 1:
                continue
            value = 0
            for token, factor in zip(text[at - run + 1 : at + 1], factors, strict=True):
                value += (token + 2) * factor
            bucket = (value & _MASK) >> 32 - _BITS
            earlier[at] = last[bucket]
            last[bucket] = at

    def _link(self, i: int, run: int, start: int, end: int) -> None:
        """Enter the runs that end at the tokens ``start:end``."""
        if start >= end:
            return
        values = np.zeros(end - start, dtype=np.uint32)
        for back, factor in enumerate(reversed(_FACTORS[i][1])):
            values += (self._text[start - back : end - back].view(np.uint32) + np.uint32(2)) * np.uint32(factor)
        buckets = (values >> np.uint32(32 - _BITS)).astype(np.int64)
        # Sorted by bucket and then by place, the element before is the place before.
        ordered = np.sort(buckets << 32 | np.arange(start, end))
        buckets, places = ordered >> 32, (ordered & _MASK).astype(np.int32)
        first = np.r_[True, buckets[1:] != buckets[:-1]]
        before = np.r_[np.int32(-1), places[:-1]]
        before[first] = self._last[i][buckets[first]]
        self._earlier[i][places] = before
        self._last[i][buckets[np.r_[first[1:], True]]] = places[np.r_[first[1:], True]]

    def _search(self) -> None:
        """Find the longest earlier occurrence of the last tokens; the latest of equal ones."""
        text, end = self._text_view, self._length - 1
        self.place, self.matched = None, 0
        for run, earlier in zip(_RUNS, self._earlier_views, strict=True):
            if end < run:
                continue
            at = earlier[end]
            for _ in range(_CANDIDATES):
                if at < 0:
                    break
                length, most = 0, min(_LONGEST, at + 1)
                while length < most and text[at - length] == text[end - length] != _BREAK:
                    length += 1
                if length > self.matched and length >= _RUNS[-1]:
                    self.place, self.matched = at + 1, length
                    if length == _LONGEST:
                        return
                at = earlier[at]
            if self.place is not None:
                return


# Matches are told apart by their length up to these; a token that a grammar forces is the last kind.
_LENGTHS = (2, 3, 4, 6, 9, 13, 20, _LONGEST)
_FORCED = len(_LENGTHS)
# How often the next token is the predicted one, before anything was seen: deliberately low for short matches.
_EXPECTED = (0.2, 0.3, 0.45, 0.6, 0.75, 0.85, 0.9, 0.93, 0.9)
_WEIGHT = 3.0  # of these expectations, in tokens
_MEMORY = 0.97  # of what was seen, a token
# The kind of a match by its length.
_KINDS = [next(i for i, longest in enumerate(_LENGTHS) if n <= longest) for n in range(_LONGEST + 1)]


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


# The cost of a further token in a step before any was measured, as a share of a step of one token: low, so that it is tried.
_FURTHER = 0.1
# A measurement is dropped after this many steps, in case it was an outlier or the context has grown.
_VALID = 256


class StepCosts:
    """Seconds of a step by its number of tokens, as measured, and estimated where it was not."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._when: dict[int, int] = {}
        self._steps = 0

    def record(self, tokens: int, seconds: float) -> None:
        """A step of ``tokens`` took ``seconds``."""
        self._steps += 1
        known = self._seconds.get(tokens, seconds)
        # Others use the machine too: a step that took very long counts no more than twice.
        self._seconds[tokens] = known + 0.25 * (min(seconds, 2 * known) - known)
        self._when[tokens] = self._steps
        for n in [n for n, when in self._when.items() if n > 1 and self._steps - when > _VALID]:
            del self._seconds[n], self._when[n]

    def seconds(self, tokens: int) -> float | None:
        """The expected time of a step of ``tokens``; None as long as no single token was measured."""
        known = self._seconds
        one = known.get(1)
        if one is None or tokens in known:
            return known.get(tokens) if one is not None else None
        below = max(n for n in known if n < tokens)
        above = min((n for n in known if n > tokens), default=None)
        if above is None:
            return known[below] + (tokens - below) * _FURTHER * one
        share = (tokens - below) / (above - below)
        return known[below] + share * (known[above] - known[below])


class Lookup:
    """Drafts for one sequence: its index, and what was learned of its drafts. Belongs to a ``TokenSequence``."""

    # Step sizes that are tried: kernels take tokens in twos, fours and eights.
    _SIZES = (2, 4, 8, 12, 16)

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
        kind = None if index.place is None else _KINDS[index.matched]
        predicted = index.push(token)
        if kind is not None:
            self.acceptance.record(kind, predicted)

    def draft(self, most: int, forced: Sequence[int] = ()) -> list[int]:
        """At most ``most`` tokens that probably come next, as many as are expected to save time; often none.

        ``forced``: the tokens that a grammar forces, if any.
        """
        index = self.index
        if most < 1 or (index.place is None and not forced):
            return []
        one = self.costs.seconds(1)
        if one is None:
            return []
        kinds = [_FORCED] * len(forced) if forced else [_KINDS[min(index.matched + i, _LONGEST)] for i in range(most)]
        chosen, best = 0, 1.02 / one  # a gain below the noise is none
        expected, likely, counted = 1.0, 1.0, 0
        for size in self._SIZES:
            drafted = min(size - 1, most, len(kinds))
            for kind in kinds[counted:drafted]:
                likely *= self.acceptance.share(kind)
                expected += likely
            counted = drafted
            rate = expected / (self.costs.seconds(drafted + 1) or one)
            if rate > best:
                chosen, best = drafted, rate
            if drafted < size - 1:
                break
        return list(forced[:chosen]) if forced else index.draft(chosen)
