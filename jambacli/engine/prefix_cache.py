"""Between a sequence and the store: writes new segments and checkpoints beside the generation, loads stored prefixes.

What is new is copied and hashed at once (a segment or checkpoint only ever once), written by a thread of its own, and
synced to disk when a turn ends. Knows nothing of text, sessions or how the store keeps its budget.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jambacli import ui
from jambacli.cache.prefix_store import Prefix, PrefixStore, blob_name, chain_hashes

if TYPE_CHECKING:
    import torch

    from jambacli.engine.sequence import TokenSequence
    from jambacli.model.state import SequenceState

SEGMENT = 512
# Batches that may wait to be written before the generation has to wait: a bound on the memory they hold.
_QUEUE = 4


@dataclass(frozen=True)
class _Batch:
    """One commit, copied out of the sequence: blobs not written before, then the prefixes that name them."""

    blobs: dict[str, bytes]
    prefixes: list[Prefix]
    done: Callable[[], None] | None
    durable: bool


class Persistence:
    """Keeps one sequence's prefixes in a store; one per sequence, for one model and KV type (``space``)."""

    def __init__(self, store: PrefixStore, space: str) -> None:
        self.store = store
        self.space = space
        #: Hashes of the documents the sequence holds, so that ``jamba cache clear --document`` finds it.
        self.documents: list[str] = []
        self._segments: list[str] = []
        self._checkpoints: dict[int, str] = {}
        self._logits: dict[int, str] = {}
        self._queue: queue.Queue[_Batch | None] = queue.Queue(_QUEUE)
        self._thread: threading.Thread | None = None
        self._failed = False

    def truncated(self, position: int) -> None:
        """The sequence went back to ``position``: what was written beyond it belongs to another past."""
        del self._segments[position // SEGMENT :]
        self._checkpoints = {p: name for p, name in self._checkpoints.items() if p <= position}
        self._logits = {p: name for p, name in self._logits.items() if p <= position}

    def commit(
        self, sequence: TokenSequence, done: Callable[[list[Prefix]], None] | None = None, *, durable: bool = True
    ) -> None:
        """Store the sequence as it is: new segments, checkpoints not yet stored, the logits at its end.

        Returns once everything is copied; ``done`` is called from the writing thread, with every prefix that leads
        here, when all of it is written (and synced, if ``durable``). A durable commit waits for the one before, so that
        a kill costs no more than the last; the write had a whole turn's time until then.
        """
        if durable:
            self.flush()
        state, n = sequence.state, len(sequence.tokens)
        blobs: dict[str, bytes] = {}

        def add(data: bytes) -> str:
            name = blob_name(data)
            blobs[name] = data
            return name

        for i in range(len(self._segments), n // SEGMENT):
            self._segments.append(add(_segment(state, i * SEGMENT, (i + 1) * SEGMENT)))
        tail = [add(_segment(state, n // SEGMENT * SEGMENT, n))] if n % SEGMENT else []
        checkpoints = {p: c for p, c in sequence.checkpoints.items() if p <= n}
        fresh = [p for p in checkpoints if p not in self._checkpoints]
        for p in fresh:
            self._checkpoints[p] = add(_raw(checkpoints[p].conv) + _raw(checkpoints[p].ssm))
        for p in checkpoints:
            if p in sequence.known and p not in self._logits:
                self._logits[p] = add(sequence.known[p].astype("<f4").tobytes())
                fresh.append(p)
        chains = chain_hashes(self.space, sequence.tokens, list(self._checkpoints))
        covering = [*self._segments, *tail]
        prefixes = [
            Prefix(
                position=p,
                chain=chains[p],
                checkpoint=name,
                segments=covering[: -(-p // SEGMENT)],
                segment_tokens=SEGMENT,
                logits=self._logits.get(p),
                documents=list(self.documents),
            )
            for p, name in sorted(self._checkpoints.items())
            if p in chains
        ]
        listed = [p for p in prefixes if p.position in fresh]
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="jamba-store", daemon=True)
            self._thread.start()
        self._queue.put(_Batch(blobs, listed, (lambda: done(prefixes)) if done else None, durable))

    def flush(self) -> None:
        """Wait until everything committed is written."""
        if self._thread is not None:
            self._queue.join()

    def close(self) -> None:
        """Flush and end the writing thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def load_longest(self, sequence: TokenSequence, ids: Sequence[int], above: int) -> int:
        """Put the longest stored prefix of ``ids`` beyond ``above`` tokens into the sequence; its length, 0 for none.

        0 leaves the sequence as it was, or empty where a stored prefix turned out to be damaged half-way. The whole of
        ``ids`` is only of use where the logits after it are stored too.
        """
        for prefix in self.store.find(self.space, ids, above):
            if prefix.position == len(ids) and prefix.logits is None:
                continue
            if self.load(sequence, prefix, list(ids[: prefix.position])):
                self.store.touch(self.space, prefix)
                return prefix.position
            self.store.drop_prefix(self.space, prefix)
        return 0

    def take_up(self, sequence: TokenSequence, prefixes: Sequence[Prefix], tokens: Sequence[int]) -> None:
        """Put the longest of these prefixes of ``tokens`` that is still stored into the sequence.

        Those shorter than it count as stored, so that later commits list them again: an edit goes back to one of them.
        """
        for prefix in sorted(prefixes, key=lambda p: -p.position):
            at = prefix.position
            if at <= len(tokens) and self.load(sequence, prefix, list(tokens[:at])):
                shorter = [p for p in prefixes if p.position < at]
                self._checkpoints |= {p.position: p.checkpoint for p in shorter}
                self._logits |= {p.position: p.logits for p in shorter if p.logits}
                return

    def load(self, sequence: TokenSequence, prefix: Prefix, tokens: list[int]) -> bool:
        """Put a stored prefix into the sequence. False when a part of it is missing (nothing has changed then) or
        damaged (the sequence is empty then)."""
        store, state, size = self.store, sequence.state, prefix.segment_tokens
        needed = -(-prefix.position // size)
        if len(prefix.segments) < needed or prefix.position > state.ctx or not all(map(store.has_blob, prefix.blobs)):
            return False
        tensors = _mamba_tensors(state, store.get_blob(prefix.checkpoint))
        logits = store.get_blob(prefix.logits) if prefix.logits else None
        if tensors is None or (prefix.logits and logits is None):
            return False
        for i, name in enumerate(prefix.segments[:needed]):  # one in memory at a time: there may be gigabytes
            start, stop = i * size, min((i + 1) * size, prefix.position)
            pairs = _pairs(state, store.get_blob(name), stop - start, whole=None if i == needed - 1 else size)
            if pairs is None:
                sequence.reset()
                return False
            state.load_kv(start, stop, pairs)
        checkpoint = state.checkpoint(prefix.position, *tensors)
        state.restore(checkpoint)
        known = np.frombuffer(logits, dtype="<f4").astype(np.float32) if logits else None
        sequence.adopt(tokens, checkpoint, known)
        self._segments = prefix.segments[: prefix.position // size] if size == SEGMENT else []
        self._checkpoints = {prefix.position: prefix.checkpoint}
        self._logits = {prefix.position: prefix.logits} if prefix.logits else {}
        return True

    def _write_all(self) -> None:
        while (batch := self._queue.get()) is not None:
            try:
                self._write(batch)
            except OSError as error:
                if not self._failed:
                    self._failed = True
                    ui.warn(f"cannot store under {self.store.root}: {error.strerror or error}; going on without")
            finally:
                self._queue.task_done()
        self._queue.task_done()

    def _write(self, batch: _Batch) -> None:
        store = self.store
        with store.writing():
            for name, data in batch.blobs.items():
                store.put_blob(data, name, durable=batch.durable)
            if batch.durable:
                store.sync(batch.blobs)
            for prefix in batch.prefixes:
                store.put_prefix(self.space, prefix)
            if batch.done is not None:
                batch.done()
        store.evict()


def text_hash(text: str) -> str:
    """The name under which the store knows a document's text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def _segment(state: SequenceState, start: int, stop: int) -> bytes:
    """Keys and values of tokens start:stop: per attention layer k then v, each [tokens, n_kv_heads, row], raw."""
    return b"".join(_raw(x) for pair in state.kv(start, stop) for x in pair)


def _raw(x: torch.Tensor) -> bytes:
    import torch

    return x.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _pairs(
    state: SequenceState, data: bytearray | None, tokens: int, whole: int | None
) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """The first ``tokens`` keys and values of a stored segment, which must hold ``whole`` of them if that is given.

    None when it is missing or fits no segment of this model.
    """
    import torch

    if data is None:
        return None
    rows = [c.k.shape[1:] for c in state.caches for _ in range(2)]
    if not rows:
        return []
    dtype = state.caches[0].k.dtype
    per_token = sum(row.numel() * dtype.itemsize for row in rows)
    stored = len(data) // per_token if per_token else 0
    # A segment before the last that holds another number than it should would shift all that follow.
    if stored * per_token != len(data) or stored < tokens or stored != (whole or stored):
        return None
    values = torch.frombuffer(data, dtype=dtype)
    parts = values.split([stored * row.numel() for row in rows])
    tensors = [part.view(stored, *row)[:tokens] for part, row in zip(parts, rows, strict=True)]
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def _mamba_tensors(state: SequenceState, data: bytearray | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The conv and ssm tensors of a stored checkpoint; None when it is missing or of another model's size."""
    import torch

    if data is None or len(data) != state.conv.nbytes + state.ssm.nbytes:
        return None
    values = torch.frombuffer(data, dtype=torch.float32) if data else torch.empty(0)
    conv, ssm = values.split([state.conv.numel(), state.ssm.numel()])
    return conv.view(state.conv.shape).to(state.device), ssm.view(state.ssm.shape).to(state.device)
