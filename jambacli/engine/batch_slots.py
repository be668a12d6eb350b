"""The places of a BatchEngine, and which of their sequences a prompt can go on from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jambacli.engine.batch_job import Job
from jambacli.engine.drafted_steps import DraftedSteps
from jambacli.engine.logprobs import SCORED_CHUNK
from jambacli.engine.prefixes import common_prefix
from jambacli.engine.sequence import TokenSequence

if TYPE_CHECKING:
    from jambacli.engine.prefix_cache import PrefixCache


class Slot:
    """A place for one running request: a sequence, which keeps its content when the request has ended."""

    def __init__(self, sequence: TokenSequence, cache: PrefixCache | None) -> None:
        self.sequence = sequence
        self.cache = cache
        self.job: Job | None = None
        self.boundaries: list[int] = []
        # Drafts of its reply, from its first token on.
        self.drafted: DraftedSteps | None = None
        self.last_used = 0
        # The tokens that the sequence holds or will hold, and where reading them stops.
        self.array = np.empty(0, dtype=np.int64)
        self.stops: list[int] = []

    def replace(self, sequence: TokenSequence, cache: PrefixCache | None) -> None:
        """Drop the content for a new sequence, which belongs to other adapters."""
        if self.cache is not None:
            self.cache.close()
        self.sequence, self.cache = sequence, cache
        self.array, self.stops = np.empty(0, dtype=np.int64), []

    def fits(self, job: Job) -> bool:
        """Whether the content belongs to the adapters of the job."""
        return job.adapters is None or self.sequence.state.adapters.key == job.adapters.key

    @property
    def reading(self) -> bool:
        """Whether its request's prompt is being read."""
        return self.job is not None and self.job.phase == "reading"

    @property
    def answering(self) -> bool:
        """Whether its request's reply is being generated."""
        return self.job is not None and self.job.phase == "answering"

    def next_stop(self) -> int:
        """Where the next pass over its request's prompt stops."""
        stop = self.sequence.next_stop(len(self.array), self.boundaries)
        scored = self.job is not None and self.job.request.prompt_logprobs
        return min(stop, len(self.sequence.tokens) + SCORED_CHUNK) if scored else stop


class Slots:
    """Up to ``most`` slots, opened when they are needed."""

    def __init__(self, most: int, exact: bool, open_slot: Callable[[], Slot]) -> None:
        """``exact``: see BatchEngine."""
        self._most, self._exact, self._open = most, exact, open_slot
        self._slots: list[Slot] = []

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    @property
    def all_taken(self) -> bool:
        """Whether no further request can start."""
        return len(self._slots) >= self._most and all(slot.job is not None for slot in self._slots)

    def shared(self, slot: Slot, job: Job) -> int:
        """The last position in the prompt that reading the slot's stops at; if exact, after the same stops before it."""
        if not slot.fits(job):
            return 0
        common, shared = common_prefix(slot.array, job.array), 0
        for i, stop in enumerate(slot.stops):
            if stop > common or (self._exact and job.stops[i : i + 1] != [stop]):
                break
            # Logits after the whole prompt are only computed where reading ends.
            if stop < len(job.ids) or stop == slot.stops[-1]:
                shared = stop
        return shared

    def longest_prefix(self, job: Job) -> tuple[Slot | None, int]:
        """The sequence with the longest prefix of the prompt to go on from now, and its length."""
        best: tuple[Slot | None, int] = (None, 0)
        for slot in self:
            if not slot.fits(job):
                continue
            sequence, exact = slot.sequence, self.shared(slot, job)
            most = exact if self._exact else common_prefix(slot.array, job.array)
            state, here = sequence.state, len(sequence.tokens)
            usable = [
                p
                for p, checkpoint in sequence.checkpoints.items()
                if p <= most and state.restorable(checkpoint) and (p < len(job.ids) or p in sequence.known_logits)
            ]
            # Where the sequence stands now, a checkpoint can still be taken.
            if here <= most and sequence.consistent and (here < len(job.ids) or sequence.logits is not None):
                usable.append(here)
            longest = max(usable, default=0)
            if longest > best[1]:
                best = slot, longest
        return best

    def awaited_prefix(self, job: Job, now: int) -> tuple[Slot, int] | None:
        """A sequence that is reading a longer prefix of the prompt than ``now``, and the position to wait for."""
        best: tuple[Slot, int] | None = None
        for slot in self:
            shared = self.shared(slot, job) if slot.reading else 0
            if shared > max(len(slot.sequence.tokens), best[1] if best else now):
                best = slot, shared
        return best

    def choose(self, job: Job, source: Slot | None, now: int, ahead: Sequence[Job]) -> Slot:
        """The free slot whose content is of least use to the requests that wait; the source itself if that costs nothing: if
        nobody waits for more of it, and most of it is kept."""
        free = [slot for slot in self if slot.job is None]
        others = [other for other in ahead if other is not job and other.phase == "waiting"]

        def use(slot: Slot) -> tuple[int, int]:
            longest = max((self.shared(slot, other) for other in others), default=0)
            return longest, slot.last_used

        # Otherwise a short request that begins like a long conversation would overwrite it.
        if source in free and source is not None and use(source)[0] <= now and len(source.array) <= 2 * now:
            return source
        if len(self._slots) < self._most:
            self._slots.append(self._open())
            return self._slots[-1]
        return min(free, key=use)
