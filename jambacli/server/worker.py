"""The one thread that owns the model, and what HTTP sees of it: a call goes in, events come out."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jambacli.cache.prefix_store import PrefixStore
from jambacli.engine.batch import BatchEngine
from jambacli.engine.batch_worker import BatchWorker, Turn
from jambacli.engine.generate import Thought
from jambacli.engine.parallel import default_parallel
from jambacli.engine.prefix_cache import PrefixCache, state_spaces
from jambacli.errors import JambaError, UsageError
from jambacli.server.errors import ApiError, as_api_error, bad_request, context_full
from jambacli.server.history import History
from jambacli.server.prefix_breaks import PrefixBreaks
from jambacli.server.thinking import forbid_thoughts, without_thoughts
from jambacli.session.conversation import Rendered
from jambacli.session.requests import request_of, text_request

if TYPE_CHECKING:
    from jambacli.api import Jamba
    from jambacli.engine.batch_job import Job, Request
    from jambacli.engine.logprobs import TokenLogprob
    from jambacli.engine.sequence import TokenSequence
    from jambacli.server.request import Call
    from jambacli.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# The range of a Retry-After: the OpenAI client gives up above 120 seconds.
_SOONEST, _LATEST = 1, 120


@dataclass(frozen=True)
class Piece:
    """Text of the reply ``index``, to be shown or, if a ``thought``, apart from it.

    ``logprobs``: the tokens up to the end of this text that no piece before had, if the call asks for them. ``prompt``: this
    is the prompt, which is repeated.
    """

    index: int
    text: str
    thought: bool
    logprobs: Sequence[TokenLogprob] = ()
    prompt: bool = False


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

    ``finish``: "stop" or "length". ``stop_text``: the stop string that ended it. Numbers of tokens: of the prompt, those of it
    that were not read again, those generated, and those of them that are thoughts. ``first_token``: seconds until it.
    ``logprobs``, ``prompt_logprobs``: see Call; the first ``unseen`` tokens of the prompt are not in the text.
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
    logprobs: Sequence[TokenLogprob] = ()
    prompt_logprobs: Sequence[TokenLogprob] = ()
    unseen: int = 0


Event = Piece | Waiting | Answer


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
        turn: Turn | None = None,
    ) -> None:
        """``ctx``: maximum tokens of a request. ``parallel``: how many requests at once; ``queue``: how many more may wait.
        ``store``: keep prefixes and replies on the disk. ``keep_alive``: seconds of silence after which ``Waiting`` is sent.
        ``stats``: log what each reply cost. ``turn``: shared with the workers of other models, which compute by turns.

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
        self._batch = BatchWorker(self.engine, turn)

    def _open_store(self, sequence: TokenSequence) -> PrefixCache | None:
        state = sequence.state
        try:
            weights = self.model.weights
            return PrefixCache(PrefixStore(), state_spaces(weights.name, state), state.layout, weights.in_use)
        except JambaError as error:
            logger.warning("%s; nothing will be stored on disk", error)
            return None

    # Requests

    async def prepare(self, work: Callable[[], Any]) -> Any:
        """Run something that needs the template or the tokenizer, in the thread for it."""
        return await asyncio.get_running_loop().run_in_executor(self._preparing, work)

    async def start(self, call: Call) -> EngineCall:
        """Check a call wholly and put it into the queue. Raises ApiError for whatever is wrong with it."""
        self._check_queue()
        running = EngineCall(self, asyncio.get_running_loop())
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
        if call.ctx is not None and call.ctx > self.ctx:
            raise bad_request(f"num_ctx {call.ctx} is more than the {self.ctx} tokens of this server", "num_ctx")
        chain: str | None = None
        documents = [*(d for message in call.messages for d in message.documents), *call.documents]
        if call.messages:
            conversation, chain = self.history.conversation(call)
            rendered = conversation.render()
            if call.thinking is False:
                rendered = without_thoughts(model.tokenizer, rendered)
            firsts = [request_of(model, rendered, call.options, chat=True, documents=documents)]
            more = [rendered] * (call.choices - 1)
        else:
            firsts = [self._plain(prompt, call) for prompt in call.prompts]
            more = []
        requests = []
        for first in firsts:
            if len(first.ids) + (call.options.max_tokens != 0) > self.ctx:
                raise context_full(len(first.ids), self.ctx)
            for i in range(call.choices):
                request = first
                if i:
                    # A constraint is of one reply alone, and equal seeds would give equal replies.
                    options = call.options
                    if options.seed is not None:
                        options = replace(options, seed=(options.seed + i) % (1 << 64))
                    whole = more[0] if more else Rendered(list(first.ids), list(first.boundaries))
                    request = request_of(model, whole, options, chat=bool(call.messages), documents=documents)
                requests.append(replace(request, logprobs=call.logprobs, prompt_logprobs=call.prompt_logprobs))
        return forbid_thoughts(requests) if call.thinking is False else requests, chain

    def _plain(self, prompt: Any, call: Call) -> Request:
        if isinstance(prompt, str):
            return text_request(self.model, prompt, call.options)
        ids = list(prompt)
        return request_of(self.model, Rendered(ids, [len(ids)]), call.options, chat=False)

    def _submit(self, call: Call, running: EngineCall) -> None:
        requests, chain = self.requests(call)
        self._breaks.note(requests[0].ids)
        self._check_queue()
        for index, request in enumerate(requests):
            running.add(index, request, chain, self._echo(call, index, request))
        self.counts["calls"] += 1

    def _echo(self, call: Call, index: int, request: Request) -> Echo | None:
        """What is repeated before the reply ``index``."""
        if not call.echo:
            return None
        prompt, tokenizer = call.prompts[index // call.choices], self.model.tokenizer
        if not isinstance(prompt, str):
            return Echo(tokenizer.decode(request.ids, markers=True), 0)
        bos = tokenizer.bos_id
        added = bos is not None and request.ids[0] == bos and not prompt.startswith(tokenizer.pieces[bos])
        return Echo(prompt, int(added))

    def keep(self, job: Job, chain: str) -> None:
        """Keep a chat's reply, so that the next message of the conversation finds its tokens, and wait until its state is
        written: a client that has the whole answer may go on even if the server is killed."""
        if job.wait_stored is not None:
            job.wait_stored()
        request = job.request
        self.history.keep(chain, job.text, job.result.ids, request.thinking, request.documents)

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


class Running:
    """A call that is being answered: by the engine, by a model that is still being loaded, or by another server.

    ``model``: the name of the one that answers; ``replies``: how many there will be; ``prompt_tokens``: of the first prompt, 0
    if they are not known; ``finished``: the replies that have ended; ``began``: in the time of ``perf_counter``.
    """

    def __init__(self, model: str = "", replies: int = 1) -> None:
        self.model, self.replies, self.prompt_tokens = model, replies, 0
        self.finished: list[Answer] = []
        #: By reply, how many tokens of a prompt that is repeated are not in its text.
        self.unseen: dict[int, int] = {}
        self.began = time.perf_counter()

    @property
    def tokenizer(self) -> Any:
        """The Tokenizer of the model, None where it is not known."""
        return None

    def cancel(self) -> None:
        """End what has not ended."""
        raise NotImplementedError

    def events(self) -> AsyncGenerator[Event, None]:
        """Pieces of text as they come, ``Waiting`` in silence, and an ``Answer`` at the end of each reply.

        Raises ApiError when a reply fails. Leaving it early cancels the call.
        """
        raise NotImplementedError


class EngineCall(Running):
    """A call in the engine: one job for each reply. What was read for it stays usable when it is cancelled."""

    def __init__(self, worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(replies=0)
        self._worker, self._loop = worker, loop
        self.jobs: list[Job] = []
        self._chain: str | None = None
        self._events: asyncio.Queue[Piece | tuple[int, Job]] = asyncio.Queue()
        self._cancelled = False

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self._worker.model.tokenizer

    def add(self, index: int, request: Request, chain: str | None, echo: Echo | None = None) -> None:
        """Submit one request. Raises JambaError when the engine refuses it."""
        self._chain = chain
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
        pieces: dict[int, list[Piece]] = {}
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
                    pieces.setdefault(event.index, []).append(event)
                    yield event
                    continue
                index, job = event
                left -= 1
                self.finished.append(await self._ended(index, job, pieces.pop(index, [])))
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

    async def _ended(self, index: int, job: Job, pieces: Sequence[Piece]) -> Answer:
        worker, counters, result = self._worker, job.counters, job.result
        if self._chain is not None and job.text.strip():
            await asyncio.to_thread(worker.keep, job, self._chain)
        worker.counts["prompt_tokens"] += len(job.ids)
        worker.counts["cached_tokens"] += min(counters.reused, len(job.ids))
        worker.counts["generated_tokens"] += len(result.ids)
        worker.seconds["prefill"] += counters.prefill_seconds
        worker.seconds["decode"] += counters.decode_seconds
        worker.seconds["answering"] += time.perf_counter() - self.began
        if job.error is not None:
            worker.counts["failed"] += 1
            raise as_api_error(job.error)
        if job.cancelled:
            raise ApiError(503, "the server is stopping", kind="unavailable_error", retry_after=_SOONEST)
        worker.counts["answered"] += 1
        worker.log(job)
        # A reply that follows a schema is complete, however many tokens it took.
        complete = result.finish == "stop" or job.request.constraint is not None
        return Answer(
            index=index,
            text="".join(piece.text for piece in pieces if not piece.thought),
            thoughts="".join(piece.text for piece in pieces if piece.thought).strip("\n"),
            finish="stop" if complete else "length",
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
