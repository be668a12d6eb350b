"""The one thread that owns the model, and what HTTP sees of it: a call goes in, events come out."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jambacli.cache.prefix_store import PrefixStore
from jambacli.engine.batch import BatchEngine
from jambacli.engine.batch_worker import BatchWorker
from jambacli.engine.generate import Thought
from jambacli.engine.parallel import default_parallel
from jambacli.engine.prefix_cache import PrefixCache, state_spaces
from jambacli.errors import JambaError, UsageError
from jambacli.server.errors import ApiError, as_api_error, context_full
from jambacli.server.found_calls import CallDelta, FoundCalls
from jambacli.server.history import History
from jambacli.server.prefix_breaks import PrefixBreaks
from jambacli.session.conversation import Rendered
from jambacli.session.reply_tools import reply_tools
from jambacli.session.requests import request_of, text_request
from jambacli.text.tool_calls import ToolCall, ToolCallScanner

if TYPE_CHECKING:
    from jambacli.api import Jamba
    from jambacli.engine.batch_job import Job, Request
    from jambacli.engine.sequence import TokenSequence
    from jambacli.server.request import Call

logger = logging.getLogger(__name__)

# The range of a Retry-After: the OpenAI client gives up above 120 seconds.
_SOONEST, _LATEST = 1, 120


@dataclass(frozen=True)
class Piece:
    """Text of the reply ``index``, to be shown or, if a ``thought``, apart from it."""

    index: int
    text: str
    thought: bool


@dataclass(frozen=True)
class Waiting:
    """Nothing has come for a while. ``total`` tokens of prompts, of which ``known`` were known and ``read`` are in the state;
    ``position``: how many requests are before this one in the queue, None when it is being worked on."""

    total: int
    known: int
    read: int
    position: int | None
    seconds: float


@dataclass(frozen=True)
class Answer:
    """The whole reply ``index``.

    ``finish``: "stop", "length" or "tool_calls"; ``calls``: the complete calls. ``stop_text``: the stop string that ended
    it. Numbers of tokens: of the prompt, those of it
    that were not read again, those generated, and those of them that are thoughts. ``first_token``: seconds until it.
    """

    index: int
    text: str
    thoughts: str
    finish: str
    stop_text: str | None
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    thought_tokens: int
    prefill_seconds: float
    decode_seconds: float
    prefilled_tokens: int
    first_token: float
    calls: Sequence[ToolCall] = ()


Event = Piece | CallDelta | Waiting | Answer


class Worker:
    """A model, its thread, its queue and its history."""

    def __init__(
        self,
        model: Jamba,
        *,
        ctx: int | None = None,
        kv_type: str | None = None,
        parallel: int | None = None,
        queue: int = 64,
        store: bool = True,
        keep_alive: float = 15.0,
        stats: bool = False,
    ) -> None:
        """``ctx``: maximum tokens of a request. ``parallel``: how many requests at once; ``queue``: how many more may wait.
        ``store``: keep prefixes and replies on the disk. ``keep_alive``: seconds of silence after which ``Waiting`` is sent.
        ``stats``: log what each reply cost.

        Raises UsageError for a context larger than the model's.
        """
        limit = model.config.context_length
        if ctx is not None and ctx > limit > 0:
            raise UsageError(f"{ctx:,} is more than the {limit:,} tokens {model.name} was made for", field="ctx")
        self.model, self.ctx, self.keep_alive, self._queue, self._stats = model, ctx or limit, keep_alive, queue, stats
        store = store and model.path is not None
        self.engine = BatchEngine(
            model,
            parallel=parallel or default_parallel(model.model, self.ctx, kv_type),
            ctx=self.ctx,
            kv_type=kv_type,
            exact=False,
            open_store=self._open_store if store else None,
        )
        self.history = History(model, store)
        self.started = time.time()
        self.counts: Counter[str] = Counter()
        self.seconds = {"prefill": 0.0, "decode": 0.0, "answering": 0.0}
        self._breaks = PrefixBreaks(model.tokenizer)
        # Templates and tokenizers are not made for several threads, so one prepares all prompts.
        self._preparing = ThreadPoolExecutor(1, "jamba-prompts")
        self._batch = BatchWorker(self.engine)

    def _open_store(self, sequence: TokenSequence) -> PrefixCache | None:
        state = sequence.state
        try:
            return PrefixCache(PrefixStore(), state_spaces(self.model.fingerprint, state), state.layout)
        except JambaError as error:
            logger.warning("%s; nothing will be stored on disk", error)
            return None

    # Requests

    async def prepare(self, work: Callable[[], Any]) -> Any:
        """Run something that needs the template or the tokenizer, in the thread for it."""
        return await asyncio.get_running_loop().run_in_executor(self._preparing, work)

    async def start(self, call: Call) -> Running:
        """Check a call wholly and put it into the queue. Raises ApiError for whatever is wrong with it."""
        self._check_queue()
        running = Running(self, asyncio.get_running_loop())
        try:
            await self.prepare(functools.partial(self._submit, call, running))
        except BaseException as error:
            running.cancel()
            if isinstance(error, Exception):
                self.counts["refused"] += 1
                raise as_api_error(error, 400) from error
            raise
        return running

    def _check_queue(self) -> None:
        waiting = self.waiting
        if waiting < self._queue:
            return
        done = self.counts["answered"]
        each = self.seconds["answering"] / done if done else 10.0
        after = int(min(_LATEST, max(_SOONEST, each * waiting / self.engine.parallel)))
        message = f"the server is busy: {waiting} requests wait; try again in {after} seconds"
        raise ApiError(503, message, kind="unavailable_error", code="server_busy", retry_after=after)

    def requests(self, call: Call) -> tuple[list[Request], str | None]:
        """The requests to the engine that a call becomes, and the hash of its messages. Raises JambaError or ApiError."""
        model = self.model
        chain: str | None = None
        if call.messages:
            conversation, chain = self.history.conversation(call)
            rendered = conversation.render()
            firsts = [request_of(model, rendered, call.options, chat=True, documents=call.documents, tools=call.tools)]
            more = [rendered] * (call.choices - 1)
        else:
            firsts = [self._plain(prompt, call) for prompt in call.prompts]
            more = []
        requests = []
        for first in firsts:
            if len(first.ids) + 1 > self.ctx:
                raise context_full(len(first.ids), self.ctx)
            for i in range(call.choices):
                request = first
                if i:
                    # A constraint is of one reply alone, and equal seeds would give equal replies.
                    options = call.options
                    if options.seed is not None:
                        options = replace(options, seed=(options.seed + i) % (1 << 64))
                    whole = more[0] if more else Rendered(list(first.ids), list(first.boundaries))
                    chat = bool(call.messages)
                    request = request_of(
                        model, whole, options, chat=chat, documents=call.documents, tools=call.tools if chat else None
                    )
                requests.append(request)
        return requests, chain

    def _plain(self, prompt: Any, call: Call) -> Request:
        if isinstance(prompt, str):
            return text_request(self.model, prompt, call.options)
        ids = list(prompt)
        return request_of(self.model, Rendered(ids, [len(ids)]), call.options, chat=False)

    def _submit(self, call: Call, running: Running) -> None:
        requests, chain = self.requests(call)
        tools = reply_tools(self.model, call.tools)
        self._breaks.note(requests[0].ids)
        self._check_queue()
        for index, request in enumerate(requests):
            scanner = tools.scanner(request.thinking) if tools is not None else None
            running.add(index, request, chain, scanner)
        self.counts["calls"] += 1

    def keep(self, job: Job, chain: str, text: str, calls: Sequence[ToolCall]) -> None:
        """Keep a chat's reply, so that the next message of the conversation finds its tokens."""
        request = job.request
        self.history.keep(chain, text, job.result.ids, request.thinking, request.documents, calls)

    def log(self, job: Job) -> None:
        """Log what a reply cost, if that is wanted."""
        counters = job.counters
        if self._stats:
            logger.info(
                "%s tokens of prompt, %s of them known, read in %.2f s; %s tokens generated in %.2f s",
                f"{len(job.ids):,}",
                f"{counters.reused:,}",
                counters.prefill_seconds,
                f"{len(job.result.ids):,}",
                counters.decode_seconds,
            )

    # What it does at the moment

    @property
    def waiting(self) -> int:
        """How many requests wait in the queue."""
        return sum(job.phase == "waiting" for job in self.engine.jobs)

    @property
    def active(self) -> int:
        """How many requests are being read or answered."""
        return sum(job.phase in ("reading", "answering") for job in self.engine.jobs)

    def close(self) -> None:
        """Cancel what is running, keep what was read, and end the thread."""
        self._preparing.shutdown(cancel_futures=True)
        self._batch.close()


class Running:
    """A call in the engine: one job for each reply."""

    def __init__(self, worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        self._worker, self._loop = worker, loop
        self.jobs: list[Job] = []
        #: The replies that have ended.
        self.finished: list[Answer] = []
        self._chain: str | None = None
        self._calls: dict[int, FoundCalls] = {}
        self._events: asyncio.Queue[Piece | tuple[int, Job]] = asyncio.Queue()
        self._cancelled = False
        self.began = time.perf_counter()

    def add(self, index: int, request: Request, chain: str | None, scanner: ToolCallScanner | None = None) -> None:
        """Submit one request; ``scanner`` finds its calls of tools. Raises JambaError when the engine refuses it."""
        self._chain = chain
        if scanner is not None:
            self._calls[index] = FoundCalls(index, scanner)

        def said(text: str) -> None:
            self._put(Piece(index, str(text), isinstance(text, Thought)))

        def ended(job: Job) -> None:
            self._put((index, job))

        job = self._worker.engine.submit(request, on_text=said, on_end=ended)
        self.jobs.append(job)
        if self._cancelled:
            job.cancel()

    def cancel(self) -> None:
        """End what has not ended; what was read stays usable."""
        self._cancelled = True
        for job in list(self.jobs):
            job.cancel()
        self._worker.engine.wake()

    async def events(self) -> AsyncIterator[Event]:
        """Pieces of text as they come, ``Waiting`` in silence, and an ``Answer`` at the end of each reply.

        Raises ApiError when a reply fails. Leaving it early cancels the call.
        """
        texts: dict[tuple[int, bool], list[str]] = {}
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
                    for part in self._parts(event):
                        if isinstance(part, Piece):
                            texts.setdefault((part.index, part.thought), []).append(part.text)
                        yield part
                    continue
                index, job = event
                if index in self._calls:
                    for rest in self._calls[index].end(job):
                        if isinstance(rest, str):
                            texts.setdefault((index, False), []).append(rest)
                        yield Piece(index, rest, False) if isinstance(rest, str) else rest
                left -= 1
                self.finished.append(await self._ended(index, job, texts))
                yield self.finished[-1]
        finally:
            coming.cancel()
            if left:
                self.cancel()
                self._worker.counts["cancelled"] += 1

    def _parts(self, piece: Piece) -> Sequence[Piece | CallDelta]:
        """A piece of text as it is shown: without calls of tools, which are apart."""
        calls = self._calls.get(piece.index)
        if calls is None or piece.thought:
            return [piece]
        parts = calls.push(piece.text)
        if calls.enough:
            self.jobs[piece.index].cancel()
        return [Piece(piece.index, part, False) if isinstance(part, str) else part for part in parts]

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

    async def _ended(self, index: int, job: Job, texts: dict[tuple[int, bool], list[str]]) -> Answer:
        worker, counters, result = self._worker, job.counters, job.result
        found = self._calls.get(index)
        calls = found.calls if found is not None else ()
        text = "".join(texts.get((index, False), ())) if found is not None else job.text
        # The tokens after a first call that was enough are not part of what the client sees.
        enough = found is not None and found.enough and job.cancelled
        if self._chain is not None and (text.strip() or calls) and not enough:
            await asyncio.to_thread(worker.keep, job, self._chain, text, calls)
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
            raise ApiError(503, "the server is stopping", kind="unavailable_error", retry_after=_SOONEST)
        worker.counts["answered"] += 1
        worker.log(job)
        # A reply that follows a schema is complete, however many tokens it took.
        complete = result.finish == "stop" or job.request.constrained or enough
        finish = ("tool_calls" if found is not None and found.whole else "stop") if complete else "length"
        return Answer(
            index=index,
            text="".join(texts.get((index, False), ())),
            thoughts="".join(texts.get((index, True), ())).strip("\n"),
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
