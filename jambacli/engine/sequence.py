"""One sequence of tokens in one state: extend it, go back in it, never compute a prefix twice. Knows nothing of text.

Keys and values are append-only, so cutting back is free; the Mamba part goes back only to a checkpoint, a copy of it at
some position. Checkpoints are taken where renderings of a conversation are known to diverge (``boundaries``) and at
fixed steps of a long prefill. ``advance`` is the one operation behind a new turn, an edit, a regeneration and a branch:
find how much of the wanted tokens is there, go to the nearest checkpoint below, replay what little lies between.
"""

from __future__ import annotations

import bisect
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from jambacli.errors import UsageError
from jambacli.runtime.cuda.memory import CHECKPOINT_BYTES

if TYPE_CHECKING:
    import torch

    from jambacli.engine.prefix_cache import Persistence
    from jambacli.model.jamba import JambaModel
    from jambacli.model.state import Checkpoint, SequenceState

# A checkpoint every so many tokens of a long prefill, wherever no boundary falls.
CHECKPOINT_STEP = 4096

#: Given how many tokens are about to be read, a context that yields "so many more are done" (see ``ui.progress``).
Reading = Callable[[int], AbstractContextManager[Callable[[int], None]]]


def silent(total: int) -> AbstractContextManager[Callable[[int], None]]:
    """A Reading that shows nothing."""
    return contextlib.nullcontext(lambda n: None)


@dataclass
class Counters:
    """What a turn cost. Times in seconds; ``reused`` tokens were neither read nor computed again."""

    reused: int = 0
    prefilled: int = 0
    prefill_seconds: float = 0.0
    decoded: int = 0
    decode_seconds: float = 0.0


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix of two token lists."""
    n = min(len(a), len(b))
    x, y = np.asarray(a[:n], dtype=np.int64), np.asarray(b[:n], dtype=np.int64)
    differ = np.flatnonzero(x != y)
    return int(differ[0]) if len(differ) else n


class TokenSequence:
    """The tokens fed to a model so far, the state they left, and checkpoints to go back to."""

    def __init__(self, model: JambaModel, ctx: int, kv_type: str = "f16", chunk: int | None = None) -> None:
        self.model = model
        self.state: SequenceState = model.new_state(ctx, kv_type)
        self.tokens: list[int] = []
        self.chunk = chunk or model.prefill_chunk
        self.counters = Counters()
        self._stored = 0
        #: Copies of the Mamba part by position, to go back to.
        self.checkpoints: dict[int, Checkpoint] = {}
        #: Logits float32 [vocab] after some of those positions: being exactly there again then costs nothing.
        self.known: dict[int, np.ndarray] = {}
        #: Where prefixes are kept between processes, None for nowhere.
        self.persistence: Persistence | None = None
        self.logits: np.ndarray | None = None  # float32 [vocab] after the last token, None when not known

    @property
    def ctx(self) -> int:
        """The most tokens this sequence may hold."""
        return self.state.ctx

    @property
    def sound(self) -> bool:
        """Whether the state stands where the tokens end; not after an interruption, until it is rewound."""
        return not self.state.interrupted and self.state.position == len(self.tokens)

    @property
    def positions(self) -> list[int]:
        """Where checkpoints are, ascending."""
        return sorted(self.checkpoints)

    def advance(
        self,
        ids: Sequence[int],
        boundaries: Iterable[int] = (),
        reading: Reading = silent,
        reserve: int = 0,
    ) -> np.ndarray:
        """Make the sequence exactly ``ids`` and return the logits after it, float32 [vocab].

        Only what follows the longest usable common prefix is computed; ``boundaries`` are positions at which to leave
        a checkpoint. ``reading`` shows progress. Raises UsageError for no tokens, ContextFullError
        when they and ``reserve`` more do not fit (the sequence is unchanged then).
        """
        if not ids:
            raise UsageError("there are no tokens to read: the prompt is empty")
        self._check_fits(len(ids), reserve)
        start = self.rewind(common_prefix(self.tokens, ids), allow_end=len(ids))
        if self.persistence is not None and start < len(ids):
            self.persistence.load_longest(self, ids, start)
            start = len(self.tokens)
        self.counters.reused += start
        if start < len(ids):
            with reading(len(ids) - start) as progress:
                try:
                    self._prefill(ids, start, sorted(set(boundaries)), progress)
                except BaseException:
                    # Interrupted, a long read is kept up to its last checkpoint: it need not be begun again.
                    if self.persistence is not None and self.checkpoints:
                        self.persistence.commit(self)
                    raise
        assert self.logits is not None
        return self.logits

    def rewind(self, position: int, *, allow_end: int | None = None) -> int:
        """Go back to the nearest usable point at or before ``position`` and return it.

        ``allow_end``: the length of what is wanted. Being exactly there is only useful with known logits.
        """
        if self.sound and position == len(self.tokens) and (position != allow_end or self.logits is not None):
            return position
        usable = [
            p
            for p, checkpoint in self.checkpoints.items()
            if p <= position and (p != allow_end or p in self.known) and self.state.restorable(checkpoint)
        ]
        at = max(usable, default=0)
        if at:
            self.state.restore(self.checkpoints[at])
        else:
            self.state.reset()
        del self.tokens[at:]
        # What lies beyond belongs to tokens that are forgotten.
        self.checkpoints = {p: c for p, c in self.checkpoints.items() if p <= at}
        self.known = {p: x for p, x in self.known.items() if p <= at}
        self.logits = self.known.get(at)
        if self.persistence is not None:
            self.persistence.truncated(at)
        return at

    def adopt(self, tokens: list[int], checkpoint: Checkpoint, logits: np.ndarray | None) -> None:
        """The state has been loaded from elsewhere and now stands at ``checkpoint``, after ``tokens``."""
        self.tokens = tokens
        self.checkpoints = {checkpoint.position: checkpoint}
        self.known = {} if logits is None else {checkpoint.position: logits}
        self.logits = logits

    def reset(self) -> None:
        """Back to no tokens at all."""
        self.state.reset()
        self.tokens, self.checkpoints, self.known, self.logits = [], {}, {}, None
        if self.persistence is not None:
            self.persistence.truncated(0)

    def checkpoint(self) -> None:
        """Leave a checkpoint here; the ones that say least are thinned out when they exceed their budget."""
        at = self.state.position
        if at and at not in self.checkpoints:
            self.checkpoints[at] = self.state.snapshot()
            self._thin()
        if at and self.logits is not None:
            self.known[at] = self.logits

    def step(self, token: int) -> np.ndarray:
        """Append one token and return the logits after it, float32 [vocab] (on a card, ``CardLogits``, awaited later)."""
        import torch

        start = time.perf_counter()
        self._check_fits(len(self.tokens) + 1)
        logits = self.model.forward(torch.tensor([token]), self.state, logits="last")
        assert logits is not None
        self.tokens.append(token)
        self.logits = self._from_card(logits[0]) if logits.is_cuda else logits[0].numpy()
        self.counters.decoded += 1
        self.counters.decode_seconds += time.perf_counter() - start
        return self.logits

    def _from_card(self, logits: torch.Tensor) -> np.ndarray:
        from jambacli.engine.gpu_sampling import CardLogits

        counters = self.counters

        def waited(seconds: float) -> None:
            counters.decode_seconds += seconds

        return cast("np.ndarray", CardLogits(logits, waited))

    def _check_fits(self, n: int, reserve: int = 0) -> None:
        from jambacli.model.state import ContextFullError

        if n + reserve > self.ctx:
            raise ContextFullError(f"{n:,} tokens do not fit in the context of {self.ctx:,}; use a larger --ctx")

    def _prefill(self, ids: Sequence[int], start: int, boundaries: list[int], progress: Callable[[int], None]) -> None:
        import torch

        began = time.perf_counter()
        self._stored = start
        self.logits = None
        wanted = torch.tensor(ids, dtype=torch.int64)
        at = start
        while at < len(ids):
            stop = min(at + self.chunk, len(ids))
            after = bisect.bisect_right(boundaries, at)
            if after < len(boundaries) and boundaries[after] < stop:
                stop = boundaries[after]
            last = stop == len(ids)
            logits = self.model.forward(wanted[at:stop], self.state, logits="last" if last else "none")
            self.tokens += ids[at:stop]
            self.counters.prefilled += stop - at
            if stop in boundaries or (stop - max(self.checkpoints, default=0) >= CHECKPOINT_STEP):
                self.checkpoint()
                if self.persistence is not None and stop - self._stored >= CHECKPOINT_STEP:
                    # A long read is kept as it goes: interrupted, it need not be begun again.
                    self.persistence.commit(self, durable=False)
                    self._stored = stop
            progress(stop - at)
            at = stop
        assert logits is not None
        self.logits = logits[0].cpu().numpy()
        if len(ids) in self.checkpoints:
            self.known[len(ids)] = self.logits
        self.counters.prefill_seconds += time.perf_counter() - began

    def _thin(self) -> None:
        """Drop checkpoints until they fit the budget: the one whose loss costs the fewest replayed tokens goes first.

        The newest two always stay: they are what a regeneration and an edit of the last message go back to.
        """
        while len(self.checkpoints) > 3 and sum(c.nbytes for c in self.checkpoints.values()) > CHECKPOINT_BYTES:
            at = self.positions
            gaps = {at[i]: at[i + 1] - (at[i - 1] if i else 0) for i in range(len(at) - 2)}
            least = min(gaps, key=lambda p: gaps[p])
            del self.checkpoints[least]
            self.known.pop(least, None)
