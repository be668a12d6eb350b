"""Reads documents ahead: as soon as they are sources of a conversation, so that the first question about them answers at once.

What is read is the beginning of that conversation's next prompt, up to the end of its documents; it stays in the engine and
in the store. One list of documents is read at a time, and gives way to requests for which there is no room beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from jambacli.errors import JambaError
from jambacli.server.errors import ApiError, as_api_error, not_found
from jambacli.server.page.ask import Ask, document_request
from jambacli.server.page.extraction import Extraction
from jambacli.server.page.library import Library
from jambacli.session.session_file import SavedSession

if TYPE_CHECKING:
    from jambacli.server.models import Models
    from jambacli.server.served_model import ServedModel
    from jambacli.server.worker import Worker

logger = logging.getLogger(__name__)

# Seconds between two looks at how far a list is, and the lists that are remembered.
_LOOK, _MOST = 0.25, 64


@dataclass
class Ahead:
    """A list of documents that is read.

    ``state``: "waiting", "reading", "done", "cancelled", "too_large" (it is read in parts, once something is asked) or
    "failed" with a ``message``. ``total``: tokens from the beginning of the conversation to the end of the last document, of
    which ``done`` have been read or were ``known``. ``ends``: about where each document ends among them.
    """

    documents: list[str]
    id: str = field(default_factory=lambda: f"read-{secrets.token_hex(8)}")
    state: str = "waiting"
    message: str = ""
    done: int = 0
    total: int = 0
    known: int = 0
    rate: float | None = None
    ends: list[int] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    def to_json(self) -> dict[str, Any]:
        """The list as the page has it."""
        left = (self.total - self.done) / self.rate if self.rate and self.state == "reading" else None
        starts = [0, *self.ends]
        documents = []
        for i, name in enumerate(self.documents):
            size = self.ends[i] - starts[i] if self.ends else 0
            done = min(size, max(0, self.done - starts[i])) if self.ends else 0
            documents.append({"id": name, "done": done, "total": size})
        about = {"id": self.id, "state": self.state, "message": self.message, "documents": documents}
        return {
            **about,
            "done": self.done,
            "total": self.total,
            "known": self.known,
            "rate": self.rate,
            "left_s": left,
        }


class ReadingAhead:
    """The lists that are read. For the thread of the event loop."""

    def __init__(self, library: Library, extraction: Extraction) -> None:
        self._library, self._extraction = library, extraction
        self._lists: dict[str, Ahead] = {}
        self._gate: asyncio.Lock | None = None

    def get(self, name: str) -> Ahead:
        """The list of that id. Raises ApiError when there is none."""
        found = self._lists.get(name)
        if found is None:
            raise not_found(f"there is no reading {name[:80]!r}")
        return found

    def begin(self, models: Models, model: ServedModel, saved: SavedSession | None, ask: Ask) -> Ahead:
        """Read the documents of ``ask`` as they follow the messages of a session, or as a new one begins with them.

        ``ask.text``: the system message of a new one.
        """
        ahead = Ahead(list(ask.documents))
        while len(self._lists) >= _MOST:
            oldest = next(iter(self._lists))
            self.cancel(self._lists.pop(oldest))
        self._lists[ahead.id] = ahead
        ahead.task = asyncio.ensure_future(self._run(ahead, models, model, saved, ask))
        return ahead

    def cancel(self, ahead: Ahead) -> None:
        """Stop reading a list; what was read stays known."""
        if ahead.state in ("waiting", "reading"):
            ahead.state = "cancelled"
            if ahead.task is not None:
                ahead.task.cancel()

    def stop(self) -> None:
        """Stop reading: the server stops."""
        for ahead in self._lists.values():
            self.cancel(ahead)

    async def _run(
        self, ahead: Ahead, models: Models, model: ServedModel, saved: SavedSession | None, ask: Ask
    ) -> None:
        try:
            sizes = await self._extracted(ahead)
            self._gate = self._gate or asyncio.Lock()
            async with self._gate, models.loaded(model) as worker:
                texts = [self._library.text(self._library.get(name)) for name in ahead.documents]
                entries = [entry for text in texts for entry in text.entries]
                await self._read(ahead, worker, saved, replace(ask, documents=ahead.documents, entries=entries), sizes)
        except asyncio.CancelledError:
            ahead.state = "cancelled"
        except Exception as error:
            problem = as_api_error(error)
            if isinstance(error, JambaError | ApiError):
                logger.info("documents were not read ahead: %s", problem.message)
            else:
                logger.warning("documents were not read ahead: %s: %s", type(error).__name__, error)
            ahead.state, ahead.message = "failed", problem.message

    async def _extracted(self, ahead: Ahead) -> list[int]:
        """Wait until the documents have been read into text; the others are left out. Returns their sizes."""
        kept, sizes = [], []
        for name in ahead.documents:
            with contextlib.suppress(ApiError):
                document = self._library.get(name)
                await self._extraction.finished(document)
                if document.state == "ready":
                    kept.append(name)
                    sizes.append(max(1, document.characters))
        ahead.documents = kept
        return sizes

    async def _read(
        self, ahead: Ahead, worker: Worker, saved: SavedSession | None, ask: Ask, sizes: Sequence[int]
    ) -> None:
        if not ask.entries:
            ahead.state = "done"
            return
        request = await worker.prepare(lambda: document_request(worker.model, saved, ask))
        total = len(request.ids)
        if total + min(1024, worker.ctx // 4) > worker.ctx:
            ahead.state, ahead.total = "too_large", total
            return
        ahead.total = total
        ahead.ends = [total * sum(sizes[: i + 1]) // sum(sizes) for i in range(len(sizes))]
        while not await self._pass(ahead, worker, request):
            while any(job.phase in ("waiting", "reading") for job in worker.engine.jobs):
                await asyncio.sleep(_LOOK)
        ahead.done, ahead.state = total, "done"

    async def _pass(self, ahead: Ahead, worker: Worker, request: Any) -> bool:
        """Read until the end, True, or until another request needs the place."""
        running = await worker.start_request(lambda: request)
        job, engine = running.jobs[0], worker.engine
        began = time.perf_counter()
        try:
            while job.phase != "done":
                if job.phase == "waiting":
                    began = time.perf_counter()
                else:
                    ahead.state, ahead.done, ahead.known = "reading", job.tokens_read, job.counters.reused
                    seconds, read = time.perf_counter() - began, job.tokens_read - job.counters.reused
                    ahead.rate = read / seconds if seconds > 0 and read > 0 else ahead.rate
                others = [other for other in engine.jobs if other is not job]
                busy = sum(other.phase != "waiting" for other in others)
                if job.phase == "reading" and busy + 1 >= engine.parallel and busy < len(others):
                    return False
                await asyncio.sleep(_LOOK)
            if job.error is not None:
                raise job.error
            if job.cancelled:
                raise ApiError(503, "it was stopped", kind="unavailable_error")
            if job.wait_stored is not None:
                await asyncio.to_thread(job.wait_stored)
            worker.counts["prompt_tokens"] += len(job.ids)
            worker.counts["cached_tokens"] += min(job.counters.reused, len(job.ids))
            worker.seconds["prefill"] += job.counters.prefill_seconds
            return True
        finally:
            if job.phase != "done":
                running.cancel()
