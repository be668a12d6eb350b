"""Documents larger than the context: they are asked part by part, and the answer is made of what the parts say.

As ``jamba ask --passes`` and ``jamba summarize`` do. The replies to the parts are stored, so that a question that was stopped
goes on where it was.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from jambacli.cache.prefix_store import PrefixStore, text_hash
from jambacli.cache.reply_cache import ReplyCache, reply_key
from jambacli.documents.ask import asked_part, telling
from jambacli.documents.citations import Cited
from jambacli.documents.modes import Modes, Task
from jambacli.documents.pages import DocumentEntry
from jambacli.documents.passes import PART_REPLY, group_sources, group_span, plan
from jambacli.documents.reader import REPLY_TOKENS
from jambacli.engine.options import GenerationOptions
from jambacli.errors import JambaError
from jambacli.server.errors import ApiError
from jambacli.server.events import Answer
from jambacli.server.page.ask import Ask, Prepared, prepare
from jambacli.session.conversation import Conversation, Rendered
from jambacli.session.requests import request_of
from jambacli.session.session_file import SavedSession
from jambacli.session.thinking import render_reply, switch_thoughts
from jambacli.text.markup import THINK

if TYPE_CHECKING:
    from jambacli.server.worker import Worker

# Rounds of parts: each reads the replies of the one before.
_ROUNDS = 8
# Parts that are read at once, and the seconds between two looks at how far they are.
_AT_ONCE, _LOOK = 4, 0.25

Say = Callable[[dict[str, Any]], None]


def reply_room(options: GenerationOptions, ctx: int) -> int:
    """The tokens of the context that are kept for a reply."""
    return min(options.max_tokens or REPLY_TOKENS, max(1, ctx // 4))


@dataclass(frozen=True)
class _PartReader:
    """What ``plan`` needs: the sizes of prompts about documents alone, with the system message of a session."""

    worker: Worker
    system: str | None
    options: GenerationOptions

    @property
    def model(self) -> Any:
        """The model."""
        return self.worker.model

    @property
    def ctx(self) -> int:
        """The context, in tokens."""
        return self.worker.ctx

    def reserve(self) -> int:
        """Tokens kept for the reply."""
        return reply_room(self.options, self.ctx)

    def prompt(self, entries: Sequence[DocumentEntry], task: Task) -> list[int]:
        """The tokens of a prompt."""
        return self.rendered(entries, task).ids

    def rendered(self, entries: Sequence[DocumentEntry], task: Task) -> Rendered:
        """A prompt."""
        conversation = Conversation(self.model.template, self.model.tokenizer, self.system)
        switch_thoughts(conversation, self.options.think)
        modes = Modes(conversation)
        conversation.add_user(modes.instruction(task), [entry.as_document() for entry in entries], modes.knobs(task))
        return render_reply(conversation, self.options.think)


@dataclass
class _Progress:
    """How far the parts are, of all of them together."""

    parts: int
    ended: int = 0
    total: int = 0
    done: int = 0
    read: int = 0
    began: float = field(default_factory=time.perf_counter)

    def status(self, jobs: Sequence[Any]) -> dict[str, Any]:
        """The fields of a "status"."""
        done = self.done + sum(job.tokens_read for job in jobs)
        read = self.read + sum(job.tokens_read - job.counters.reused for job in jobs if job.phase != "waiting")
        rate = read / (time.perf_counter() - self.began) if read > 0 else None
        left = max(0, self.total - done) / rate if rate else None
        about = {"done": done, "total": max(done, self.total), "known": 0, "rate": rate, "left_s": left}
        return {"phase": "reading", **about, "part": min(self.parts, self.ended + 1), "parts": self.parts}


async def in_parts(worker: Worker, saved: SavedSession, ask: Ask, say: Say) -> tuple[Ask, Prepared | None]:
    """``ask`` with what its documents say about it in their place if they do not fit, and what was prepared of it if that is
    known already. Raises ApiError."""
    bound = sum(len(entry.text.encode("utf-8", "replace")) + 64 for entry in ask.entries)
    if not ask.entries or bound + len(saved.tokens) + REPLY_TOKENS <= worker.ctx // 2:
        return ask, None  # a token is a byte at least
    system = saved.turns[0]["content"] if saved.turns and saved.turns[0]["role"] == "system" else None
    reader = _PartReader(worker, system, ask.options)
    originals = [text_hash(entry.text) for entry in ask.entries]
    for _ in range(_ROUNDS):
        prepared, groups = await worker.prepare(functools.partial(_planned, worker, saved, ask, reader))
        if groups is None:
            return ask, prepared
        said = await _read_parts(worker, reader, ask, groups, say)
        ask = replace(ask, entries=telling(said), parts=ask.parts + len(groups), originals=originals)
    raise ApiError(400, "the documents do not get short enough for the context", code="context_length_exceeded")


def _planned(
    worker: Worker, saved: SavedSession, ask: Ask, reader: _PartReader
) -> tuple[Prepared, list[list[DocumentEntry]] | None]:
    """What is prepared, and the groups in which the documents are read, None if all fit. For the thread for prompts."""
    prepared = prepare(worker.model, saved, ask)
    if len(prepared.request.ids) + reader.reserve() <= worker.ctx:
        return prepared, None
    return prepared, plan(reader, ask.entries, _task(ask, 99, 99), each=_task(ask, 99, 99)).groups


def _task(ask: Ask, part: int, parts: int) -> Task:
    text = ask.each(part, parts) if ask.each is not None else asked_part(ask.text, part, parts)
    return Task(text, ask.citations and ask.schema is None, ask.schema)


async def _read_parts(
    worker: Worker, reader: _PartReader, ask: Ask, groups: Sequence[Sequence[DocumentEntry]], say: Say
) -> list[DocumentEntry]:
    cache = _reply_cache(worker)
    progress = _Progress(len(groups))
    calls: dict[int, Any] = {}
    gate = asyncio.Semaphore(max(1, min(worker.engine.parallel, _AT_ONCE)))

    async def one(index: int, group: Sequence[DocumentEntry]) -> DocumentEntry:
        async with gate:
            text = await _reply(worker, reader, ask, (index + 1, len(groups)), group, cache, progress, calls)
        progress.ended += 1
        return DocumentEntry(f"Part {index + 1}: {group_span(group)}", text, tuple(group_sources(group)))

    tasks = [asyncio.ensure_future(one(i, group)) for i, group in enumerate(groups)]
    progress.total = sum(len(entry.text) for group in groups for entry in group) // 4
    try:
        while not all(task.done() for task in tasks):
            say(progress.status([call.jobs[0] for call in calls.values()]))
            await asyncio.wait(tasks, timeout=_LOOK, return_when=asyncio.FIRST_EXCEPTION)
            if any(task.done() and task.exception() is not None for task in tasks):
                break
        return [await task for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        for call in list(calls.values()):
            call.cancel()


async def _reply(
    worker: Worker,
    reader: _PartReader,
    ask: Ask,
    place: tuple[int, int],
    group: Sequence[DocumentEntry],
    cache: ReplyCache | None,
    progress: _Progress,
    calls: dict[int, Any],
) -> str:
    """What one part says. ``place``: its number, and how many there are."""
    task = _task(ask, *place)
    rendered = await worker.prepare(lambda: reader.rendered(group, task))
    thinks = worker.model.tokenizer.marker_id(THINK) in rendered.ids[-4:]
    usual = PART_REPLY * (4 if thinks else 1)
    most = min(ask.options.max_tokens or usual, max(1, worker.ctx // 8))
    sampling = {**ask.options.chosen_sampling(), "stop": ask.options.stop}
    weights = worker.model.fingerprint if worker.stores else worker.model.name
    key = reply_key(weights, worker.kv_type, list(rendered.ids), most, sampling, task.citations)
    found = await asyncio.to_thread(cache.get, key) if cache is not None else None
    if found is not None:
        progress.done += len(rendered.ids)
        return str(found["text"])
    options = replace(ask.options, max_tokens=most, schema=task.schema)
    documents = [entry.as_document() for entry in group]

    def make() -> Any:
        return request_of(worker.model, rendered, options, chat=True, documents=documents)

    call = calls[place[0]] = await worker.start_request(make)
    answer: Answer | None = None
    try:
        async for event in call.events():
            answer = event if isinstance(event, Answer) else answer
    finally:
        call.cancel()
        del calls[place[0]]
    job = call.jobs[0]
    progress.done += len(job.ids)
    progress.read += job.counters.prefilled
    text = "".join(Cited(json=task.schema is not None).answer([answer.text if answer is not None else ""])).strip()
    if cache is not None:
        hashes = [text_hash(entry.text) for entry in group]
        await asyncio.to_thread(cache.put, key, text, hashes, numbers=[])
    return text


def _reply_cache(worker: Worker) -> ReplyCache | None:
    try:
        return ReplyCache(PrefixStore().root) if worker.stores else None
    except JambaError:
        return None
