"""Write a sequence's state to the prefix store in the background during generation, and find stored prefixes for it.

A commit copies new segments and checkpoints immediately, each only once. A background thread writes them, and flushes
them to disk at the end of a turn.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jambacli.cache.prefix_store import Prefix, PrefixStore, blob_name, chain_hashes
from jambacli.cache.stored_prefix import (
    DamagedPrefixError,
    StoredPrefix,
    checkpoint_bytes,
    logits_bytes,
    read_prefix,
    segment_bytes,
)
from jambacli.errors import JambaError

if TYPE_CHECKING:
    from jambacli.engine.prefixes import SequenceContent
    from jambacli.model.state import SequenceState, StateLayout

logger = logging.getLogger(__name__)

#: Tokens in a full segment of keys and values.
SEGMENT = 512
# Commits that may wait to be written before the next one blocks: a bound on the memory they hold.
_QUEUE = 4


@dataclass(frozen=True)
class _Batch:
    """One commit, copied out of the sequence: the new blobs, and the prefixes that refer to them."""

    blobs: dict[str, bytes]
    prefixes: list[Prefix]
    done: Callable[[], None] | None
    durable: bool


def state_spaces(fingerprint: str, state: SequenceState) -> tuple[str, str]:
    """The parts of the store for states of one model, KV type and mode: this version's, and that of earlier versions.

    Earlier versions knew one mode, today's precise one. A state of theirs fits both: either mode can go on from it.
    """
    return spaces_of(fingerprint, state.kv_type, state.precise)


def spaces_of(fingerprint: str, kv_type: str, precise: bool) -> tuple[str, str]:
    """See ``state_spaces``."""
    earlier = f"{fingerprint}-{kv_type}"
    return f"{earlier}-{'precise' if precise else 'int8'}", earlier


class PrefixCache:
    """The stored prefixes of one sequence; implements ``sequence.Prefixes``.

    It tracks which parts of the sequence are stored, so it must be told of every change: see ``restored`` and ``truncate``.
    """

    def __init__(
        self,
        store: PrefixStore,
        spaces: Sequence[str],
        layout: StateLayout,
        in_use: Callable[[], bool] = lambda: True,
    ) -> None:
        """``spaces``: the parts of the store whose states fit, the one to write to first (see ``state_spaces``). ``layout``:
        that of its state. ``in_use``: whether the weights are still those of ``spaces``; once not, nothing is stored."""
        self.store = store
        self._in_use = in_use
        self.space = spaces[0]
        self.spaces = tuple(spaces)
        #: Hashes of the documents in the sequence, so that ``jamba cache clear`` finds the prefixes that hold one.
        self.documents: list[str] = []
        self._layout = layout
        # Names of the sequence's blobs that are stored: full segments in order, checkpoints and logits by position.
        self._segments: list[str] = []
        self._checkpoints: dict[int, str] = {}
        self._logits: dict[int, str] = {}
        self._queue: queue.Queue[_Batch | None] = queue.Queue(_QUEUE)
        self._thread: threading.Thread | None = None
        self._failed = self._changed = False
        #: Why the last ``done`` failed, None if it did not.
        self.unsaved: str | None = None

    def find(self, tokens: Sequence[int], above: int) -> Iterator[StoredPrefix]:
        """The stored prefixes of ``tokens`` longer than ``above``, longest first; incomplete ones are removed.

        A prefix of all ``tokens`` needs stored logits, because nothing is computed after it.
        """
        found = [zip(itertools.repeat(space), self.store.find(space, tokens, above)) for space in self.spaces]
        for space, record in heapq.merge(*found, key=lambda pair: -pair[1].position):
            if record.position == len(tokens) and record.logits is None:
                continue
            try:
                prefix = read_prefix(self.store, record, tokens, self._layout)
            except DamagedPrefixError:
                self.store.drop_prefix(space, record)
                continue
            yield prefix

    def read(self, records: Iterable[Prefix], tokens: Sequence[int]) -> Iterator[StoredPrefix]:
        """Those of these prefixes of ``tokens`` that are still stored, longest first."""
        for record in sorted(records, key=lambda r: -r.position):
            if record.position <= len(tokens):
                try:
                    prefix = read_prefix(self.store, record, tokens, self._layout)
                except DamagedPrefixError:
                    continue
                yield prefix

    def restored(self, prefix: StoredPrefix) -> None:
        """The sequence now holds exactly this prefix."""
        record = prefix.record
        for space in self.spaces:
            self.store.touch(space, record)
        full = record.position // SEGMENT
        self._segments = record.segments[:full] if record.segment_tokens == SEGMENT else []
        self._checkpoints = {record.position: record.checkpoint}
        self._logits = {record.position: record.logits} if record.logits else {}

    def add_stored(self, records: Iterable[Prefix]) -> None:
        """These prefixes of the sequence are stored too: later commits list them again, an edit may go back to one."""
        for record in records:
            self._checkpoints[record.position] = record.checkpoint
            if record.logits:
                self._logits[record.position] = record.logits

    def drop(self, prefix: StoredPrefix) -> None:
        """Remove a damaged prefix from the index."""
        for space in self.spaces:
            self.store.drop_prefix(space, prefix.record)

    def truncate(self, position: int) -> None:
        """The sequence was cut back to ``position``: blobs stored beyond it belong to other tokens."""
        del self._segments[position // SEGMENT :]
        self._checkpoints = {p: name for p, name in self._checkpoints.items() if p <= position}
        self._logits = {p: name for p, name in self._logits.items() if p <= position}

    def commit(
        self, content: SequenceContent, done: Callable[[list[Prefix]], None] | None = None, *, durable: bool = True
    ) -> None:
        """Store the sequence's content: new segments, new checkpoints, the logits at checkpoints.

        Returns once everything is copied. ``done`` is called from the writing thread, with every stored prefix of the
        sequence, when all of it is written (and flushed, if ``durable``). A durable commit waits for the one before it, so
        that a killed process loses no more than the last.
        """
        if durable:
            self.flush()
        if not self._in_use():
            if not self._changed:
                self._changed = True
                logger.warning(
                    "the model's file was changed while it is in use, or another program may write to it; its state is "
                    "not stored"
                )
            self._put(_Batch({}, [], (lambda: done([])) if done else None, durable))
            return
        state, n = content.state, len(content.tokens)
        blobs: dict[str, bytes] = {}

        def add(data: bytes) -> str:
            name = blob_name(data)
            blobs[name] = data
            return name

        for i in range(len(self._segments), n // SEGMENT):
            self._segments.append(add(segment_bytes(state.kv(i * SEGMENT, (i + 1) * SEGMENT))))
        tail = [add(segment_bytes(state.kv(n // SEGMENT * SEGMENT, n)))] if n % SEGMENT else []
        checkpoints = {p: c for p, c in content.checkpoints.items() if p <= n}
        fresh = [p for p in checkpoints if p not in self._checkpoints]
        for p in fresh:
            self._checkpoints[p] = add(checkpoint_bytes(checkpoints[p]))
        for p in checkpoints:
            if p in content.logits and p not in self._logits:
                self._logits[p] = add(logits_bytes(np.asarray(content.logits[p])))
                fresh.append(p)
        chains = chain_hashes(self.space, content.tokens, list(self._checkpoints))
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
        self._put(_Batch(blobs, listed, (lambda: done(prefixes)) if done else None, durable))

    def flush(self) -> None:
        """Wait until all commits are written."""
        if self._thread is not None:
            self._queue.join()

    def close(self) -> None:
        """Wait until all commits are written, then end the writing thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _put(self, batch: _Batch) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="jamba-store", daemon=True)
            self._thread.start()
        self._queue.put(batch)

    def _write_all(self) -> None:
        while (batch := self._queue.get()) is not None:
            try:
                self._write(batch)
            except OSError as error:
                if not self._failed:
                    self._failed = True
                    reason = error.strerror or error
                    logger.warning(
                        "cannot write to %s: %s; continuing without stored prefixes", self.store.root, reason
                    )
                self._finish(batch)  # a conversation takes less room than its state
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
            self._finish(batch)
        store.evict()

    def _finish(self, batch: _Batch) -> None:
        """Call the batch's ``done``; what it cannot write is reported once, and tried again with the next batch."""
        if batch.done is None:
            return
        try:
            batch.done()
        except (OSError, JambaError) as error:
            if self.unsaved is None:
                logger.warning("%s; the conversation is not saved", error)
            self.unsaved = str(error)
        else:
            self.unsaved = None
