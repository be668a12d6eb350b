"""The one thread that owns the model, and what HTTP sees of it: a call goes in, events come out."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jambacli.cache.prefix_store import PrefixStore
from jambacli.engine.batch import BatchEngine
from jambacli.engine.batch_worker import BatchWorker, Turn
from jambacli.engine.parallel import default_parallel
from jambacli.engine.prefix_cache import PrefixCache, state_spaces
from jambacli.errors import JambaError, UsageError
from jambacli.server.engine_call import Echo, EngineCall
from jambacli.server.errors import SOONEST, ApiError, as_api_error, bad_request, context_full
from jambacli.server.history import History
from jambacli.server.lora import chosen_adapters
from jambacli.server.prefix_breaks import PrefixBreaks
from jambacli.server.prompt_thread import PromptThread
from jambacli.session.conversation import Rendered
from jambacli.session.reply_tools import reply_tools
from jambacli.session.requests import request_of, text_request
from jambacli.session.thinking import without_thoughts

if TYPE_CHECKING:
    from jambacli.api import Jamba
    from jambacli.engine.batch_job import Job, Request
    from jambacli.engine.sequence import TokenSequence
    from jambacli.server.request import Call
    from jambacli.text.tool_calls import ToolCall

logger = logging.getLogger(__name__)

# The range of a Retry-After: the OpenAI client gives up above 120 seconds.
_LATEST = 120


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
        self.kv_type = kv_type or "f16"
        #: Whether prefixes and replies are kept on the disk.
        self.stores = store = store and model.path is not None
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
        self._prompts = PromptThread(model.cancel_rendering)
        self._batch = BatchWorker(self.engine, turn)

    def _open_store(self, sequence: TokenSequence) -> PrefixCache | None:
        state = sequence.state
        try:
            weights = self.model.weights_with(state.adapters)
            return PrefixCache(PrefixStore(), state_spaces(weights.name, state), state.layout, weights.in_use)
        except JambaError as error:
            self.model.say_unstored(error)
            return None

    # Requests

    async def prepare(self, work: Callable[[], Any]) -> Any:
        """Run something that needs the template or the tokenizer, in the thread for it."""
        return await self._prompts.run(work)

    async def start(self, call: Call) -> EngineCall:
        """Check a call wholly and put it into the queue. Raises ApiError for whatever is wrong with it."""
        return await self._start(functools.partial(self._submit, call))

    async def start_request(self, make: Callable[[], Request]) -> EngineCall:
        """Put the request that ``make`` returns into the queue; it is called in the thread for prompts. What is generated is
        not kept in the history: the caller has the job. Raises ApiError."""
        return await self._start(functools.partial(self._submit_request, make))

    async def _start(self, submit: Callable[[EngineCall], None]) -> EngineCall:
        self._check_queue()
        running = EngineCall(self, asyncio.get_running_loop())
        try:
            await self.prepare(functools.partial(submit, running))
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
        after = int(min(_LATEST, max(SOONEST, each * waiting / self.engine.parallel)))
        message = f"the server is busy: {waiting} requests wait; try again in {after} seconds"
        raise ApiError(503, message, kind="unavailable_error", code="server_busy", retry_after=after)

    def requests(self, call: Call) -> tuple[list[Request], str | None]:
        """The requests to the engine that a call becomes, and the hash of its messages. Raises JambaError or ApiError."""
        model = self.model
        if call.ctx is not None and call.ctx > self.ctx:
            raise bad_request(f"num_ctx {call.ctx} is more than the {self.ctx} tokens of this server", "num_ctx")
        call = replace(call, options=replace(call.options, think=call.think))
        chain: str | None = None
        documents = [*(d for message in call.messages for d in message.documents), *call.documents]
        if call.messages:
            conversation, chain = self.history.conversation(call)
            rendered = conversation.render()
            if call.think is False:
                rendered = without_thoughts(model.tokenizer, rendered)
            firsts = [request_of(model, rendered, call.options, chat=True, documents=documents, tools=call.tools)]
            more = [rendered] * (call.choices - 1)
        else:
            firsts = [self._plain(prompt, call) for prompt in call.prompts]
            more = []
        adapters = chosen_adapters(model.loras, call.lora)
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
                    chat = bool(call.messages)
                    tools = call.tools if chat else None
                    request = request_of(model, whole, options, chat=chat, documents=documents, tools=tools)
                request = replace(request, logprobs=call.logprobs, prompt_logprobs=call.prompt_logprobs)
                requests.append(replace(request, adapters=adapters))
        return requests, chain

    def _plain(self, prompt: Any, call: Call) -> Request:
        if isinstance(prompt, str):
            return text_request(self.model, prompt, call.options)
        ids = list(prompt)
        return request_of(self.model, Rendered(ids, [len(ids)]), call.options, chat=False)

    def _submit(self, call: Call, running: EngineCall) -> None:
        requests, chain = self.requests(call)
        tools = reply_tools(self.model, call.tools)
        self._breaks.note(requests[0].ids)
        self._check_queue()
        for index, request in enumerate(requests):
            scanner = tools.scanner(request.thinking) if tools is not None else None
            running.add(index, request, chain, self._echo(call, index, request), scanner)
        self.counts["calls"] += 1

    def _submit_request(self, make: Callable[[], Request], running: EngineCall) -> None:
        request = make()
        if len(request.ids) + 1 > self.ctx:
            raise context_full(len(request.ids), self.ctx)
        self._check_queue()
        running.add(0, request, None)
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

    def keep(self, job: Job, chain: str, text: str, calls: Sequence[ToolCall]) -> None:
        """Keep a chat's reply, so that the next message of the conversation finds its tokens, and wait until its state is
        written: a client that has the whole answer may go on even if the server is killed."""
        if job.wait_stored is not None:
            job.wait_stored()
        if job.reply.partial:  # its tokens are not all of the text that the client has: that is read as it is
            return
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

    def stop_preparing(self) -> None:
        """Let prompts that are not ready in a moment fail: the server stops."""
        self._prompts.stop_soon()

    def close(self) -> None:
        """Cancel what is running, keep what was read, and end the thread."""
        self._prompts.close()
        self._batch.close()
