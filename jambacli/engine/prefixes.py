"""Prefixes of token sequences: how long two have one in common, where reading stops in it, and what stores it."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from jambacli.cache.stored_prefix import StoredPrefix
    from jambacli.engine.sampling import Logits
    from jambacli.model.state import Checkpoint, SequenceState


@dataclass(frozen=True)
class SequenceContent:
    """What a sequence holds, to be stored; valid until the sequence changes.

    ``checkpoints`` and ``logits`` (float32 [vocab]) are by position; ``state`` gives the keys and values.
    """

    tokens: list[int]
    state: SequenceState
    checkpoints: dict[int, Checkpoint]
    logits: dict[int, Logits]


class Prefixes(Protocol):
    """Where a sequence stores its prefixes and finds those of others; see ``engine.prefix_cache``."""

    def find(self, tokens: Sequence[int], above: int) -> Iterator[StoredPrefix]:
        """The stored prefixes of ``tokens`` longer than ``above``, longest first."""

    def restored(self, prefix: StoredPrefix) -> None:
        """The sequence now holds exactly this prefix."""

    def drop(self, prefix: StoredPrefix) -> None:
        """This prefix is damaged."""

    def truncate(self, position: int) -> None:
        """The sequence was cut back to ``position``."""

    def commit(self, content: SequenceContent, *, durable: bool = True) -> None:
        """Store the content; returns once it is copied."""


def common_prefix(a: Sequence[int] | np.ndarray, b: Sequence[int] | np.ndarray) -> int:
    """Length of the longest common prefix of two lists or arrays of tokens."""
    n = min(len(a), len(b))
    x, y = np.asarray(a[:n], dtype=np.int64), np.asarray(b[:n], dtype=np.int64)
    differ = np.flatnonzero(x != y)
    return int(differ[0]) if len(differ) else n


def next_stop(at: int, end: int, boundaries: Sequence[int], chunk: int) -> int:
    """Where a pass of a prefill from ``at`` to ``end`` stops: after ``chunk`` tokens, or before at one of the ascending
    ``boundaries``."""
    stop = min(at + chunk, end)
    after = bisect.bisect_right(boundaries, at)
    return min(stop, boundaries[after]) if after < len(boundaries) else stop
