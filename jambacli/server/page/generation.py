"""A reply that is being generated: it belongs to the conversation on the server, whether a client looks at it or not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from jambacli.documents.citations import SectionSplitter
from jambacli.documents.pages import entries_of
from jambacli.server.errors import ApiError, as_api_error
from jambacli.server.events import Answer, Piece, Running, Waiting
from jambacli.server.page.ask import Ask, Prepared, conversation_of, fingerprint_of, prepare, with_reply
from jambacli.server.page.channel import Channel
from jambacli.server.page.library import Library
from jambacli.server.page.parts import in_parts
from jambacli.session.session_file import SavedSession
from jambacli.session.session_lock import check_model

if TYPE_CHECKING:
    from jambacli.server.page.extraction import Extraction
    from jambacli.server.worker import Worker

logger = logging.getLogger(__name__)

# Seconds between two looks at how far a reply is.
_LOOK = 0.25
# Seconds in which a cancelled reply ends: a chunk of reading.
_LAST = 60.0


@dataclass(frozen=True)
class Ended:
    """A reply's end. ``saved``: the session with it, None if there is none; ``finish``: "stop", "length", "stopped" or
    "error"."""

    saved: SavedSession | None
    finish: str
    stats: dict[str, Any]
    problem: ApiError | None = None


class Answering(Protocol):
    """Who answers: a model here, or another server."""

    async def fitted(self, saved: SavedSession, ask: Ask, say: Callable[[dict[str, Any]], None]) -> Ask:
        """``ask`` as it fits the context: of documents that do not, what their parts say. Raises ApiError."""

    async def start(self, saved: SavedSession, ask: Ask) -> Running:
        """Begin the reply. Raises ApiError."""

    def status(self, began: float) -> dict[str, Any] | None:
        """How far the reply is, as fields of a "status"; None if that is not known. ``began``: when reading began."""

    async def end(
        self, saved: SavedSession, answer: Answer | None, said: str
    ) -> tuple[SavedSession | None, dict[str, Any]]:
        """The session with what was generated, None if nothing was, and figures. ``answer`` is None for a reply that was cut
        off after ``said``."""


class Generation:
    """One reply, from the question to the session's file. For the thread of the event loop.

    ``index``: of the reply among the messages.
    """

    def __init__(
        self,
        name: str,
        ask: Ask,
        channel: Channel,
        answering: Answering,
        documents_ready: Callable[[Callable[[dict[str, Any]], None]], Awaitable[Ask]],
        *,
        index: int,
    ) -> None:
        """``documents_ready``: waits until the documents have been read, says how far they are, and returns the ask with
        them."""
        self.id = f"gen-{secrets.token_hex(8)}"
        self.name, self.kind, self.channel = name, ask.kind, channel
        self.index = index
        self.stopped = False
        self._ask, self._answering, self._ready = ask, answering, documents_ready
        self._running: Running | None = None
        self._task: asyncio.Task[Any] | None = None
        self._last: dict[str, Any] = {}
        self._said = ""
        self._read_since = time.perf_counter()

    @property
    def ask(self) -> Ask:
        """What was asked, with the documents once they have been read."""
        return self._ask

    def stop(self) -> None:
        """End the reply; what was written is kept."""
        self.stopped = True
        if self._running is not None:
            self._running.cancel()
        elif self._task is not None:
            self._task.cancel()

    async def run(self, saved: SavedSession) -> Ended:
        """Generate. Raises nothing but a cancellation of the whole server."""
        try:
            self._ask = await self._until_stopped(self._ready(self._status))
            self._status({"phase": "waiting"})
            self._ask = await self._until_stopped(self._answering.fitted(saved, self._ask, self._status))
            self._running = await self._until_stopped(self._answering.start(saved, self._ask))
            answer = await self._follow(self._running)
        except ApiError as error:
            return await self._ended(saved, None, None if self.stopped else error)
        except asyncio.CancelledError:
            if not self.stopped:
                raise
            return Ended(None, "stopped", {})
        except Exception as error:
            return await self._ended(saved, None, as_api_error(error))
        return await self._ended(saved, answer, None)

    async def _until_stopped(self, work: Awaitable[Any]) -> Any:
        """The result of work that ``stop`` cancels."""
        self._task = asyncio.ensure_future(work)
        try:
            if self.stopped:
                self._task.cancel()
            return await self._task
        finally:
            self._task.cancel()
            self._task = None

    async def _ended(self, saved: SavedSession, answer: Answer | None, problem: ApiError | None) -> Ended:
        if self._running is None:
            return Ended(None, "stopped" if self.stopped else "error", {}, problem)
        try:
            result, stats = await self._answering.end(saved, answer, self._said)
        except Exception as error:
            failure = as_api_error(error)
            logger.warning("a reply in %s could not be kept: %s", self.name, failure)
            return Ended(None, "error", {}, problem or failure)
        finish = "error" if problem is not None else "stopped" if self.stopped else answer.finish if answer else "error"
        return Ended(result, finish, {**stats, "finish": finish}, problem)

    async def _follow(self, running: Running) -> Answer | None:
        """Pass the reply on as it comes; returns it whole."""
        split = SectionSplitter([])
        quiet = self._ask.schema is not None  # JSON is shown when it is whole
        answer: Answer | None = None
        self._read_since = time.perf_counter()
        looking = asyncio.ensure_future(self._look())
        try:
            async with contextlib.aclosing(running.events()) as events:
                async for event in events:
                    if isinstance(event, Piece) and not event.thought:
                        self._said += event.text
                    if isinstance(event, Piece) and event.thought:
                        self.channel.put({"type": "thought", "delta": event.text})
                    elif isinstance(event, Piece) and not quiet:
                        if said := split.push(event.text):
                            self.channel.put({"type": "text", "delta": said})
                    elif isinstance(event, Waiting) and event.total and self._answering.status(0.0) is None:
                        fields = {"done": event.read, "total": event.total, "known": event.known}
                        self._status({"phase": "reading", **fields})
                    elif isinstance(event, Answer):
                        answer = event
            if rest := split.end():
                self.channel.put({"type": "text", "delta": rest})
        finally:
            looking.cancel()
        return answer

    async def _look(self) -> None:
        while True:
            status = self._answering.status(self._read_since)
            if status is not None:
                if status["phase"] == "waiting":
                    self._read_since = time.perf_counter()
                self._status(status)
            await asyncio.sleep(_LOOK)

    def _status(self, fields: dict[str, Any]) -> None:
        """Say how far the reply is, if that is news."""
        same = ("phase", "done", "total", "position", "part")
        if any(self._last.get(name) != fields.get(name) for name in same):
            self._last = fields
            self.channel.put({"type": "status", **fields})


async def documents_ready(
    library: Library, extraction: Extraction, ask: Ask, say: Callable[[dict[str, Any]], None]
) -> Ask:
    """``ask`` with the entries of its documents, once all have been read; those that are refused are left out. Raises ApiError
    if only such are asked about."""
    documents = [library.get(name) for name in ask.documents]
    for document in documents:
        while document.state == "extracting":
            waiting = asyncio.ensure_future(extraction.finished(document))
            while not waiting.done():
                state = extraction.progress(document)
                if state is not None:
                    about = {"done": state.done, "total": state.total, "unit": state.unit, "left_s": state.left_s}
                    say({"phase": "extracting", **about, "text": document.name})
                await asyncio.wait((waiting,), timeout=_LOOK)
            await waiting
    refused = [document for document in documents if document.state == "refused"]
    ready = [document for document in documents if document.state != "refused"]
    if refused and not ready and ask.task is not None:
        raise ApiError(400, refused[0].message, code="document_refused", parameter="documents")
    texts = await asyncio.to_thread(lambda: [library.text(document).document for document in ready])
    return replace(
        ask,
        documents=[document.id for document in ready],
        entries=entries_of(texts) if texts else [],
        left_out=[*ask.left_out, *(document.name for document in refused)],
    )


class ModelAnswering:
    """A model of this server answers: among all other requests, in the thread that owns it."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._prepared: Prepared | None = None
        self._running: Any = None

    async def fitted(self, saved: SavedSession, ask: Ask, say: Callable[[dict[str, Any]], None]) -> Ask:
        """See Answering."""
        ask, self._prepared = await in_parts(self._worker, saved, ask, say)
        return ask

    async def start(self, saved: SavedSession, ask: Ask) -> Running:
        """See Answering."""
        model = self._worker.model

        def make() -> Any:
            self._prepared = self._prepared or prepare(model, saved, ask)
            return self._prepared.request

        self._running = await self._worker.start_request(make)
        return self._running

    def status(self, began: float) -> dict[str, Any] | None:
        """See Answering."""
        job, engine = self._running.jobs[0], self._worker.engine
        total, read, known = len(job.ids), job.tokens_read, job.counters.reused
        if job.phase == "waiting":
            if (ahead := self._ahead(job)) is not None:
                return ahead
            return {"phase": "waiting", "position": engine.queue_position(job), "total": total}
        if job.phase == "reading":
            seconds = time.perf_counter() - began
            rate = (read - known) / seconds if seconds > 0 and read > known else None
            left = (total - read) / rate if rate else None
            return {"phase": "reading", "done": read, "total": total, "known": known, "rate": rate, "left_s": left}
        counters = job.counters
        rate = counters.decoded / counters.decode_seconds if counters.decode_seconds else None
        return {"phase": "writing", "done": len(job.result.ids), "total": None, "rate": rate}

    def _ahead(self, job: Any) -> dict[str, Any] | None:
        """How far the request is whose beginning ``job`` waits for: what is read ahead for it."""
        for other in self._worker.engine.jobs:
            size = len(other.ids)
            if other.phase != "reading" or size > len(job.ids) or not (job.array[:size] == other.array).all():
                continue
            read = other.tokens_read - other.counters.reused
            rate = read / other.counters.prefill_seconds if other.counters.prefill_seconds > 0 and read > 0 else None
            left = (len(job.ids) - other.tokens_read) / rate if rate else None
            about = {"done": other.tokens_read, "total": len(job.ids), "known": other.counters.reused}
            return {"phase": "reading", **about, "rate": rate, "left_s": left}
        return None

    async def end(
        self, saved: SavedSession, answer: Answer | None, said: str
    ) -> tuple[SavedSession | None, dict[str, Any]]:
        """See Answering."""
        return await asyncio.to_thread(self._end, saved)

    def _end(self, saved: SavedSession) -> tuple[SavedSession | None, dict[str, Any]]:
        job, worker = self._running.jobs[0], self._worker
        until = time.monotonic() + _LAST
        while job.phase != "done" and time.monotonic() < until:  # it was cancelled just now
            time.sleep(_LOOK / 10)
        if not job.result.ids or self._prepared is None:
            return None, {}
        if job.wait_stored is not None:
            job.wait_stored()
        mode = worker.model.model.precise
        ended = with_reply(
            worker.model,
            replace(saved, kv_type=worker.kv_type, precise=mode, ctx=max(saved.ctx, worker.ctx)),
            self._prepared,
            job,
            worker.stores,
        )
        return ended, {**stats_of(job), "document_tokens": self._prepared.documents_end}


def stats_of(job: Any) -> dict[str, Any]:
    """The figures of a reply."""
    counters = job.counters
    read, write = counters.prefill_seconds, counters.decode_seconds
    return {
        "prompt_tokens": len(job.ids),
        "reused_tokens": min(counters.reused, len(job.ids)),
        "read_tokens": counters.prefilled,
        "written_tokens": len(job.result.ids),
        "read_seconds": read,
        "write_seconds": write,
        "read_rate": counters.prefilled / read if read else None,
        "write_rate": counters.decoded / write if write else None,
        "first_token_seconds": job.first_token_seconds,
    }


def check_session(worker: Worker, saved: SavedSession) -> None:
    """Raise ApiError for a session that the model cannot continue."""
    from jambacli.errors import JambaError

    conversation_of(worker.model, replace(saved, turns=[]))
    if fingerprint_of(worker.model) == saved.fingerprint:
        return
    try:
        check_model(saved, worker.model)
    except JambaError as error:
        raise ApiError(409, error.worded(), code="other_model") from error
