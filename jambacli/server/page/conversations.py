"""The conversations: the sessions of `jamba chat` and `ask -i` as the page lists, shows, changes and continues them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from jambacli.cache.prefix_store import PrefixStore
from jambacli.engine.options import GenerationOptions
from jambacli.engine.prefix_cache import spaces_of
from jambacli.errors import JambaError, UsageError
from jambacli.server.errors import ApiError, as_api_error, bad_request
from jambacli.server.page import session_view as view
from jambacli.server.page.ask import Ask, conversation_of, fingerprint_of
from jambacli.server.page.channel import Channel
from jambacli.server.page.extraction import Extraction
from jambacli.server.page.generation import (
    Answering,
    Generation,
    ModelAnswering,
    UpstreamAnswering,
    check_session,
    documents_ready,
)
from jambacli.server.page.library import Library
from jambacli.server.page.notes import NoteFiles, Notes, chain_key
from jambacli.server.page.reply_options import generation_options, read_reply_options
from jambacli.server.page.session_store import DiskSessions, MemorySessions, SessionStore
from jambacli.session import session_file
from jambacli.session.session_file import SavedSession

if TYPE_CHECKING:
    from jambacli.server.models import Models
    from jambacli.server.served_model import ServedModel
    from jambacli.server.upstream import Upstream
    from jambacli.server.worker import Worker

logger = logging.getLogger(__name__)

# Versions of a message that are kept; seconds between two looks at sessions that a client watches.
_MOST_VERSIONS, _WATCH = 20, 1.0
#: Characters of a message.
MOST_TEXT = 4_000_000


class Conversations:
    """The sessions, their notes, and the replies that are being generated. For the thread of the event loop, unless said."""

    def __init__(
        self,
        models: Models | Upstream,
        library: Library,
        extraction: Extraction,
        defaults: GenerationOptions,
        *,
        keep: bool,
    ) -> None:
        """``defaults``: of replies. ``keep``: on the disk, with the terminal's sessions."""
        self.models, self.library, self.extraction, self._defaults = models, library, extraction, defaults
        self.store: SessionStore = DiskSessions() if keep else MemorySessions()
        self.notes = NoteFiles(keep)
        self._channels: dict[str, Channel] = {}
        self._generations: dict[str, Generation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changing: set[str] = set()
        self._versions: dict[str, float] = {}

    # Looking

    def read(self, name: str) -> SavedSession:
        """A session; may be called from any thread. Raises ApiError."""
        try:
            if not self.store.exists(name):
                raise ApiError(404, f"there is no session {name[:80]!r}", kind="not_found_error", code="not_found")
            return self.store.read(name)
        except UsageError as error:
            message = f"there is no session {name[:80]!r}"
            raise ApiError(404, message, kind="not_found_error", code="not_found") from error
        except JambaError as error:
            raise as_api_error(error, 409) from error

    def listed(self, query: str = "") -> list[dict[str, Any]]:
        """What the list shows of every session, or of those with all words of a query; may be called from any thread."""
        words = query.casefold().split()[:16]
        found = []
        for name in self.store.names():
            try:
                saved = self.store.read(name)
            except JambaError as error:
                logger.info("%s is not listed: %s", name, error)
                continue
            notes = self.notes.read(name)
            entry = self._entry(saved, notes)
            if words:
                excerpt = _excerpt(saved, words)
                named = f"{name} {entry['title']}".casefold()
                if excerpt is None and not all(word in named for word in words):
                    continue
                entry["excerpt"] = excerpt
            found.append(entry)
        return found

    def _entry(self, saved: SavedSession, notes: Notes) -> dict[str, Any]:
        turns = saved.turns
        return {
            "name": saved.name,
            "title": view.title_of(saved, notes),
            "modified": self.store.version(saved.name) or saved.updated,
            "created": saved.created,
            "messages": sum(turn["role"] in ("user", "assistant") for turn in turns),
            "tokens": len(saved.prompt) + len(saved.reply),
            "documents": list(
                dict.fromkeys([*view.session_documents(self.library, saved, notes), *self._alive(notes.documents)])
            ),
            "model": saved.model,
            "parent": saved.parent,
            "running": saved.name in self._generations,
        }

    def _alive(self, documents: Sequence[str]) -> list[str]:
        known = {document.id for document in self.library.all()}
        return [name for name in documents if name in known]

    async def show(self, name: str) -> dict[str, Any]:
        """All that the page shows of a session. Raises ApiError."""
        generation = self._generations.get(name)
        channel = self._channel(name)
        shown = await asyncio.to_thread(self._show, name, generation is not None)
        context, writable, reason = await self._writable(shown.pop("_saved"))
        running = None
        if generation is not None and self._generations.get(name) is generation:
            running = {
                "generation": generation.id,
                "kind": generation.kind,
                "from": channel.since,
                "index": generation.index,
            }
        elsewhere = shown["open_elsewhere"]
        if elsewhere:
            writable, reason = False, f"{name} is open in another process: close it there to go on here"
        return {
            **shown,
            "context": context,
            "writable": writable,
            "reason": reason,
            "running": running,
            "next": channel.next,
        }

    def _show(self, name: str, running: bool) -> dict[str, Any]:
        saved, notes = self.read(name), self.notes.read(name)
        before = len(notes.messages), sum(len(m) for m in notes.messages.values())
        messages = view.messages_of(self.library, saved, notes)
        if before != (len(notes.messages), sum(len(m) for m in notes.messages.values())) and not running:
            with contextlib.suppress(JambaError):
                self.notes.write(name, notes)
        system = saved.turns[0]["content"] if saved.turns and saved.turns[0]["role"] == "system" else saved.system
        return {
            **self._entry(saved, notes),
            "messages": messages,
            "system": system or "",
            "options": {"citations": True, **notes.options},
            "waiting_documents": self._alive(notes.documents),
            "used": len(saved.prompt) + len(saved.reply) if saved.turns else 0,
            "open_elsewhere": not running and self._elsewhere(name),
            "unsent": None if running else notes.unsent,
            "_saved": saved,
        }

    def _elsewhere(self, name: str) -> bool:
        try:
            with self.store.opened(name):
                return False
        except JambaError:
            return True

    async def _writable(self, saved: SavedSession) -> tuple[int | None, bool, str | None]:
        """The context, whether the session can be continued, and why not."""
        from jambacli.server.models import Models

        if not isinstance(self.models, Models):
            infos = await self.models.infos()
            context = next((info.context for info in infos if info.name == saved.model), 0) or (
                infos[0].context if infos else 0
            )
            return context or None, True, None
        try:
            model = self._model(saved)
        except ApiError as error:
            return None, False, error.message
        worker = model.worker
        if worker is None:
            return saved.ctx, True, None
        try:
            await asyncio.to_thread(check_session, worker, saved)
        except ApiError as error:
            return worker.ctx, False, error.message
        return worker.ctx, True, None

    def _model(self, saved: SavedSession) -> ServedModel:
        """The model that continues a session. Raises ApiError."""
        from jambacli.server.models import Models

        assert isinstance(self.models, Models)
        wanted = self.notes.read(saved.name).options.get("model")
        if not self.models.several:
            return self.models.find(None)
        if isinstance(wanted, str):
            return self.models.find(wanted)
        for model in self.models.all():
            if model.path is not None and str(model.path) == saved.model_path:
                return model
        raise ApiError(
            409, f"session {saved.name!r} was made with {saved.model}, which is not served", code="other_model"
        )

    # Changing

    async def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST /v1/library/sessions. Raises ApiError."""
        name, system, title = _text(body, "name", 64), _text(body, "system", MOST_TEXT), _text(body, "title", 200)
        documents = self.documents(body)
        notes = Notes(title=title or "", documents=documents, options=read_reply_options(body.get("options")))
        model = _text(body, "model", 200)
        saved = await self._blank(name, system, model)
        if model:
            notes.options["model"] = model
        await asyncio.to_thread(self._create, saved, notes)
        return await self.show(saved.name)

    async def _blank(self, name: str | None, system: str | None, model: str | None) -> SavedSession:
        from jambacli.server.models import Models

        try:
            chosen = session_file.check_name(name) if name else self._generated()
        except JambaError as error:
            raise as_api_error(error, 400) from error
        now = time.time()
        turns = [{"role": "system", "content": system}] if system else []
        if not isinstance(self.models, Models):
            served = await self.models.named(model)
            client = self.models.client.root
            return SavedSession(chosen, served, client, "", "f16", 1 << 20, now, now, system=system, turns=turns)
        async with self.models.using(model) as worker:
            loaded = worker.model
            conversation_of(loaded, SavedSession(chosen, "", "", "", "", 1, now, now))
            mark = await asyncio.to_thread(fingerprint_of, loaded)
            return SavedSession(
                chosen,
                loaded.name,
                str(loaded.path),
                mark,
                worker.kv_type,
                worker.ctx,
                now,
                now,
                system=system,
                turns=turns,
                precise=loaded.model.precise,
                chat_template=loaded.chat_template,
            )

    def _generated(self) -> str:
        if self.store.keep:
            return session_file.generated_name()
        start, number = time.strftime("chat-%Y%m%d-%H%M%S"), os.getpid() % 10000
        while self.store.exists(f"{start}-{number:04d}"):
            number = (number + 1) % 10000
        return f"{start}-{number:04d}"

    def _create(self, saved: SavedSession, notes: Notes) -> None:
        with self._locked(saved.name):
            if self.store.exists(saved.name):
                raise ApiError(
                    409, f"a session named {saved.name!r} already exists", code="name_taken", parameter="name"
                )
            self._write(saved, notes)

    def _write(self, saved: SavedSession, notes: Notes) -> None:
        try:
            self.notes.write(saved.name, notes)
            self.store.write(saved)
        except JambaError as error:
            raise ApiError(507, error.worded(), kind="server_error", code="not_stored") from error

    async def change(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """PATCH of a session. Raises ApiError."""
        new = _text(body, "name", 64)
        title, system = _text(body, "title", 200), _text(body, "system", MOST_TEXT)
        documents = self.documents(body) if body.get("documents") is not None else None
        async with self._alone(name):
            await asyncio.to_thread(self._change, name, new, title, system, documents, body.get("options"))
        return await self.show(session_file.check_name(new) if new else name)

    def _change(
        self,
        name: str,
        new: str | None,
        title: str | None,
        system: str | None,
        documents: list[str] | None,
        options: Any,
    ) -> None:
        saved, notes = self.read(name), self.notes.read(name)
        model = notes.options.pop("model", None)
        notes.options = read_reply_options(options, notes.options)
        if model is not None:
            notes.options["model"] = model
        notes.title = notes.title if title is None else title
        if documents is not None:
            notes.documents = documents
        with self._locked(name):
            if system is not None:
                turns = saved.turns[view.place_of_first(saved.turns) :]
                saved.turns = [{"role": "system", "content": system}, *turns] if system else turns
                saved.system = system or None
                saved.finish = _TAKEN_BACK if turns else saved.finish
                notes.messages, notes.versions = _moved(notes, saved, len(saved.turns) - len(turns))
                self.store.write(saved)
            self.notes.write(name, notes)
        if new and session_file.check_name(new) != name:
            try:
                self.store.rename(name, new)
            except JambaError as error:
                raise as_api_error(error, 409) from error
            self.notes.rename(name, session_file.check_name(new))
            if name in self._channels:
                self._channels[session_file.check_name(new)] = self._channels.pop(name)

    async def delete(self, name: str) -> dict[str, Any]:
        """Delete a session and what was stored for it alone. Raises ApiError."""
        await asyncio.to_thread(self.read, name)
        await self.stop(name)
        async with self._alone(name):
            freed = await asyncio.to_thread(self._delete, name)
        channel = self._channels.pop(name, None)
        if channel is not None:
            channel.put({"type": "changed"})
        return {"deleted": True, "freed": freed}

    def _delete(self, name: str) -> int:
        saved = self.read(name)
        try:
            self.store.remove(name)
        except JambaError as error:
            raise ApiError(409, error.worded(), code="open_elsewhere") from error
        shared = self.notes.read(name).shared
        self.notes.remove(name)
        return _forget_prefixes(saved, shared) if self.store.keep and saved.fingerprint else 0

    async def branch(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A new session with the messages up to and with an index. Raises ApiError."""
        new, index = _text(body, "name", 64), body.get("index")
        if index is not None and (type(index) is not int or index < 0):
            raise bad_request("the field 'index' must be a whole number", "index")
        try:
            chosen = session_file.check_name(new) if new else self._generated()
        except JambaError as error:
            raise as_api_error(error, 400) from error
        await asyncio.to_thread(self._branch, name, chosen, index)
        return await self.show(chosen)

    def _branch(self, name: str, new: str, index: int | None) -> None:
        saved, notes = self.read(name), self.notes.read(name)
        if index is not None:
            at = view.place_of(saved.turns, index) + 1
            if at < len(saved.turns):
                saved.turns, saved.finish = saved.turns[:at], _TAKEN_BACK
        now = time.time()
        saved = replace(saved, name=new, parent=name, created=now, updated=now)
        notes.versions, notes.unsent = {}, None
        notes.without(saved.turns)
        if notes.title:
            notes.title = f"{notes.title} (branch)"[:200]
        self._create(saved, notes)

    async def select(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Show another version of a message and of what follows it. Raises ApiError."""
        index, sibling = body.get("index"), body.get("sibling")
        if type(index) is not int or type(sibling) is not int:
            raise bad_request("the fields 'index' and 'sibling' must be whole numbers", "index")
        async with self._alone(name):
            await asyncio.to_thread(self._select, name, index, sibling)
        return await self.show(name)

    def _select(self, name: str, index: int, sibling: int) -> None:
        with self._locked(name):
            saved, notes = self.read(name), self.notes.read(name)
            at = view.place_of(saved.turns, index)
            version = notes.versions.get(chain_key(saved.turns[:at]))
            if version is None or not 0 <= sibling < len(version["tails"]):
                raise ApiError(
                    404, "there is no such version", kind="not_found_error", code="not_found", parameter="sibling"
                )
            if sibling == version["shown"]:
                return
            tail = version["tails"][sibling]
            version["tails"][version["shown"]] = saved.turns[at:]
            version["tails"][sibling], version["shown"] = None, sibling
            saved.turns = [*saved.turns[:at], *tail]
            saved.finish, saved.updated = _TAKEN_BACK, time.time()
            self._write(saved, notes)

    # Replies

    def documents(self, body: Mapping[str, Any], field: str = "documents") -> list[str]:
        """The ids of documents in a body. Raises ApiError for one that there is not or that is refused."""
        value = body.get(field) or []
        if not isinstance(value, list) or len(value) > 1000 or not all(isinstance(name, str) for name in value):
            raise bad_request(f"the field '{field}' must be a list of ids", field)
        for name in value:
            document = self.library.get(name)
            if document.state == "refused":
                raise ApiError(400, document.message, code="document_refused", parameter=field)
        return list(dict.fromkeys(value))

    async def start(self, name: str, make: Callable[[SavedSession, Notes], Ask]) -> dict[str, Any]:
        """Start a reply to what ``make`` returns for the session. Raises ApiError."""
        if name in self._generations or name in self._changing:
            raise _busy(name)
        self._changing.add(name)
        held = contextlib.ExitStack()
        try:
            saved, notes = await asyncio.to_thread(lambda: (self.read(name), self.notes.read(name)))
            await asyncio.to_thread(held.enter_context, self._locked(name))
            saved = await asyncio.to_thread(self.read, name)
            ask = make(saved, notes)
            chosen = generation_options(notes.options, self._defaults)
            if ask.options != GenerationOptions():
                chosen = ask.options
            ask = replace(ask, options=chosen, citations=ask.citations and notes.options.get("citations", True))
            answering, release = await self._answering(saved, notes)
            held.callback(release)
        except BaseException:
            held.close()
            raise
        finally:
            self._changing.discard(name)
        channel = self._channel(name)
        since = channel.begin()
        ready = partial(documents_ready, self.library, self.extraction, ask)
        generation = Generation(name, ask, channel, answering, ready)
        generation.index = _reply_index(saved, ask)
        self._generations[name] = generation
        channel.put(
            {"type": "begin", "generation": generation.id, "kind": generation.kind, "index": _first_index(saved, ask)}
        )
        if ask.kind != "regenerate":
            channel.put({"type": "message", "message": self._pending(saved, ask)})
        task = asyncio.ensure_future(self._run(generation, saved, notes, held))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return {"generation": generation.id, "from": since}

    async def _answering(self, saved: SavedSession, notes: Notes) -> tuple[Answering, Callable[[], None]]:
        """Who answers, and what to call when it has."""
        from jambacli.server.models import Models

        if not isinstance(self.models, Models):
            model = await self.models.named(saved.model)
            return UpstreamAnswering(self.models, model, partial(self._turn_entries, notes)), lambda: None
        served = self._model(saved)
        using = self.models.loaded(served)
        worker: Worker = await using.__aenter__()
        try:
            await asyncio.to_thread(check_session, worker, saved)
        except BaseException:
            await using.__aexit__(None, None, None)
            raise
        loop = asyncio.get_running_loop()
        return ModelAnswering(worker), lambda: (loop.create_task(using.__aexit__(None, None, None)), None)[1]

    def _turn_entries(self, notes: Notes, turn: Mapping[str, Any], index: int) -> list[Any]:
        if turn["role"] != "user":
            return []
        return [n.entry for n in view.numbered(self.library, turn, notes.known(turn, index))]

    def _pending(self, saved: SavedSession, ask: Ask) -> dict[str, Any]:
        """The message of a person as it is shown before it is part of the session."""
        return {
            "index": _first_index(saved, ask),
            "role": "user",
            "text": ask.shown,
            "thought": None,
            "documents": list(ask.documents),
            "citations": [],
            "cited": False,
            "stats": None,
            "finish": None,
            "task": ask.task,
            "table": None,
            "siblings": None,
        }

    async def _run(self, generation: Generation, saved: SavedSession, notes: Notes, held: contextlib.ExitStack) -> None:
        name, channel, ask = generation.name, generation.channel, generation.ask
        done: dict[str, Any] = {"type": "done", "generation": generation.id, "finish": "error"}
        try:
            # Whatever happens from here on, the question is not lost.
            notes.unsent = _unsent(saved, ask)
            await asyncio.to_thread(self.notes.write, name, notes)
            ended = await generation.run(saved, lambda turn, index: None)
            if ended.saved is not None:
                events = await asyncio.to_thread(self._keep, saved, ended.saved, notes, generation.ask, ended.stats)
                for event in events:
                    channel.put(event)
            elif ended.problem is not None or ended.finish == "stopped":
                notes.unsent = {**notes.unsent, "message": ended.problem.message if ended.problem else ""}
                await asyncio.to_thread(self.notes.write, name, notes)
            if ended.problem is not None:
                problem = ended.problem
                channel.put({"type": "error", "message": problem.message, "code": problem.code, **problem.more})
            done["finish"] = ended.finish
        except asyncio.CancelledError:
            raise
        except Exception as error:
            failure = as_api_error(error)
            logger.warning("a reply in %s failed: %s: %s", name, type(error).__name__, error)
            channel.put({"type": "error", "message": failure.message, "code": failure.code})
        finally:
            held.close()
            self._versions[name] = self.store.version(name)
            self._generations.pop(name, None)
            channel.put(done)

    def _keep(
        self, before: SavedSession, ended: SavedSession, notes: Notes, ask: Ask, stats: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Write the session with a reply, and its notes; returns the events about it."""
        at = len(ended.turns) - 1
        if ask.kind in ("regenerate", "edit"):
            _add_version(notes, before, ended, ask, at)
        question, reply = ended.turns[at - 1], ended.turns[at]
        if ask.kind != "regenerate":
            about = notes.of(question, at - 1)
            about |= {"shown": ask.shown}
            if ask.kind == "edit":
                old = before.turns[ask.at or 0]
                if (kept := notes.known(old, ask.at or 0).get("documents")) is not None:
                    about["documents"] = kept
            else:
                about["documents"] = list(ask.documents)
            if ask.task is not None:
                about["task"] = dict(ask.task)
        task = notes.known(question, at - 1).get("task")
        about = notes.of(reply, at)
        about |= {"stats": dict(stats), "finish": stats.get("finish")}
        if task is not None:
            about["task"] = task
        notes.documents = [name for name in notes.documents if name not in ask.documents]
        notes.unsent = None
        notes.shared = notes.shared or int(stats.get("document_tokens") or 0)
        notes.without(ended.turns)
        messages = [view.message_of(self.library, ended, notes, i) for i in (at - 1, at)]
        self.store.write(ended)
        self.notes.write(ended.name, notes)
        return [
            {"type": "message", "message": messages[0]},
            {"type": "message", "message": messages[1]},
            {"type": "citations", "citations": messages[1]["citations"]},
            {"type": "stats", "stats": dict(stats)},
        ]

    async def stop(self, name: str) -> bool:
        """End the reply that is being generated; returns whether there was one."""
        generation = self._generations.get(name)
        if generation is None:
            return False
        generation.stop()
        until = time.monotonic() + 60
        while self._generations.get(name) is generation and time.monotonic() < until:
            await asyncio.sleep(0.02)
        return True

    def events(self, name: str, start: int | None, until_done: bool) -> Any:
        """The events of a session from a number on, as bytes of server-sent events."""
        return self._events(name, start, until_done)

    async def _events(self, name: str, start: int | None, until_done: bool) -> Any:
        channel = self._channel(name)
        yield b": events\n\n"
        if until_done and name not in self._generations and start in (None, channel.next):
            return
        self._versions.setdefault(name, self.store.version(name))
        quiet = time.monotonic()
        async for data in channel.read(start, _WATCH):
            if data is None:
                self._watch(name, channel)
                if time.monotonic() - quiet > 15:
                    quiet = time.monotonic()
                    yield b": quiet\n\n"
                continue
            quiet = time.monotonic()
            yield data
            if until_done and b'"type":"done"' in data and name not in self._generations:
                return

    def _watch(self, name: str, channel: Channel) -> None:
        """Say that a session was changed by another process."""
        if name in self._generations or name in self._changing:
            return
        version = self.store.version(name)
        if version != self._versions.get(name):
            self._versions[name] = version
            channel.put({"type": "changed"})

    async def close(self) -> None:
        """End all replies: the server stops."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Helpers

    def _channel(self, name: str) -> Channel:
        if name not in self._channels:
            if len(self._channels) > 512:
                for other in [n for n, c in self._channels.items() if not c.readers and n not in self._generations][
                    :256
                ]:
                    del self._channels[other]
            self._channels[name] = Channel()
        return self._channels[name]

    @contextlib.asynccontextmanager
    async def _alone(self, name: str) -> Any:
        """Change a session that no reply is written to. Raises ApiError."""
        if name in self._generations or name in self._changing:
            raise _busy(name)
        self._changing.add(name)
        try:
            yield
        finally:
            self._changing.discard(name)
            channel = self._channels.get(name)
            if channel is not None:
                self._versions[name] = self.store.version(name)
                channel.put({"type": "changed"})

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        try:
            opened = self.store.opened(name)
            opened.__enter__()
        except JambaError as error:
            raise ApiError(409, error.problem, code="open_elsewhere") from error
        try:
            yield
        finally:
            opened.__exit__(None, None, None)


_TAKEN_BACK = "taken back"


def _busy(name: str) -> ApiError:
    return ApiError(409, f"a reply is being written in {name}", code="busy")


def _text(body: Mapping[str, Any], field: str, most: int) -> str | None:
    value = body.get(field)
    if value is not None and (not isinstance(value, str) or len(value) > most):
        raise bad_request(f"the field '{field}' must be a text of at most {most:,} characters", field)
    return value


def _first_index(saved: SavedSession, ask: Ask) -> int:
    """The index of the first message that a reply replaces or adds."""
    first = view.place_of_first(saved.turns)
    if ask.kind == "edit":
        return (ask.at or 0) - first
    if ask.kind == "regenerate":
        return _reply_index(saved, ask)
    return len(saved.turns) - first


def _reply_index(saved: SavedSession, ask: Ask) -> int:
    first = view.place_of_first(saved.turns)
    if ask.kind == "edit":
        return (ask.at or 0) + 1 - first
    if ask.kind == "regenerate":
        return max((i for i, turn in enumerate(saved.turns) if turn["role"] == "user"), default=first) + 1 - first
    return len(saved.turns) + 1 - first


def _unsent(saved: SavedSession, ask: Ask) -> dict[str, Any]:
    """What is to be asked again when no reply comes."""
    text = ask.shown
    if ask.kind == "regenerate":
        text = next((t["content"] for t in reversed(saved.turns) if t["role"] == "user"), "")
    more = {"index": (ask.at or 0) - view.place_of_first(saved.turns)} if ask.kind == "edit" else {}
    return {"kind": ask.kind, "text": text, "documents": list(ask.documents), "task": ask.task, "message": "", **more}


def _add_version(notes: Notes, before: SavedSession, ended: SavedSession, ask: Ask, at: int) -> None:
    """Keep what a reply or an edited message replaces as another version of it."""
    place = at if ask.kind == "regenerate" else at - 1
    tail = before.turns[place:]
    if not tail:
        return
    key = chain_key(before.turns[:place])
    version = notes.versions.setdefault(key, {"place": place, "tails": [None], "shown": 0})
    version["tails"][version["shown"]] = tail
    version["tails"].append(None)
    if len(version["tails"]) > _MOST_VERSIONS:
        del version["tails"][0]
    version["shown"] = len(version["tails"]) - 1


def _moved(notes: Notes, saved: SavedSession, first: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The notes of messages after a system message was set or removed: their places change, versions are forgotten."""
    kept: dict[str, Any] = {}
    by_text = {key.partition("-")[2]: value for key, value in notes.messages.items()}
    from jambacli.server.page.notes import turn_key

    for i, turn in enumerate(saved.turns):
        key = turn_key(turn, i)
        if (value := by_text.get(key.partition("-")[2])) is not None:
            kept[key] = value
    return kept, {}


def _excerpt(saved: SavedSession, words: Sequence[str]) -> dict[str, Any] | None:
    """The first message with all words of a query."""
    for turn in saved.turns:
        content = str(turn["content"])
        plain = content.casefold()
        if all(word in plain for word in words):
            at = max(0, plain.find(words[0]) - 60)
            return {"role": turn["role"], "text": " ".join(content[at : at + 160].split())}
    return None


def _forget_prefixes(saved: SavedSession, shared: int) -> int:
    """Remove the stored prefixes that hold a session's messages, and return the bytes freed. The first ``shared`` tokens are
    its documents: what ends there stays, so that they are not read again in another session."""
    try:
        store = PrefixStore()
        for prefix in saved.prefixes:
            for space in spaces_of(saved.fingerprint, saved.kv_type, saved.precise):
                if prefix.position > shared:
                    store.drop_prefix(space, prefix)
        return store.clear([])  # what nothing refers to any more
    except JambaError:
        return 0
