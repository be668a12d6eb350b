"""A call in the engine: its jobs, and the events that they become."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from jambacli.engine.generate import Thought
from jambacli.server.errors import SOONEST, ApiError, as_api_error
from jambacli.server.events import Answer, Event, Piece, Running, Waiting
from jambacli.server.found_calls import CallDelta, FoundCalls

if TYPE_CHECKING:
    from jambacli.api import Jamba
    from jambacli.engine.batch import BatchEngine
    from jambacli.engine.batch_job import Job, Request
    from jambacli.engine.logprobs import TokenLogprob
    from jambacli.text.tokenizer import Tokenizer
    from jambacli.text.tool_calls import ToolCall, ToolCallScanner


class CallOwner(Protocol):
    """What a call needs of the ``Worker`` that it is in."""

    model: Jamba
    engine: BatchEngine
    keep_alive: float
    counts: Counter[str]
    seconds: dict[str, float]

    def keep(self, job: Job, chain: str, text: str, calls: Sequence[ToolCall]) -> None:
        """Keep a chat's reply."""

    def log(self, job: Job) -> None:
        """Log what a reply cost."""


@dataclass(frozen=True)
class Echo:
    """A prompt to repeat, of which the first ``unseen`` tokens, the bos that was added, are not in its ``text``."""

    text: str
    unseen: int


class _Collector:
    """Turns what the engine reports of one job into events. Called by the engine's thread."""

    def __init__(self, index: int, echo: Echo | None, put: Callable[[Piece | tuple[int, Job]], None]) -> None:
        self._index, self._echo, self._put = index, echo, put
        self._prompt: list[TokenLogprob] = []
        self._pending: list[TokenLogprob] = []

    def scored(self, logprobs: Sequence[TokenLogprob], prompt: bool) -> None:
        """Tokens with their log-probabilities, before their text."""
        (self._prompt if prompt else self._pending).extend(logprobs)

    def said(self, text: str) -> None:
        """A piece of text."""
        self._repeat_prompt()
        self._put(Piece(self._index, str(text), isinstance(text, Thought), self._take()))

    def ended(self, job: Job) -> None:
        """The end of the job."""
        if job.error is None and not job.cancelled:
            self._repeat_prompt()
            if self._pending:
                self._put(Piece(self._index, "", False, self._take()))
        self._put((self._index, job))

    def _repeat_prompt(self) -> None:
        if self._echo is not None:
            self._put(Piece(self._index, self._echo.text, False, tuple(self._prompt), prompt=True))
            self._echo = None

    def _take(self) -> tuple[TokenLogprob, ...]:
        taken = tuple(self._pending)
        self._pending.clear()
        return taken


class _Shown:
    """What is shown of one reply: its text without calls of tools, which are apart.

    ``found``: finds the calls, None without tools. ``pieces``: the texts so far.
    """

    def __init__(self, index: int, found: FoundCalls | None) -> None:
        self.found = found
        self.pieces: list[Piece] = []
        self._index = index
        # Of tokens whose text the scanner holds back: they go with that text, or with none if it is a call's.
        self._pending: list[TokenLogprob] = []

    def push(self, piece: Piece) -> Sequence[Piece | CallDelta]:
        """A piece of the reply as it is shown."""
        if self.found is None or piece.thought:
            self.pieces.append(piece)
            return [piece]
        self._pending.extend(piece.logprobs)
        return self._parts(self.found.push(piece.text))

    def end(self, job: Job) -> Sequence[Piece | CallDelta]:
        """What is left at the end of the reply."""
        if self.found is None:
            return []
        parts = self._parts(self.found.end(job))
        if self._pending and not self.found.begun:
            parts += self._parts([""])
        return parts

    @property
    def enough(self) -> bool:
        """Whether nothing more is wanted of the reply."""
        return self.found is not None and self.found.enough

    @property
    def calls(self) -> Sequence[ToolCall]:
        """The complete calls."""
        return self.found.calls if self.found is not None else ()

    @property
    def all_complete(self) -> bool:
        """Whether there are calls, all of them complete."""
        return self.found is not None and self.found.whole

    def _parts(self, found: Sequence[str | CallDelta]) -> list[Piece | CallDelta]:
        parts: list[Piece | CallDelta] = []
        for part in found:
            if isinstance(part, str):
                piece = Piece(self._index, part, False, tuple(self._pending))
                self.pieces.append(piece)
                parts.append(piece)
            else:
                parts.append(part)
            self._pending.clear()
        return parts


class EngineCall(Running):
    """A call in the engine: one job for each reply. What was read for it stays usable when it is cancelled."""

    def __init__(self, worker: CallOwner, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(replies=0)
        self._worker, self._loop = worker, loop
        self.jobs: list[Job] = []
        self._chain: str | None = None
        self._shown: dict[int, _Shown] = {}
        self._events: asyncio.Queue[Piece | tuple[int, Job]] = asyncio.Queue()
        self._cancelled = False

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self._worker.model.tokenizer

    def add(
        self,
        index: int,
        request: Request,
        chain: str | None,
        echo: Echo | None = None,
        scanner: ToolCallScanner | None = None,
    ) -> None:
        """Submit one request; ``scanner`` finds its calls of tools. Raises JambaError when the engine refuses it."""
        self._chain = chain
        self._shown[index] = _Shown(index, FoundCalls(index, scanner) if scanner is not None else None)
        self.unseen[index] = echo.unseen if echo is not None else 0
        seen = _Collector(index, echo, self._put)
        job = self._worker.engine.submit(request, on_text=seen.said, on_end=seen.ended, on_logprobs=seen.scored)
        self.jobs.append(job)
        self.replies, self.prompt_tokens = len(self.jobs), len(self.jobs[0].ids)
        if self._cancelled:
            job.cancel()

    def cancel(self) -> None:
        """See ``Running``."""
        self._cancelled = True
        for job in list(self.jobs):
            job.cancel()
        self._worker.engine.wake()

    async def events(self) -> AsyncGenerator[Event, None]:
        """See ``Running``."""
        left = len(self.jobs)
        # Not asyncio.wait_for: before Python 3.12 it forgets a cancellation that comes at the same time as an event.
        coming = asyncio.ensure_future(self._events.get())
        try:
            while left:
                done, _ = await asyncio.wait((coming,), timeout=self._worker.keep_alive)
                if not done:
                    yield self._waiting()
                    continue
                event = coming.result()
                coming = asyncio.ensure_future(self._events.get())
                if isinstance(event, Piece):
                    shown = self._shown[event.index]
                    for part in shown.push(event):
                        yield part
                    if shown.enough:
                        self.jobs[event.index].cancel()
                    continue
                index, job = event
                for part in self._shown[index].end(job):
                    yield part
                left -= 1
                self.finished.append(await self._ended(index, job, self._shown.pop(index)))
                yield self.finished[-1]
        finally:
            coming.cancel()
            if left:
                self.cancel()
                self._worker.counts["cancelled"] += 1

    def _put(self, event: Piece | tuple[int, Job]) -> None:
        # The loop is closed when the server has stopped: nobody waits for the event.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def _waiting(self) -> Waiting:
        positions = [self._worker.engine.queue_position(job) for job in self.jobs]
        position = None if any(p is None for p in positions) else min(p for p in positions if p is not None)
        total = sum(len(job.ids) for job in self.jobs)
        known = sum(job.counters.reused for job in self.jobs)
        read = sum(job.tokens_read for job in self.jobs)
        return Waiting(total, known, read, position, time.perf_counter() - self.began)

    async def _ended(self, index: int, job: Job, shown: _Shown) -> Answer:
        worker, counters, result = self._worker, job.counters, job.result
        pieces, calls = shown.pieces, shown.calls
        text = "".join(piece.text for piece in pieces if not piece.thought)
        # The tokens after a first call that was enough are not part of what the client sees.
        enough = shown.enough and job.cancelled
        said = job.text if shown.found is None else text
        if self._chain is not None and (said.strip() or calls) and not enough:
            await asyncio.to_thread(worker.keep, job, self._chain, said, calls)
        worker.counts["prompt_tokens"] += len(job.ids)
        worker.counts["cached_tokens"] += min(counters.reused, len(job.ids))
        worker.counts["generated_tokens"] += len(result.ids)
        worker.seconds["prefill"] += counters.prefill_seconds
        worker.seconds["decode"] += counters.decode_seconds
        worker.seconds["answering"] += time.perf_counter() - self.began
        if job.error is not None:
            worker.counts["failed"] += 1
            raise as_api_error(job.error)
        if job.cancelled and not enough:
            raise ApiError(503, "the server is stopping", kind="unavailable_error", retry_after=SOONEST)
        worker.counts["answered"] += 1
        worker.log(job)
        # A reply that follows a schema is complete, however many tokens it took.
        complete = result.finish == "stop" or job.request.constrained or enough
        finish = "length" if not complete else "tool_calls" if shown.all_complete else "stop"
        return Answer(
            index=index,
            text=text,
            thoughts="".join(piece.text for piece in pieces if piece.thought).strip("\n"),
            finish=finish,
            stop_text=job.reply.stop_text,
            prompt_tokens=len(job.ids),
            cached_tokens=min(counters.reused, len(job.ids)),
            generated_tokens=len(result.ids),
            thought_tokens=_thought_tokens(job),
            prefill_seconds=counters.prefill_seconds,
            decode_seconds=counters.decode_seconds,
            prefilled_tokens=counters.prefilled,
            first_token=job.first_token_seconds or 0.0,
            logprobs=[one for piece in pieces if not piece.prompt for one in piece.logprobs],
            prompt_logprobs=[one for piece in pieces if piece.prompt for one in piece.logprobs],
            unseen=self.unseen[index],
            calls=calls,
        )


def _thought_tokens(job: Job) -> int:
    """How many of the generated tokens are thoughts."""
    begin, end = job.request.thought_marks
    count, thinking = 0, job.request.thinking
    for token in job.result.ids:
        if token in (begin, end):
            thinking = token == begin
        elif thinking:
            count += 1
    return count
