"""Several replies at once with one model: requests join and leave at any step, and equal prefixes are read once.

A step is one token for every reply that is being generated, all in one pass, then at most one chunk of reading: a reply never
waits longer than for a chunk, however long the other prompts are. A prompt is read in the chunks in which it is read alone, and
a token's results do not depend on what else is in the step, so a request gives the same tokens alone and among others.

``BatchEngine.step`` is deterministic and starts no thread. ``submit`` and ``cancel`` may be called from any thread;
``engine.batch_worker`` runs an engine in a thread of its own.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from jambacli.engine.batch_job import Job, OnLogprobs, Request, reading_stops
from jambacli.engine.batch_slots import Slot, Slots
from jambacli.engine.batch_steps import BatchSteps
from jambacli.engine.counters import Counters
from jambacli.engine.generate import Generated, Reply
from jambacli.engine.sampling import Sampler
from jambacli.engine.sequence import TokenSequence
from jambacli.errors import UsageError

if TYPE_CHECKING:
    from jambacli.engine.loaded_model import LoadedModel
    from jambacli.engine.prefix_cache import PrefixCache
    from jambacli.model.lora import AdapterSet

logger = logging.getLogger(__name__)

K = TypeVar("K")

# How many waiting requests are compared with the sequences when a place is free.
_LOOK_AHEAD = 32


class BatchEngine:
    """Runs requests on one model, up to ``parallel`` at a time, the others in a queue. Only one thread may step it."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        parallel: int,
        ctx: int | None = None,
        kv_type: str | None = None,
        precise: bool | None = None,
        exact: bool = True,
        open_store: Callable[[TokenSequence], PrefixCache | None] | None = None,
        commit_ends: bool = True,
    ) -> None:
        """``ctx``: maximum tokens of a request, by default the model's context length. ``exact``: reuse only what reading the
        prompt from its beginning would have computed to the bit; without it, also what differs by rounding (such as a reply
        that is part of the next prompt). ``open_store``: the stored prefixes of a new sequence; ``commit_ends``: also store
        the states at the ends of requests, not only those of long prompts as they are read.
        """
        if parallel < 1:
            raise UsageError("must be at least 1", field="parallel", value=parallel)
        self.model = model
        self.parallel = parallel
        self.ctx = ctx or model.config.context_length
        self.exact = exact
        self._kv_type, self._precise, self._open_store = kv_type or "f16", precise, open_store
        self._commit_ends = commit_ends
        self._slots = Slots(parallel, exact, self._open_slot)
        self._waiting: deque[Job] = deque()
        self._arrived = threading.Condition()
        self._clock = 0
        # Whether answers are wanted as soon as possible all together, not each of them.
        self._in_bulk = False
        self._steps = BatchSteps(model.model, self._slots, self._release)

    # Called from any thread

    def submit(
        self,
        request: Request,
        *,
        on_text: Callable[[str], None] | None = None,
        on_read: Callable[[int], None] | None = None,
        on_end: Callable[[Job], None] | None = None,
        on_logprobs: OnLogprobs | None = None,
    ) -> Job:
        """Add a request to the queue. The callbacks are called by ``step``: with every piece of text (thoughts as
        ``Thought``), with the number of prompt tokens that a pass has read, with the job when it has ended, and with the
        log-probabilities that the request asks for, before the text.

        Raises UsageError for an empty prompt, tokens that the model does not have or an unknown biased token,
        ContextFullError when the prompt and ``reserve`` do not fit, JambaError when no valid reply fits.
        """
        tokenizer, n_vocab, n = self.model.tokenizer, self.model.config.vocab_size, len(request.ids)
        if not n:
            raise UsageError("there are no tokens to read: the prompt is empty")
        if min(request.ids) < 0 or max(request.ids) >= n_vocab:
            raise UsageError(f"the prompt has tokens that are not in the vocabulary of {n_vocab}")
        if n + request.reserve > self.ctx:
            from jambacli.model.state import ContextFullError

            raise ContextFullError(
                f"{n:,} tokens do not fit in the context of {self.ctx:,}", remedy="use a larger {ctx}"
            )
        request.sampling.check_vocabulary(n_vocab)
        if request.constraint is not None:
            room = self.ctx - n
            budget = room if request.max_tokens is None else min(room, request.max_tokens)
            request.constraint.begin(budget, request.thinking)
        stop_ids = tokenizer.stop_ids if request.stop_ids is None else request.stop_ids
        reply = Reply(
            tokenizer,
            max_tokens=request.max_tokens,
            stops=() if request.constrained else request.stops,
            stop_ids=stop_ids,
            thought_marks=request.thought_marks,
            result=Generated(thinking=request.thinking),
            markup=request.markup,
        )
        sampler = Sampler(request.sampling, request.ids, request.constraint)
        job = Job(request, reply, sampler, on_text, on_read, on_end, on_logprobs)
        job.stop_ids = stop_ids
        job.adapters = self.model.loras if request.adapters is None else request.adapters
        job.stops = reading_stops(0, n, job.boundaries, self.model.model.prefill_chunk)
        with self._arrived:
            self._waiting.append(job)
            self._arrived.notify_all()
        return job

    def queue_position(self, job: Job) -> int | None:
        """How many requests are before ``job`` in the queue, None when it no longer waits."""
        with self._arrived:
            return next((i for i, other in enumerate(self._waiting) if other is job), None)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do until the next ``submit``."""
        with self._arrived:
            return not self._waiting and not any(slot.job for slot in self._slots)

    def wait(self, seconds: float) -> None:
        """Wait until a request arrives, at most so long."""
        with self._arrived:
            if not self._waiting:
                self._arrived.wait(seconds)

    def wake(self) -> None:
        """End a ``wait`` of the stepping thread."""
        with self._arrived:
            self._arrived.notify_all()

    # Called from one thread

    def step(self) -> bool:
        """One token for every reply in progress, then at most one chunk of reading. Returns whether more is to be done."""
        self._clock += 1
        self._remove_cancelled()
        self._admit()
        self._steps.decode()
        if not (self._in_bulk and self._waiting and self._steps.more_to_read_later(self.parallel)):
            self._steps.read()
        return not self.idle

    def run(self) -> None:
        """Step until every request has ended."""
        while self.step():
            pass

    def stream(self, request: Request) -> Iterator[str]:
        """Submit a request and step until it has ended; yields its text. Closing the iterator cancels it.

        Raises the request's error.
        """
        pieces: deque[str] = deque()
        job = self.submit(request, on_text=pieces.append)
        try:
            while pieces or job.phase != "done":
                if pieces:
                    yield pieces.popleft()
                else:
                    self.step()
        finally:
            if job.phase != "done":
                job.cancel()
                self._remove_cancelled()
        if job.error is not None:
            raise job.error

    def run_all(
        self,
        requests: Iterable[tuple[K, Callable[[], Request]]],
        ended: Callable[[K, Job | None, Exception | None], None],
        on_read: Callable[[int], None] | None = None,
    ) -> None:
        """Run many requests, each made when its turn comes. ``ended`` is called with its key, its job and its error.

        Short prompts wait for each other, so that the weights are unpacked once for several. The job is None if the request
        could not be made or submitted. ``ended`` is not called for cancelled requests; what it raises is raised here.
        """
        running = 0
        failures: list[Exception] = []

        def end(key: K, job: Job) -> None:
            nonlocal running
            running -= 1
            if job.cancelled:
                return
            try:
                ended(key, job, job.error)
            except Exception as failure:  # to be raised here, not reported for the request
                failures.append(failure)

        waiting = iter(requests)
        more = True
        self._in_bulk = True
        try:
            while more or running:
                # A few beyond those that run, so that the engine sees which of the next ones share a prefix.
                while more and running < 2 * self.parallel:
                    found = next(waiting, None)
                    if found is None:
                        more = False
                        break
                    key, make = found
                    try:
                        self.submit(make(), on_read=on_read, on_end=functools.partial(end, key))
                    except Exception as error:
                        ended(key, None, error)
                    else:
                        running += 1
                if running:
                    self.step()
                if failures:
                    raise failures[0]
        finally:
            self._in_bulk = False

    @property
    def jobs(self) -> list[Job]:
        """The jobs that have not ended, those that wait last."""
        with self._arrived:
            return [*(slot.job for slot in self._slots if slot.job is not None), *self._waiting]

    def fail(self, jobs: Sequence[Job], error: Exception) -> None:
        """End these jobs with this error."""
        for slot in self._slots:
            if slot.job is not None and slot.job in jobs:
                self._release(slot, error)
        with self._arrived:
            waiting = [job for job in self._waiting if job in jobs]
            self._waiting = deque(job for job in self._waiting if job not in jobs)
        for job in waiting:
            self._end(job, error)

    def close(self) -> None:
        """Cancel every request, store what was read, and wait until it is written."""
        with self._arrived:
            for job in self._waiting:
                job.cancel()
        for slot in self._slots:
            if slot.job is not None:
                slot.job.cancel()
        self._remove_cancelled()
        for slot in self._slots:
            if slot.cache is not None:
                slot.cache.close()

    def __enter__(self) -> BatchEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Joining

    def _remove_cancelled(self) -> None:
        for slot in self._slots:
            if slot.job is not None and slot.job.cancelled:
                self._release(slot, None)
        with self._arrived:
            gone = [job for job in self._waiting if job.cancelled]
            for job in gone:
                self._waiting.remove(job)
        for job in gone:
            self._end(job, None)

    def _admit(self) -> None:
        """Give free slots to waiting requests, in order; one whose prefix is being read for another waits for it."""
        with self._arrived:
            ahead = list(itertools.islice(self._waiting, _LOOK_AHEAD))
        for job in ahead:
            if self._slots.all_taken:
                return
            source, now = self._slots.longest_prefix(job)
            awaited = self._slots.awaited_prefix(job, now)
            if job.request.prompt_logprobs:  # the logits after known tokens are not known
                source, now, awaited = None, 0, None
            if awaited is not None:
                reader, position = awaited
                if position not in reader.boundaries:
                    reader.boundaries = sorted([*reader.boundaries, position])
                continue
            slot = self._slots.choose(job, source, now, ahead)
            with self._arrived:
                self._waiting.remove(job)
            self._start(job, slot, source, now)

    def _open_slot(self) -> Slot:
        sequence, cache = self._open_sequence(self.model.loras)
        return Slot(sequence, cache)

    def _open_sequence(self, adapters: AdapterSet) -> tuple[TokenSequence, PrefixCache | None]:
        from jambacli.model.config import CHECKPOINT_BYTES

        sequence = TokenSequence(self.model.model, self.ctx, self._kv_type, precise=self._precise, adapters=adapters)
        # One sequence's budget is divided among all.
        sequence.checkpoint_bytes = CHECKPOINT_BYTES // self.parallel
        cache = self._open_store(sequence) if self._open_store is not None else None
        sequence.prefixes = cache
        return sequence, cache

    def _start(self, job: Job, slot: Slot, source: Slot | None, position: int) -> None:
        """Put the job into the slot, with the first ``position`` tokens of ``source``."""
        assert job.adapters is not None
        if slot.sequence.state.adapters.key != job.adapters.key:
            slot.replace(*self._open_sequence(job.adapters))
        sequence = slot.sequence
        slot.job, job.phase = job, "reading"
        slot.array, slot.stops, slot.boundaries = job.array, job.stops, job.boundaries
        sequence.counters = job.counters
        if slot.cache is not None:
            slot.cache.documents = list(job.request.documents)
        try:
            if source is not None and position == len(source.sequence.tokens):
                source.sequence.checkpoint()
            if source is None:
                sequence.reset()
                if job.request.prompt_logprobs:
                    sequence.prefixes = None
            elif source is slot:
                sequence.rewind(position, allow_end=len(job.ids))
            else:
                sequence.fork(source.sequence, position)
            start = sequence.prepare(job.ids, stored_at=frozenset(job.stops) if self.exact else None)
        except Exception as error:
            sequence.reset()
            self._release(slot, error)
            return
        job.tokens_read = start
        if start == len(job.ids):
            job.phase = "answering"
        elif not self.exact:  # the chunks may begin elsewhere
            slot.stops = reading_stops(start, len(job.ids), job.boundaries, sequence.chunk)
        self._steps.report(slot, job.on_read, start)

    # Leaving

    def _release(self, slot: Slot, error: Exception | None) -> None:
        """End the slot's request; the sequence keeps what can be used again."""
        job, sequence = slot.job, slot.sequence
        assert job is not None
        ended = job.reply.ended and error is None
        slot.job, slot.drafted, slot.last_used = None, None, self._clock
        try:
            if job.request.prompt_logprobs:
                sequence.reset()
                sequence.prefixes = slot.cache
            if not sequence.consistent:
                sequence.rewind(len(sequence.tokens))
            if sequence.tokens and not (ended and self.exact):
                # Where it was cut off, the same request goes on. After a whole reply, only the next turn of a chat would.
                sequence.checkpoint()
            if slot.cache is not None and sequence.checkpoints and (self._commit_ends or not ended):
                slot.cache.commit(sequence.content, durable=False)
                job.wait_stored = slot.cache.flush
        except Exception as failure:
            logger.warning("the state of a request could not be kept: %s", failure)
            sequence.reset()
        slot.array = np.asarray(sequence.tokens, dtype=np.int64)
        sequence.counters = Counters()
        self._end(job, error)

    def _end(self, job: Job, error: Exception | None) -> None:
        job.error, job.phase = error, "done"
        if job.on_end is not None:
            try:
                job.on_end(job)
            except Exception as failure:
                logger.warning("the end of a request could not be reported: %s", failure)
