"""What the turns of a sequence cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """What a turn cost. Times in seconds; ``reused`` tokens were in the state already or restored from the store.

    ``decoded`` tokens were appended in ``steps`` passes. ``drafted`` tokens were computed ahead, ``accepted`` of them drawn.
    """

    reused: int = 0
    prefilled: int = 0
    prefill_seconds: float = 0.0
    decoded: int = 0
    decode_seconds: float = 0.0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
