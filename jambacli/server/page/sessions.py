"""The sessions as the page lists, shows and changes them: reading and writing files, for threads and not for the event loop."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jambacli.cache.prefix_store import PrefixStore
from jambacli.engine.prefix_cache import spaces_of
from jambacli.errors import JambaError, UsageError
from jambacli.server.errors import ApiError, as_api_error, bad_request, not_found
from jambacli.server.page import session_view as view
from jambacli.server.page.ask import Ask
from jambacli.server.page.library import Library
from jambacli.server.page.notes import NoteFiles, Notes, chain_key, turn_key
from jambacli.server.page.reply_options import read_reply_options
from jambacli.server.page.session_store import DiskSessions, MemorySessions, SessionStore
from jambacli.session import session_file
from jambacli.session.session_file import SavedSession

logger = logging.getLogger(__name__)

# How the last reply ended when its turn is no longer part of the conversation, in session files.
_TAKEN_BACK = "taken back"
# Versions of a message that are kept.
_MOST_VERSIONS = 20
#: Characters of a message, a name and a title.
MOST_TEXT, MOST_NAME, MOST_TITLE = 4_000_000, 64, 200

# Tries to get a session's lock beside other requests, and the seconds between them.
_TRIES, _PAUSE = 15, 0.02


class Sessions:
    """The sessions and their notes. All methods may be called from any thread."""

    def __init__(self, library: Library, *, keep: bool) -> None:
        """``keep``: on the disk, with the terminal's."""
        self.library = library
        self.store: SessionStore = DiskSessions() if keep else MemorySessions()
        self.notes = NoteFiles(keep)
        self._listed: dict[str, tuple[object, dict[str, Any]]] = {}

    def read(self, name: str) -> SavedSession:
        """A session. Raises ApiError."""
        try:
            if not self.store.exists(name):
                raise not_there(name)
            return self.store.read(name)
        except UsageError as error:
            raise not_there(name) from error
        except JambaError as error:
            raise as_api_error(error, 409) from error

    def listed(self, query: str = "") -> list[dict[str, Any]]:
        """What the list shows of every session, or of those with all words of a query, the latest first."""
        words = query.casefold().split()[:16]
        found = []
        for name in self.store.names():
            try:
                entry = self._entry_of(name)
                if words:
                    excerpt = _excerpt(self.store.read(name), words)
                    named = f"{name} {entry['title']}".casefold()
                    if excerpt is None and not all(word in named for word in words):
                        continue
                    entry["excerpt"] = excerpt
            except JambaError as error:
                logger.info("%s is not listed: %s", name, error)
                continue
            found.append(entry)
        return found

    def _entry_of(self, name: str) -> dict[str, Any]:
        """See ``entry``; a file that did not change is not read again."""
        key = (self.store.version(name), self.notes.version(name), self.library.changes)
        known = self._listed.get(name)
        if known is None or known[0] != key:
            known = self._listed[name] = key, self.entry(self.store.read(name), self.notes.read(name))
        return dict(known[1])

    def entry(self, saved: SavedSession, notes: Notes) -> dict[str, Any]:
        """What the list shows of a session."""
        documents = [*view.session_documents(self.library, saved, notes), *notes.documents]
        return {
            "name": saved.name,
            "title": view.title_of(saved, notes),
            "modified": self.store.version(saved.name) or saved.updated,
            "created": saved.created,
            "messages": sum(turn["role"] in ("user", "assistant") for turn in saved.turns),
            "tokens": len(saved.prompt) + len(saved.reply),
            "documents": [name for name in dict.fromkeys(documents) if self.library.find(name) is not None],
            "model": saved.model,
            "parent": saved.parent,
        }

    def show(self, name: str) -> tuple[SavedSession, dict[str, Any]]:
        """A session and all that the page shows of its file. Raises ApiError."""
        saved, notes = self.read(name), self.notes.read(name)
        before = [sorted(known) for known in notes.messages.values()]
        messages = view.messages_of(self.library, saved, notes)
        if before != [sorted(known) for known in notes.messages.values()]:  # marks were looked up
            with contextlib.suppress(JambaError, ApiError), self.locked(name):
                # A reply may have been kept since they were read.
                latest, kept = self.read(name), self.notes.read(name)
                view.messages_of(self.library, latest, kept)
                self.notes.write(name, kept)
        system = saved.turns[0]["content"] if view.place_of_first(saved.turns) else saved.system
        options = {k: v for k, v in notes.options.items() if k != "model"}
        return saved, {
            **self.entry(saved, notes),
            "messages": messages,
            "system": system or "",
            "options": {"citations": True, **options},
            "waiting_documents": [name for name in notes.documents if self.library.find(name) is not None],
            "used": len(saved.prompt) + len(saved.reply) if saved.turns else 0,
            "unsent": notes.unsent,
        }

    def open_elsewhere(self, name: str) -> bool:
        """Whether another process has a session open."""
        try:
            self._open(name).__exit__(None, None, None)
        except JambaError:
            return True
        return False

    # Changing

    def new_name(self, name: str | None) -> str:
        """The name of a new session. Raises ApiError for one that is not valid."""
        try:
            if name:
                return session_file.check_name(name)
        except JambaError as error:
            raise as_api_error(error, 400) from error
        start, number = time.strftime("chat-%Y%m%d-%H%M%S"), os.getpid() % 10000
        while self.store.exists(f"{start}-{number:04d}"):
            number = (number + 1) % 10000
        return f"{start}-{number:04d}"

    def create(self, saved: SavedSession, notes: Notes, named: bool) -> str:
        """Keep a new session; returns its name, another one where it was not ``named`` by a person and is taken. Raises
        ApiError."""
        for _ in range(100):
            with self.locked(saved.name):
                if not self.store.exists(saved.name):
                    self._write(saved, notes)
                    return saved.name
            if named:
                break
            saved.name = self.new_name(None)
        raise ApiError(409, f"a session named {saved.name!r} already exists", code="name_taken", parameter="name")

    def change(self, name: str, body: Mapping[str, Any], documents: Sequence[str] | None) -> str:
        """Change a session's name, title, options, system message or waiting documents; returns its name. Raises ApiError."""
        new, title = text_field(body, "name", MOST_NAME), text_field(body, "title", MOST_TITLE)
        system = text_field(body, "system", MOST_TEXT)
        new = self.new_name(new) if new else name
        with self.locked(name):
            saved, notes = self.read(name), self.notes.read(name)
            options = {k: v for k, v in notes.options.items() if k != "model"}
            kept = {k: v for k, v in notes.options.items() if k == "model"}
            notes.options = {**read_reply_options(body.get("options"), options), **kept}
            notes.title = notes.title if title is None else " ".join(title.split())
            notes.documents = notes.documents if documents is None else list(documents)
            if system is not None:
                _set_system(saved, notes, system)
                self._write(saved, notes)
            self.notes.write(name, notes)
        if new != name:
            try:
                self.store.rename(name, new)
            except JambaError as error:
                raise as_api_error(error, 409) from error
            self.notes.rename(name, new)
        return new

    def delete(self, name: str) -> int:
        """Delete a session and what was stored of it alone; returns the bytes freed. Raises ApiError."""
        saved = self.read(name)
        try:
            self.store.remove(name)
        except JambaError as error:
            raise ApiError(409, error.problem, code="open_elsewhere") from error
        shared = self.notes.read(name).shared
        self.notes.remove(name)
        self._listed.pop(name, None)
        return _forget_prefixes(saved, shared) if self.store.keep and saved.fingerprint else 0

    def branch(self, name: str, body: Mapping[str, Any]) -> str:
        """A new session with the messages up to and with an index; returns its name. Raises ApiError."""
        new, index = text_field(body, "name", MOST_NAME), body.get("index")
        if index is not None and type(index) is not int:
            raise bad_request("the field 'index' must be a whole number", "index")
        saved, notes = self.read(name), self.notes.read(name)
        if index is not None:
            at = view.place_of(saved.turns, index) + 1
            if at < len(saved.turns):
                saved.turns, saved.finish = saved.turns[:at], _TAKEN_BACK
        now = time.time()
        saved = replace(saved, name=self.new_name(new), parent=name, created=now, updated=now)
        notes.versions, notes.unsent = {}, None
        notes.without(saved.turns)
        if notes.title:
            notes.title = f"{notes.title} (branch)"[:MOST_TITLE]
        return self.create(saved, notes, bool(new))

    def select(self, name: str, body: Mapping[str, Any]) -> None:
        """Show another version of a message and of what follows it. Raises ApiError."""
        index, sibling = body.get("index"), body.get("sibling")
        if type(index) is not int or type(sibling) is not int:
            raise bad_request("the fields 'index' and 'sibling' must be whole numbers", "index")
        with self.locked(name):
            saved, notes = self.read(name), self.notes.read(name)
            at = view.place_of(saved.turns, index)
            version = notes.versions.get(chain_key(saved.turns[:at]))
            if version is None or version["place"] != at or not 0 <= sibling < len(version["tails"]):
                raise not_found("there is no such version", "sibling")
            if sibling == version["shown"]:
                return
            tail = version["tails"][sibling]
            version["tails"][version["shown"]] = saved.turns[at:]
            version["tails"][sibling], version["shown"] = None, sibling
            saved.turns = [*saved.turns[:at], *tail]
            saved.finish, saved.updated = _TAKEN_BACK, time.time()
            self._write(saved, notes)

    # Replies

    def keep_reply(
        self, before: SavedSession, ended: SavedSession, notes: Notes, ask: Ask, stats: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Write a session, whose lock is held, with a reply, and its notes; returns the question and the reply as messages."""
        at = len(ended.turns) - 1
        if ask.kind in ("regenerate", "edit"):
            _add_version(notes, before, ask, at)
        question, reply = ended.turns[at - 1], ended.turns[at]
        if ask.kind != "regenerate":
            about = notes.of(question, at - 1)
            about["shown"] = ask.shown
            about["documents"] = list(ask.documents)
            if ask.kind == "edit":
                assert ask.at is not None
                about |= {k: v for k, v in notes.known(before.turns[ask.at], ask.at).items() if k == "documents"}
            if ask.task is not None:
                about["task"] = dict(ask.task)
            about |= {"parts": ask.parts} if ask.parts else {}
        asked = notes.known(question, at - 1)
        about = notes.of(reply, at)
        about |= {"stats": dict(stats), "finish": stats.get("finish")}
        about |= {name: asked[name] for name in ("task", "parts") if asked.get(name)}
        about |= {"left_out": list(ask.left_out)} if ask.left_out else {}
        notes.documents = [name for name in notes.documents if name not in ask.documents and self._readable(name)]
        notes.unsent = None
        notes.shared = notes.shared or int(stats.get("document_tokens") or 0)
        notes.without(ended.turns)
        messages = [view.message_of(self.library, ended, notes, i) for i in (at - 1, at)]
        self._write(ended, notes)
        return messages

    def _readable(self, name: str) -> bool:
        document = self.library.find(name)
        return document is not None and document.state != "refused"

    def _write(self, saved: SavedSession, notes: Notes) -> None:
        try:
            self.store.write(saved)
            self.notes.write(saved.name, notes)
        except JambaError as error:
            raise ApiError(507, error.worded(), kind="server_error", code="not_stored") from error

    def _open(self, name: str) -> contextlib.AbstractContextManager[None]:
        """A session's lock, held. Raises JambaError when another process has it open.

        Other requests to this server hold it for a moment, also those that only look whether another process has it.
        """
        for again in range(_TRIES, -1, -1):
            opened = self.store.opened(name)
            try:
                opened.__enter__()
            except UsageError:
                raise
            except JambaError:
                if not again:
                    raise
                time.sleep(_PAUSE)
            else:
                break
        return opened

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold a session's lock. Raises ApiError when another process has it open."""
        try:
            opened = self._open(name)
        except UsageError as error:
            raise not_there(name) from error
        except JambaError as error:
            raise ApiError(409, error.problem, code="open_elsewhere") from error
        try:
            yield
        finally:
            opened.__exit__(None, None, None)


def not_there(name: str) -> ApiError:
    """The error for a session that there is not."""
    return not_found(f"there is no session {name[:80]!r}")


def text_field(body: Mapping[str, Any], field: str, most: int) -> str | None:
    """A text in a body, None without it. Raises ApiError."""
    value = body.get(field)
    if value is not None and (not isinstance(value, str) or len(value) > most):
        raise bad_request(f"the field '{field}' must be a text of at most {most:,} characters", field)
    return value


def _set_system(saved: SavedSession, notes: Notes, system: str) -> None:
    """Set or remove the system message: the places of the messages change, versions of them are forgotten."""
    turns = saved.turns[view.place_of_first(saved.turns) :]
    saved.turns = [{"role": "system", "content": system}, *turns] if system else turns
    saved.system = system or None
    saved.finish = _TAKEN_BACK if turns else saved.finish
    by_text = {key.partition("-")[2]: value for key, value in notes.messages.items()}
    keys = [turn_key(turn, i) for i, turn in enumerate(saved.turns)]
    notes.messages = {key: by_text[text] for key in keys if (text := key.partition("-")[2]) in by_text}
    notes.versions = {}


def _add_version(notes: Notes, before: SavedSession, ask: Ask, at: int) -> None:
    """Keep what a reply at turn ``at`` or an edited message replaces as another version of it."""
    place = at if ask.kind == "regenerate" else at - 1
    tail = before.turns[place:]
    if not tail:
        return
    fresh = {"place": place, "tails": [None], "shown": 0}
    version = notes.versions.setdefault(chain_key(before.turns[:place]), fresh)
    version["tails"][version["shown"]] = tail
    version["tails"].append(None)
    if len(version["tails"]) > _MOST_VERSIONS:
        del version["tails"][0]
    version["shown"] = len(version["tails"]) - 1


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
