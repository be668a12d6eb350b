"""One sequence of tokens and the resulting state: extend it, go back in it, and never compute a prefix twice.

Keys and values are append-only, so cutting them back is free. The Mamba part of the state goes back only to a checkpoint, a
copy of it at some position. Checkpoints are taken where renderings of a conversation are known to diverge
(``boundaries``) and at fixed steps of a long prefill. ``advance`` is the one operation behind a new turn, an edit, a
regeneration and a branch: find how many of the tokens the sequence already holds, go back to the nearest checkpoint at or
before that position, prefill the rest.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from jambacli.cache.stored_prefix import DamagedPrefixError
from jambacli.engine.checkpoints import superfluous
from jambacli.engine.counters import Counters
from jambacli.engine.lookup import Lookup
from jambacli.engine.prefixes import Prefixes, SequenceContent, common_prefix, next_stop
from jambacli.errors import UsageError
from jambacli.interrupts import Stop, StoppedError, interrupts_held
from jambacli.model.config import CHECKPOINT_BYTES, MAX_DRAFT
from jambacli.progress import Progress, no_progress

if TYPE_CHECKING:
    import torch

    from jambacli.cache.stored_prefix import StoredPrefix
    from jambacli.engine.sampling import Logits
    from jambacli.model.jamba import JambaModel
    from jambacli.model.lora import AdapterSet
    from jambacli.model.state import Checkpoint, SequenceState

# Tokens of a long prefill between two checkpoints, where no boundary falls.
CHECKPOINT_STEP = 4096
# Passes of this many tokens can be abandoned in between; a copy of the Mamba part is small beside them.
_LONG_PASS = 64


class TokenSequence:
    """The tokens fed to a model so far, the resulting state, and checkpoints to go back to."""

    def __init__(
        self,
        model: JambaModel,
        ctx: int,
        kv_type: str = "f16",
        chunk: int | None = None,
        *,
        precise: bool | None = None,
        adapters: AdapterSet | None = None,
    ) -> None:
        """``ctx``: maximum number of tokens. ``chunk``: tokens of one prefill pass. ``precise``: the mode of decode, and
        ``adapters``, by default the model's."""
        self.model = model
        self._state: SequenceState = model.new_state(ctx, kv_type, precise=precise, adapters=adapters)
        self.tokens: list[int] = []
        self.chunk = chunk or model.prefill_chunk
        self.counters = Counters()
        #: Copies of the Mamba part by position.
        self.checkpoints: dict[int, Checkpoint] = {}
        #: Logits float32 [vocab] at some of those positions: going back exactly there then needs no computation.
        self.known_logits: dict[int, Logits] = {}
        #: The store of prefixes between processes, None without one.
        self.prefixes: Prefixes | None = None
        #: Logits float32 [vocab] after the last token, None when not known.
        self.logits: Logits | None = None
        #: Bytes of checkpoints to keep, None for ``CHECKPOINT_BYTES``.
        self.checkpoint_bytes: int | None = None
        #: Finds drafts in the text so far; see ``drafted_steps``.
        self.lookup = Lookup()
        # Drafted tokens that the state includes beyond ``tokens``, each with the logits after it.
        self._ahead: deque[tuple[int, torch.Tensor]] = deque()
        self._committed = 0

    @property
    def state(self) -> SequenceState:
        """The state after exactly ``tokens``: drafted tokens that have not been drawn are taken back."""
        if self._ahead:
            # Cleared first: interrupted in between, the state has another position than the tokens and is not consistent.
            drafted = len(self._ahead)
            self._ahead.clear()
            start = time.perf_counter()
            self._state.retract(drafted)
            self.counters.decode_seconds += time.perf_counter() - start
        return self._state

    @property
    def ctx(self) -> int:
        """Maximum number of tokens in this sequence."""
        return self._state.ctx

    @property
    def consistent(self) -> bool:
        """Whether the state matches the tokens; False after an interrupted pass, until ``rewind``."""
        return not self.state.interrupted and self.state.position == len(self.tokens)

    @property
    def positions(self) -> list[int]:
        """The positions of the checkpoints, ascending."""
        return sorted(self.checkpoints)

    @property
    def content(self) -> SequenceContent:
        """What the sequence holds, to be stored."""
        return SequenceContent(self.tokens, self.state, self.checkpoints, self.known_logits)

    def advance(
        self,
        ids: Sequence[int],
        boundaries: Iterable[int] = (),
        progress: Progress = no_progress,
        reserve: int = 0,
        stop: Stop | None = None,
    ) -> Logits:
        """Make the sequence exactly ``ids`` and return the logits after it, float32 [vocab].

        Only what follows the longest usable common prefix, in the sequence or the store, is computed. ``boundaries`` are
        positions at which to take a checkpoint. ``stop``: once it is asked, what was read is kept and stored, the piece in
        hand is abandoned, and StoppedError raised; a Ctrl-C does the same. Raises UsageError for no tokens,
        ContextFullError when they and ``reserve`` more do not fit (the sequence is unchanged then).
        """
        with interrupts_held():
            start = self.prepare(ids, reserve)
        if start < len(ids):
            with progress("Reading", len(ids) - start, "tokens") as advance:
                try:
                    self._prefill(ids, sorted(set(boundaries)), advance, stop or Stop())
                except BaseException:
                    with interrupts_held():
                        if self.consistent:
                            self.checkpoint()
                        self.commit_checkpoints()
                    raise
        assert self.logits is not None
        return self.logits

    def prepare(self, ids: Sequence[int], reserve: int = 0, *, stored_at: Container[int] | None = None) -> int:
        """Go back to the longest usable prefix of ``ids`` that the sequence or the store holds; returns its length.

        The first part of ``advance``, with its errors. Logits are known if that is all of ``ids``; else read the rest in
        passes that end at ``next_stop``, and report each with ``prefilled``. ``stored_at``: the positions at which a
        stored prefix may be used, None for any.
        """
        if not ids:
            raise UsageError("there are no tokens to read: the prompt is empty")
        self._check_fits(len(ids), reserve)
        start = self.rewind(common_prefix(self.tokens, ids), allow_end=len(ids))
        if self.prefixes is not None and start < len(ids):
            found = self.prefixes.find(ids, start)
            self.restore_first(p for p in found if stored_at is None or p.position in stored_at)
            start = len(self.tokens)
        self.counters.reused += start
        self._committed = start
        if start < len(ids):
            self.logits = None
        return start

    def next_stop(self, end: int, boundaries: Sequence[int]) -> int:
        """Where the next pass of a prefill up to ``end`` stops."""
        return next_stop(len(self.tokens), end, boundaries, self.chunk)

    def prefilled(
        self, ids: Sequence[int], stop: int, boundaries: Sequence[int], logits: torch.Tensor | None, began: float
    ) -> None:
        """Record that a pass, begun at ``time.perf_counter() == began``, has appended ``ids`` up to ``stop``; takes a
        checkpoint there if one is due.

        ``logits``: float32 [1, vocab] after the last of the ``ids``, None before.
        """
        at = len(self.tokens)
        self.tokens += ids[at:stop]
        self.counters.prefilled += stop - at
        if stop in boundaries or (stop - max(self.checkpoints, default=0) >= CHECKPOINT_STEP):
            self.checkpoint()
            if self.prefixes is not None and stop - self._committed >= CHECKPOINT_STEP:
                # A long prefill is stored as it proceeds, so that a killed process need not start over.
                self.prefixes.commit(self.content, durable=False)
                self._committed = stop
        if logits is not None:
            self.logits = logits[0].cpu().numpy()
            if stop in self.checkpoints:
                self.known_logits[stop] = self.logits
        self.counters.prefill_seconds += time.perf_counter() - began

    def commit_checkpoints(self) -> None:
        """Store an interrupted prefill up to its last checkpoint, so that it can resume there."""
        if self.prefixes is not None and self.checkpoints:
            self.prefixes.commit(self.content)

    def rewind(self, position: int, *, allow_end: int | None = None) -> int:
        """Go back to the nearest usable position at or before ``position`` and return it.

        ``allow_end``: the length of the tokens to come. That position itself is only usable where its logits are known.
        """
        if self.consistent and position == len(self.tokens) and (position != allow_end or self.logits is not None):
            return position
        usable = [
            p
            for p, checkpoint in self.checkpoints.items()
            if p <= position and (p != allow_end or p in self.known_logits) and self.state.restorable(checkpoint)
        ]
        at = max(usable, default=0)
        if at:
            self.state.restore(self.checkpoints[at])
        else:
            self.state.reset()
        del self.tokens[at:]
        # Checkpoints beyond it belong to removed tokens.
        self.checkpoints = {p: c for p, c in self.checkpoints.items() if p <= at}
        self.known_logits = {p: x for p, x in self.known_logits.items() if p <= at}
        self.logits = self.known_logits.get(at)
        self.lookup.cut(at)
        if self.prefixes is not None:
            self.prefixes.truncate(at)
        return at

    def restore(self, prefix: StoredPrefix) -> None:
        """Replace the sequence by a stored prefix of the same model and KV type.

        Raises DamagedPrefixError when a segment of it is missing or damaged (the sequence is empty then), ContextFullError
        when it does not fit.
        """
        try:
            for segment in prefix.segments():
                self.state.load_kv(segment.start, segment.stop, segment.pairs)
            device = self.state.device
            checkpoint = self.state.checkpoint(prefix.position, prefix.conv.to(device), prefix.ssm.to(device))
            self.state.restore(checkpoint)
        except BaseException:
            self.reset()
            raise
        self.tokens = list(prefix.tokens)
        self.checkpoints = {prefix.position: checkpoint}
        self.known_logits = {} if prefix.logits is None else {prefix.position: prefix.logits}
        self.logits = prefix.logits
        self.lookup.cut(0)
        if self.prefixes is not None:
            self.prefixes.restored(prefix)

    def fork(self, source: TokenSequence, position: int) -> None:
        """Replace the sequence by the first ``position`` tokens of another one of the same model and KV type, which has a
        checkpoint there. The bits of the state are the same."""
        found = source.checkpoints[position]
        try:
            self.state.load_kv(0, position, list(source.state.kv(0, position)))
            checkpoint = self.state.checkpoint(position, found.conv, found.ssm)
            self.state.restore(checkpoint)
        except BaseException:
            self.reset()
            raise
        self.tokens = source.tokens[:position]
        self.checkpoints = {position: checkpoint}
        self.known_logits = {p: x for p, x in source.known_logits.items() if p == position}
        self.logits = self.known_logits.get(position)
        self.lookup.cut(0)
        if self.prefixes is not None:
            self.prefixes.truncate(0)

    def restore_first(self, candidates: Iterable[StoredPrefix]) -> bool:
        """Restore the first of these prefixes that is not damaged; returns whether there was one."""
        for prefix in candidates:
            try:
                self.restore(prefix)
            except DamagedPrefixError:
                if self.prefixes is not None:
                    self.prefixes.drop(prefix)
                continue
            return True
        return False

    def reset(self) -> None:
        """Go back to no tokens at all."""
        self.state.reset()
        self.tokens, self.checkpoints, self.known_logits, self.logits = [], {}, {}, None
        self.lookup.cut(0)
        if self.prefixes is not None:
            self.prefixes.truncate(0)

    def checkpoint(self) -> None:
        """Take a checkpoint at the current position; over the budget, the least useful ones are dropped."""
        at = self.state.position
        if at and at not in self.checkpoints:
            self.checkpoints[at] = self.state.snapshot()
            budget = CHECKPOINT_BYTES if self.checkpoint_bytes is None else self.checkpoint_bytes
            for dropped in superfluous({p: c.nbytes for p, c in self.checkpoints.items()}, budget):
                del self.checkpoints[dropped]
                self.known_logits.pop(dropped, None)
        if at and self.logits is not None:
            # A row of several would keep them all.
            self.known_logits[at] = self.logits.copy() if isinstance(self.logits, np.ndarray) else self.logits

    @property
    def fast_steps(self) -> bool:
        """Whether a step of several tokens takes less time than as many steps, with the same results to the bit."""
        decoder = self.model.decoder
        return decoder is not None and decoder.max_tokens > 1

    @property
    def max_draft(self) -> int:
        """The most tokens of a draft."""
        decoder = self.model.decoder
        return min(MAX_DRAFT, decoder.max_tokens - 1) if decoder is not None and self.fast_steps else MAX_DRAFT

    def expects(self, token: int) -> bool:
        """Whether ``token`` is the next token of the last draft, so that a step with it computes nothing."""
        return bool(self._ahead) and self._ahead[0][0] == token

    def step(self, token: int, draft: Sequence[int] = ()) -> Logits:
        """Append one token and return the logits after it, float32 [vocab]; on a GPU as ``DeviceLogits``, without waiting.

        ``draft``: at most ``max_draft`` tokens that probably follow, computed in the same pass. Steps that append exactly
        these then take no time. The others are taken back; a draft changes no token's logits.
        """
        if self.expects(token):
            start, logits = time.perf_counter(), self._ahead.popleft()[1]
            self.counters.accepted += 1
            self.counters.steps -= 1
            return self.stepped(token, logits, start)
        state, start = self.state, time.perf_counter()
        self._check_fits(len(self.tokens) + 1 + len(draft))
        return self.stepped(token, self._forward([token, *draft], state), start, draft)

    def stepped(self, token: int, logits: torch.Tensor, began: float, draft: Sequence[int] = ()) -> Logits:
        """Record that a pass, begun at ``time.perf_counter() == began``, has appended one token and a draft; ``logits`` float32
        [1 + len(draft), vocab] are those after each."""
        self.tokens.append(token)
        self._ahead.extend((t, logits[i : i + 1]) for i, t in enumerate(draft, 1))
        self.logits = self._device_logits(logits[0]) if logits.is_cuda else logits[0].numpy()
        self.counters.decoded += 1
        self.counters.steps += 1
        self.counters.drafted += len(draft)
        self.counters.decode_seconds += time.perf_counter() - began
        return self.logits

    def _forward(self, ids: Sequence[int], state: SequenceState) -> torch.Tensor:
        """Logits float32 [len(ids), vocab] after each of the ``ids``; they can be taken back if they are several."""
        import torch

        from jambacli.model.spans import Span

        span = Span(state, torch.tensor(ids), logits="all", revocable=len(ids) > 1)
        (logits,) = self.model.forward_spans([span])
        assert logits is not None
        return logits

    def _device_logits(self, logits: torch.Tensor) -> Logits:
        """Logits that stay on the GPU; waiting for them counts as decoding."""
        from jambacli.engine.gpu_sampling import DeviceLogits

        counters = self.counters

        def waited(seconds: float) -> None:
            counters.decode_seconds += seconds

        return DeviceLogits(logits, waited)

    def _check_fits(self, n: int, reserve: int = 0) -> None:
        from jambacli.model.state import ContextFullError

        if n + reserve > self.ctx:
            raise ContextFullError(
                f"{n:,} tokens do not fit in the context of {self.ctx:,}", remedy="use a larger {ctx}"
            )

    def _prefill(self, ids: Sequence[int], boundaries: list[int], advance: Callable[[int], None], stop: Stop) -> None:
        """Compute the ``ids`` that are missing in chunks, with checkpoints at the boundaries and at fixed steps."""
        import torch

        tokens = torch.tensor(ids, dtype=torch.int64)
        while (at := len(self.tokens)) < len(ids):
            if stop.asked:
                raise StoppedError("stopped while the prompt was read")
            with interrupts_held() as interrupt:
                began = time.perf_counter()
                end = self.next_stop(len(ids), boundaries)
                logits, done = self._pass(tokens[at:end], end == len(ids), (stop, interrupt))
                if done:
                    self.prefilled(ids, end, boundaries, logits, began)
            if done:
                advance(end - at)

    def _pass(self, ids: torch.Tensor, last: bool, stops: Sequence[Stop]) -> tuple[torch.Tensor | None, bool]:
        """One pass of a prefill: the logits of its last token if ``last``, and whether it was done. A long one on the CPU is
        abandoned once one of the ``stops`` is asked; the state is then as before."""
        from jambacli.model.state import PassAbandonedError

        state = self.state
        logits: Literal["last", "none"] = "last" if last else "none"
        if len(ids) < _LONG_PASS or state.device.type != "cpu":
            return self.model.forward(ids, state, logits=logits), True
        at = state.position
        before = (self.checkpoints.get(at) or state.snapshot()) if at else None
        state.abandon = lambda: any(stop.asked for stop in stops)
        try:
            return self.model.forward(ids, state, logits=logits), True
        except PassAbandonedError:
            if before is not None:
                state.restore(before)
            else:
                state.reset()
            return None, False
        finally:
            state.abandon = None
