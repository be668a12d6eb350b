"""Where the last tokens of a sequence occurred before, and what followed there. Knows nothing of models and states."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

#: Most tokens of text that an index holds, 12 bytes each.
MAX_INDEXED = 1 << 19

#: A match is measured up to this length.
LONGEST = 32

# Runs of this many last tokens are looked up, the longest first. A run's later occurrences are tried first, and no more than
# this many of them.
_RUNS = (4, 2)
_CANDIDATES = 32
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


class Rival(IntEnum):
    """How well an occurrence matches after which another token followed than after the best match."""

    NONE = 0
    SHORTER = 1
    EQUAL = 2


class TokenIndex:
    """Where runs of tokens occur in the text of a sequence so far, including what has been replaced in it.

    The text only grows; a hash table for each of ``_RUNS`` links the places of equal runs, the last first. ``follow`` and
    ``cut`` keep it to a sequence, ``push`` adds a token. ``place`` is where the longest known match continues, None without
    one, ``matched`` its length, and ``rival`` what else was found with it.
    """

    def __init__(self) -> None:
        self.place: int | None = None
        self.matched = 0
        self.rival = Rival.NONE
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
            self.place, self.matched, self.rival = place + 1, min(self.matched + 1, LONGEST), Rival.NONE
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
        # The place after the last one of each hash, or 0: zeros take no time and memory until they are used.
        self._last = [np.zeros(1 << _BITS, dtype=np.int32) for _ in _RUNS]
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
            earlier[at] = last[bucket] - 1
            last[bucket] = at + 1

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
        before[first] = self._last[i][buckets[first]] - 1
        self._earlier[i][places] = before
        last = np.r_[first[1:], True]
        self._last[i][buckets[last]] = places[last] + 1

    def _search(self) -> None:
        """Find the longest earlier occurrence of the last tokens; of equal ones the one with the more frequent continuation."""
        text, end = self._text_view, self._length - 1
        self.place, self.matched, self.rival = None, 0, Rival.NONE
        for run, earlier in zip(_RUNS, self._earlier_views, strict=True):
            if end < run:
                continue
            # For each token that followed: the longest match before it, the latest place of one so long, how often it did.
            following: dict[int, tuple[int, int, int]] = {}
            at = earlier[end]
            for _ in range(_CANDIDATES):
                if at < 0:
                    break
                length, most = 0, min(LONGEST, at + 1)
                while length < most and text[at - length] == text[end - length] != _BREAK:
                    length += 1
                follows = text[at + 1]
                if length >= _RUNS[-1] and follows != _BREAK:
                    longest, place, times = following.get(follows, (0, 0, 0))
                    if length > longest:
                        longest, place = length, at + 1
                    following[follows] = longest, place, times + 1
                    if length == LONGEST:
                        break
                at = earlier[at]
            if following:
                # The longest match; of equal ones the token that followed most often.
                best = max(following, key=lambda token: (following[token][0], following[token][2]))
                self.matched, self.place, _ = following.pop(best)
                longest = max((length for length, _, _ in following.values()), default=0)
                self.rival = Rival((longest > 0) + (longest == self.matched))
                return
