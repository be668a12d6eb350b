"""Which checkpoints of a sequence to keep where memory is limited."""

from __future__ import annotations

from collections.abc import Mapping

#: Checkpoints that are kept whatever the budget: the newest two and one to go back to.
KEPT_CHECKPOINTS = 3


def superfluous(sizes: Mapping[int, int], budget: int) -> list[int]:
    """The positions of checkpoints to drop until the others fit the ``budget``, first the one whose loss costs the fewest
    tokens to compute again. ``sizes``: bytes by position.

    The newest two are always kept: a regeneration and an edit of the last message go back to them.
    """
    at, total, dropped = sorted(sizes), sum(sizes.values()), list[int]()
    while len(at) > KEPT_CHECKPOINTS and total > budget:
        gaps = {i: at[i + 1] - (at[i - 1] if i else 0) for i in range(len(at) - 2)}
        least = at.pop(min(gaps, key=lambda i: gaps[i]))
        total -= sizes[least]
        dropped.append(least)
    return dropped
