"""The conversations while the server runs: which model goes on with them, the replies that are generated, their events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from jambacli.documents.pages import DocumentEntry
from jambacli.server.errors import ApiError, as_api_error, bad_request
from jambacli.server.page import session_view as view
from jambacli.server.page.ask import Ask, conversation_of, fingerprint_of
from jambacli.server.page.channel import Channel
from jambacli.server.page.extraction import Extraction
from jambacli.server.page.generation import (
    Answering,
    Generation,
    ModelAnswering,
    check_session,
    documents_ready,
)
from jambacli.server.page.library import Library
from jambacli.server.page.notes import Notes
from jambacli.server.page.questions import first_index, pending_message, reply_index, unsent_question
from jambacli.server.page.reading import ReadingAhead
from jambacli.server.page.reply_options import read_reply_options
from jambacli.server.page.sessions import MOST_NAME, MOST_TEXT, MOST_TITLE, Sessions, text_field
from jambacli.server.page.upstream_answering import UpstreamAnswering
from jambacli.session.session_file import SavedSession

if TYPE_CHECKING:
    from jambacli.server.models import Models
    from jambacli.server.served_model import ServedModel
    from jambacli.server.upstream import Upstream

logger = logging.getLogger(__name__)

# Seconds between two looks at sessions that a client watches, and after which a silent stream gives a sign of life.
_WATCH, _QUIET = 1.0, 15.0
# Conversations whose events are kept, at least.
_CHANNELS = 512


class Conversations:
    """The conversations. For the thread of the event loop."""

    def __init__(
        self,
        models: Models | Upstream,
        library: Library,
        extraction: Extraction,
        *,
        keep: bool,
        system: str | None = None,
    ) -> None:
        """``keep``: on the disk, with the terminal's sessions. ``system``: the message of those that are begun without one."""
        self._system = system
        self.models, self.library, self.extraction = models, library, extraction
        self.sessions = Sessions(library, keep=keep)
        self.ahead = ReadingAhead(library, extraction)
        self._channels: dict[str, Channel] = {}
        self._generations: dict[str, Generation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        # Sessions that are being changed, and when those that clients watch were changed last.
        self._changing: set[str] = set()
        self._versions: dict[str, float] = {}

    # Looking

    async def listed(self, query: str) -> list[dict[str, Any]]:
        """What the list shows of every session, or of those with all words of a query."""
        entries = await asyncio.to_thread(self.sessions.listed, query)
        return [{**entry, "running": entry["name"] in self._generations} for entry in entries]

    async def show(self, name: str) -> dict[str, Any]:
        """All that the page shows of a session. Raises ApiError."""
        channel, generation = self._channel(name), self._generations.get(name)
        saved, shown = await asyncio.to_thread(self.sessions.show, name)
        context, reason = await self._continued(saved)
        elsewhere = generation is None and await asyncio.to_thread(self.sessions.open_elsewhere, name)
        if elsewhere:
            reason = f"{name} is open in another process: close it there to go on here"
        running = None
        if generation is not None and self._generations.get(name) is generation:
            about = {"generation": generation.id, "kind": generation.kind, "index": generation.index}
            running = {**about, "from": channel.since}
        more = {"context": context, "writable": reason is None, "reason": reason, "open_elsewhere": elsewhere}
        unsent = shown["unsent"] if generation is None else None
        return {**shown, **more, "unsent": unsent, "running": running, "next": channel.next}

    async def _continued(self, saved: SavedSession) -> tuple[int | None, str | None]:
        """The context of the model that goes on with a session, and why none can."""
        from jambacli.server.models import Models

        if not isinstance(self.models, Models):
            try:
                infos = await self.models.infos()
            except ApiError as error:
                return None, error.message
            known = {info.name: info.context for info in infos}
            return known.get(saved.model) or next(iter(known.values()), 0) or None, None
        try:
            worker = self.model_of(saved).worker
            if worker is None:
                return saved.ctx, None
            await asyncio.to_thread(check_session, worker, saved)
        except ApiError as error:
            return None, error.message
        return worker.ctx, None

    def model_of(self, saved: SavedSession) -> ServedModel:
        """The model that goes on with a session. Raises ApiError."""
        from jambacli.server.models import Models

        assert isinstance(self.models, Models)
        if not self.models.several:
            return self.models.find(None)
        wanted = self.sessions.notes.read(saved.name).options.get("model")
        if isinstance(wanted, str):
            return self.models.find(wanted)
        for model in self.models.all():
            if model.path is not None and str(model.path) == saved.model_path:
                return model
        message = f"session {saved.name!r} was made with {saved.model}, which is not served"
        raise ApiError(409, message, code="other_model")

    # Changing

    async def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Begin a conversation. Raises ApiError."""
        name, title = text_field(body, "name", MOST_NAME), text_field(body, "title", MOST_TITLE)
        system, model = text_field(body, "system", MOST_TEXT), text_field(body, "model", MOST_TITLE)
        system = self._system if system is None else system
        options = read_reply_options(body.get("options"))
        notes = Notes(title=" ".join((title or "").split()), documents=self.documents(body), options=options)
        if model:
            notes.options["model"] = model
        saved = await self._blank(self.sessions.new_name(name), system, model)
        return await self.show(await asyncio.to_thread(self.sessions.create, saved, notes, bool(name)))

    async def _blank(self, name: str, system: str | None, model: str | None) -> SavedSession:
        """A session without messages, for a model."""
        from jambacli.server.models import Models

        now = time.time()
        more: dict[str, Any] = {
            "turns": [{"role": "system", "content": system}] if system else [],
            "system": system or None,
        }
        if not isinstance(self.models, Models):
            served = await self.models.named(model)
            return SavedSession(name, served, self.models.client.root, "", "f16", 1 << 20, now, now, **more)
        async with self.models.using(model) as worker:
            loaded = worker.model
            mark = await asyncio.to_thread(fingerprint_of, loaded)
            more |= {"precise": loaded.model.precise, "chat_template": loaded.chat_template}
            saved = SavedSession(
                name, loaded.name, str(loaded.path), mark, worker.kv_type, worker.ctx, now, now, **more
            )
            conversation_of(loaded, saved)
            return saved

    async def change(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Change a session's name, title, options, system message or waiting documents. Raises ApiError."""
        # What cannot be read stays in the list, with the reason, until a message leaves it out or a person takes it away.
        documents = self.documents(body, refused=True) if body.get("documents") is not None else None
        async with self._alone(name):
            new = await asyncio.to_thread(self.sessions.change, name, body, documents)
        if new != name and name in self._channels:
            self._channels[new] = self._channels.pop(name)
            self._versions[new] = self.sessions.store.version(new)
        return await self.show(new)

    async def delete(self, name: str) -> int:
        """Delete a session, of which a reply is stopped; returns the bytes freed. Raises ApiError."""
        await asyncio.to_thread(self.sessions.read, name)
        await self.stop(name)
        async with self._alone(name):
            freed = await asyncio.to_thread(self.sessions.delete, name)
        self._channels.pop(name, None)
        return freed

    async def branch(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A new session with the first messages of another. Raises ApiError."""
        return await self.show(await asyncio.to_thread(self.sessions.branch, name, body))

    async def select(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Show another version of a message. Raises ApiError."""
        async with self._alone(name):
            await asyncio.to_thread(self.sessions.select, name, body)
        return await self.show(name)

    @contextlib.asynccontextmanager
    async def _alone(self, name: str) -> AsyncIterator[None]:
        """Change a session that no reply is written to. Raises ApiError."""
        self._begin_change(name)
        try:
            yield
        finally:
            self._changing.discard(name)
            if name in self._channels:
                self._versions[name] = self.sessions.store.version(name)
                self._channels[name].put({"type": "changed"})

    def _begin_change(self, name: str) -> None:
        if name in self._generations or name in self._changing:
            raise ApiError(409, f"a reply is being written in {name}", code="busy")
        self._changing.add(name)

    # Replies

    def documents(self, body: Mapping[str, Any], *, refused: bool = False) -> list[str]:
        """The ids of documents in a body; those that cannot be read are left out, unless ``refused`` ones are wanted too.

        Raises ApiError for one that there is not, and if none can be read.
        """
        value = body.get("documents") or []
        if not isinstance(value, list) or len(value) > 1000 or not all(isinstance(name, str) for name in value):
            raise bad_request("the field 'documents' must be a list of ids", "documents")
        documents = [self.library.get(name) for name in dict.fromkeys(value)]
        kept = [document.id for document in documents if refused or document.state != "refused"]
        if documents and not kept:
            raise ApiError(400, documents[0].message, code="document_refused", parameter="documents")
        return kept

    async def start(self, name: str, make: Callable[[SavedSession, Notes], Ask]) -> dict[str, Any]:
        """Start a reply to what ``make``, called in a thread, returns for the session. Raises ApiError."""
        await asyncio.to_thread(self.sessions.read, name)
        self._begin_change(name)
        held = contextlib.ExitStack()
        try:
            await asyncio.to_thread(held.enter_context, self.sessions.locked(name))
            saved, notes, ask = await asyncio.to_thread(self._asked, name, make)
            answering, release = await self._answering(saved, notes)
            held.callback(release)
            # Whatever happens from here on, the question is not lost.
            notes.unsent = unsent_question(saved, ask)
            await asyncio.to_thread(self.sessions.notes.write, name, notes)
        except BaseException:
            held.close()
            raise
        finally:
            self._changing.discard(name)
        channel = self._channel(name)
        since = channel.begin()
        ready = partial(documents_ready, self.library, self.extraction, ask)
        generation = Generation(name, ask, channel, answering, ready, index=reply_index(saved, ask))
        self._generations[name] = generation
        about = {"generation": generation.id, "kind": generation.kind}
        channel.put({"type": "begin", **about, "index": first_index(saved, ask)})
        if ask.kind != "regenerate":
            channel.put({"type": "message", "message": pending_message(saved, ask)})
        task = asyncio.ensure_future(self._run(generation, saved, notes, held))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return {"generation": generation.id, "from": since}

    def _asked(self, name: str, make: Callable[[SavedSession, Notes], Ask]) -> tuple[SavedSession, Notes, Ask]:
        saved, notes = self.sessions.read(name), self.sessions.notes.read(name)
        ask = make(saved, notes)
        found = [document for name in notes.documents if (document := self.library.find(name)) is not None]
        refused = [document.name for document in found if document.state == "refused"]
        citations = ask.citations and notes.options.get("citations", True)
        return saved, notes, replace(ask, citations=citations, left_out=refused)

    async def _answering(self, saved: SavedSession, notes: Notes) -> tuple[Answering, Callable[[], None]]:
        """Who answers, and what to call when it has."""
        from jambacli.server.models import Models

        if not isinstance(self.models, Models):
            model = await self.models.named(saved.model)
            return UpstreamAnswering(self.models, model, partial(self._turn_entries, notes)), lambda: None
        using = contextlib.AsyncExitStack()
        worker = await using.enter_async_context(self.models.loaded(self.model_of(saved)))
        try:
            await asyncio.to_thread(check_session, worker, saved)
        except BaseException:
            await using.aclose()
            raise

        def release() -> None:
            closing = asyncio.ensure_future(using.aclose())
            self._tasks.add(closing)
            closing.add_done_callback(self._tasks.discard)

        return ModelAnswering(worker), release

    def _turn_entries(self, notes: Notes, turn: Mapping[str, Any], index: int) -> list[DocumentEntry]:
        if turn["role"] != "user":
            return []
        return [n.entry for n in view.numbered(self.library, turn, notes.known(turn, index))]

    async def _run(self, generation: Generation, saved: SavedSession, notes: Notes, held: contextlib.ExitStack) -> None:
        """Generate a reply, and keep it. ``held``: the session's lock and the model."""
        name, channel, finish = generation.name, generation.channel, "error"
        try:
            ended = await generation.run(saved)
            finish = ended.finish
            if ended.saved is not None:
                keep = partial(self.sessions.keep_reply, saved, ended.saved, notes, generation.ask, ended.stats)
                for message in await asyncio.to_thread(keep):
                    channel.put({"type": "message", "message": message})
                    if message["role"] == "assistant":
                        channel.put({"type": "citations", "citations": message["citations"]})
                channel.put({"type": "stats", "stats": ended.stats})
            else:
                why = ended.problem.message if ended.problem is not None else ""
                notes.unsent = {**(notes.unsent or {}), "message": why}
                await asyncio.to_thread(self.sessions.notes.write, name, notes)
            if ended.problem is not None:
                self._failed(channel, ended.problem)
        except asyncio.CancelledError:  # the server stops; the question is in the notes
            raise
        except Exception as error:
            logger.warning("a reply in %s could not be kept: %s: %s", name, type(error).__name__, error)
            self._failed(channel, as_api_error(error))
            finish = "error"
        finally:
            held.close()
            self._versions[name] = self.sessions.store.version(name)
            self._generations.pop(name, None)
            channel.put({"type": "done", "generation": generation.id, "finish": finish})

    def _failed(self, channel: Channel, error: ApiError) -> None:
        channel.put({"type": "error", "message": error.message, "code": error.code, **error.more})

    async def stop(self, name: str) -> bool:
        """End the reply that is being generated, and wait until it is kept; returns whether there was one."""
        generation = self._generations.get(name)
        if generation is None:
            return False
        generation.stop()
        while self._generations.get(name) is generation:
            await asyncio.sleep(0.02)
        return True

    def stop_watching(self) -> None:
        """End the streams of events: at once, or with the reply that is being generated. The server stops."""
        self._stopping = True
        self.ahead.stop()

    # Events

    async def events(self, name: str, start: int | None, until_done: bool) -> AsyncIterator[bytes]:
        """The events of a session from a number on, as server-sent events; without an end, or until the running reply's."""
        channel = self._channel(name)
        yield b": events\n\n"
        if until_done and name not in self._generations and start in (None, channel.next):
            return
        self._versions.setdefault(name, self.sessions.store.version(name))
        sent = time.monotonic()
        async with contextlib.aclosing(channel.read(start, _WATCH)) as events:
            async for data in events:
                if data is not None:
                    sent = time.monotonic()
                    yield data
                    if until_done and b'"type":"done"' in data:
                        return
                    continue
                if self._stopping and name not in self._generations:
                    return
                self._watch(name, channel)
                if time.monotonic() - sent > _QUIET:
                    sent = time.monotonic()
                    yield b": quiet\n\n"

    def _watch(self, name: str, channel: Channel) -> None:
        """Say that a session was changed by another process."""
        if name in self._generations or name in self._changing:
            return
        version = self.sessions.store.version(name)
        if version != self._versions.get(name):
            self._versions[name] = version
            channel.put({"type": "changed"})

    def _channel(self, name: str) -> Channel:
        if name not in self._channels:
            if len(self._channels) >= 2 * _CHANNELS:
                idle = [n for n, c in self._channels.items() if not c.readers and n not in self._generations]
                for other in idle[:_CHANNELS]:
                    del self._channels[other]
                    self._versions.pop(other, None)
            self._channels[name] = Channel()
        return self._channels[name]
