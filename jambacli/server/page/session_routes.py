"""/v1/library/sessions: lists, messages, replies and their events, tables, exports."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jambacli.documents.ask import SummaryOptions, question_text
from jambacli.engine.options import GenerationOptions
from jambacli.errors import JambaError, UsageError
from jambacli.server.context import Server
from jambacli.server.errors import as_api_error, bad_request
from jambacli.server.http import Streaming, json_response
from jambacli.server.page import session_view as view
from jambacli.server.page.ask import Ask
from jambacli.server.page.conversations import Conversations
from jambacli.server.page.http import collection_routes, number, query_text
from jambacli.server.page.notes import Notes
from jambacli.server.page.page import Page
from jambacli.server.page.presets import preset
from jambacli.server.page.reply_options import generation_options, read_reply_options
from jambacli.server.page.sessions import MOST_TEXT, not_there
from jambacli.server.page.tables import INSTRUCTION, Column, read_columns, schema_of, table_file, table_instruction
from jambacli.session import session_file
from jambacli.session.session_file import SavedSession

Make = Callable[[SavedSession, Notes], Ask]
# The largest number of an event, and characters of a focus or a language.
_LAST_EVENT, _SHORT = (1 << 53) - 1, 400


class SessionRoutes:
    """The handlers."""

    def __init__(self, server: Server, page: Page) -> None:
        self._server, self._page = server, page
        self._talks: Conversations = page.conversations

    async def listed(self, request: Request) -> Response:
        """GET /v1/library/sessions?q=."""
        return json_response({"sessions": await self._talks.listed(query_text(request, "q"))})

    async def create(self, request: Request) -> Response:
        """POST /v1/library/sessions."""
        return json_response(await self._talks.create(await self._server.body(request)), 201)

    async def get(self, request: Request) -> Response:
        """GET /v1/library/sessions/NAME."""
        return json_response(await self._talks.show(_name(request)))

    async def change(self, request: Request) -> Response:
        """PATCH /v1/library/sessions/NAME."""
        return json_response(await self._talks.change(_name(request), await self._server.body(request)))

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/library/sessions/NAME."""
        return json_response({"deleted": True, "freed": await self._talks.delete(_name(request))})

    async def branch(self, request: Request) -> Response:
        """POST .../branch: {"index"?, "name"?}."""
        return json_response(await self._talks.branch(_name(request), await self._server.body(request)), 201)

    async def select(self, request: Request) -> Response:
        """POST .../select: {"index", "sibling"}."""
        return json_response(await self._talks.select(_name(request), await self._server.body(request)))

    async def stop(self, request: Request) -> Response:
        """POST .../stop."""
        name = _name(request)
        await asyncio.to_thread(self._talks.sessions.read, name)
        return json_response({"stopped": await self._talks.stop(name)})

    # Replies

    async def message(self, request: Request) -> Response:
        """POST .../messages: {"text", "documents"?, "options"?}."""
        body = await self._server.body(request)
        text = _said(body, "text")
        documents = self._talks.documents(body)

        def make(saved: SavedSession, notes: Notes) -> Ask:
            attached, only = self._attached(saved, notes, documents)
            return Ask(
                kind="message", text=text + only, shown=text, documents=attached, options=self._options(body, notes)
            )

        return await self._started(request, make)

    async def regenerate(self, request: Request) -> Response:
        """POST .../regenerate: {"options"?}."""
        body = await self._server.body(request)

        def make(saved: SavedSession, notes: Notes) -> Ask:
            at = max((i for i, turn in enumerate(saved.turns) if turn["role"] == "user"), default=None)
            if at is None:
                raise bad_request("there is nothing to answer yet")
            task = notes.known(saved.turns[at], at).get("task") or {}
            schema = schema_of(read_columns(task["columns"])) if task.get("kind") == "table" else None
            return Ask(kind="regenerate", schema=schema, options=self._options(body, notes))

        return await self._started(request, make)

    async def edit(self, request: Request) -> Response:
        """POST .../edit: {"index", "text"}."""
        body = await self._server.body(request)
        text, index = _said(body, "text"), body.get("index")
        if type(index) is not int:
            raise bad_request("the field 'index' must be a whole number", "index")

        def make(saved: SavedSession, notes: Notes) -> Ask:
            at = view.place_of(saved.turns, index)
            if saved.turns[at]["role"] != "user":
                raise bad_request(f"message {index} is not a person's", "index")
            known = notes.known(saved.turns[at], at)
            # What was read in parts is asked again.
            documents = view.documents_of(self._page.library, saved.turns[at], known) if known.get("parts") else []
            options = self._options(body, notes)
            return Ask(kind="edit", text=text, shown=text, at=at, documents=documents, options=options)

        return await self._started(request, make)

    async def summarize(self, request: Request) -> Response:
        """POST .../summarize: {"documents"?, "length"?, "style"?, "focus"?, "language"?}."""
        body = await self._server.body(request)
        length = body.get("length", "medium")
        fields = {"style": _short(body, "style") or "prose", "focus": _short(body, "focus")}
        fields |= {"length": str(length) if type(length) in (str, int) else "?", "language": _short(body, "language")}
        try:
            wanted = SummaryOptions(**fields)  # type: ignore[arg-type]
        except JambaError as error:
            raise as_api_error(error, 400) from error
        documents = self._talks.documents(body)
        task: dict[str, Any] = {"kind": "summarize", **{k: v for k, v in fields.items() if v}}

        def make(saved: SavedSession, notes: Notes) -> Ask:
            attached, only = self._attached(saved, notes, documents, needed=True)
            shown = wanted.instruction()
            task["title"] = f"Summary of {self._of(saved, notes, documents)}"
            options = self._options(body, notes)
            return Ask(
                kind="summarize",
                text=shown + only,
                shown=shown,
                documents=attached,
                options=options,
                task=task,
                each=wanted.part_instruction,
            )

        return await self._started(request, make)

    async def compare(self, request: Request) -> Response:
        """POST .../compare: {"documents": [two], "focus"?, "language"?}."""
        body = await self._server.body(request)
        documents = self._talks.documents(body)
        if len(documents) != 2:
            raise bad_request("the field 'documents' must have two ids", "documents")
        focus, language = _short(body, "focus"), _short(body, "language")
        first, second = (self._page.library.get(name) for name in documents)
        shown = (
            f"Compare these two documents: {first.title} and {second.title}. Say what both have, what only one of them has, "
            "and where they contradict each other. Say only what is in them."
        )
        if focus:
            shown += f" Pay most attention to this: {focus.strip()}"
        shown = question_text(shown, language)
        title = f"{first.name} and {second.name} compared"
        task = {"kind": "compare", "title": title, "documents": documents, **({"focus": focus} if focus else {})}

        def make(saved: SavedSession, notes: Notes) -> Ask:
            attached, only = self._attached(saved, notes, documents)
            options = self._options(body, notes)
            return Ask(kind="compare", text=shown + only, shown=shown, documents=attached, options=options, task=task)

        return await self._started(request, make)

    async def table(self, request: Request) -> Response:
        """POST .../table: {"documents"?, "columns", "instruction"?} or {"preset"}."""
        body = await self._server.body(request)
        chosen = preset(body["preset"]) if body.get("preset") is not None else {}
        if chosen and chosen["kind"] != "table":
            raise bad_request(f"the preset {chosen['id']} is no table", "preset")
        columns = read_columns(body.get("columns") or chosen.get("columns"))
        instruction = body.get("instruction") or chosen.get("instruction") or ""
        if not isinstance(instruction, str) or len(instruction) > INSTRUCTION:
            raise bad_request(
                f"the field 'instruction' must be a text of at most {INSTRUCTION} characters", "instruction"
            )
        documents = self._talks.documents(body)
        task: dict[str, Any] = {"kind": "table", "columns": [column.to_json() for column in columns]}
        task |= {"preset": chosen["id"]} if chosen else {}

        def make(saved: SavedSession, notes: Notes) -> Ask:
            attached, only = self._attached(saved, notes, documents, needed=True)
            what = chosen.get("title", "Table")
            task["title"] = f"{what}: {self._of(saved, notes, documents)}"
            return Ask(
                kind="table",
                text=table_instruction(columns, instruction) + only,
                shown=_table_title(columns, instruction, chosen),
                documents=attached,
                options=self._options(body, notes),
                schema=schema_of(columns),
                citations=False,
                task=task,
            )

        return await self._started(request, make)

    async def _started(self, request: Request, make: Make) -> Response:
        return json_response(await self._talks.start(_name(request), make), 202)

    def _options(self, body: Mapping[str, Any], notes: Notes) -> GenerationOptions:
        merged = read_reply_options(body.get("options"), {k: v for k, v in notes.options.items() if k != "model"})
        return generation_options(merged, self._server.defaults)

    def _attached(
        self, saved: SavedSession, notes: Notes, documents: list[str], needed: bool = False
    ) -> tuple[list[str], str]:
        """The documents that come before the next message, and the words that limit it to some of those that are there.

        Raises ApiError if there are none at all and some are ``needed``.
        """
        known = view.session_documents(self._page.library, saved, notes)
        library = self._page.library
        waiting = [d.id for name in notes.documents if (d := library.find(name)) is not None and d.state != "refused"]
        # Documents larger than the context are not in the conversation: they are asked anew, in their parts.
        again = view.documents_in_parts(library, saved, notes)
        # Where some are named, the others go on waiting.
        attached = [name for name in documents or [*again, *waiting] if name not in known or name in again]
        everything = [*known, *attached]
        has_some = bool(everything) or any(turn.get("pinned") or turn.get("plain") for turn in saved.turns)
        if needed and not has_some:
            raise bad_request("the conversation has no documents: add some", "documents")
        only = ""
        if documents and known and set(documents) < set(everything):
            names = ", ".join(library.get(name).title for name in documents)
            only = f"\nAnswer only from: {names}."
        return attached, only

    def _of(self, saved: SavedSession, notes: Notes, documents: list[str]) -> str:
        """The names of the documents that a task is about, for its title."""
        library = self._page.library
        everything = documents or [*view.session_documents(library, saved, notes), *notes.documents]
        found = [document.name for name in dict.fromkeys(everything) if (document := library.find(name)) is not None]
        return f"{found[0]} and {len(found) - 1} more" if len(found) > 2 else " and ".join(found) or "the documents"

    # Files and events

    async def events(self, request: Request) -> Response:
        """GET .../events?from=N: server-sent events."""
        name = _name(request)
        await asyncio.to_thread(self._talks.sessions.read, name)
        start = number(request.query_params.get("from"), "from", 0, _LAST_EVENT)
        last = request.headers.get("last-event-id")
        if start is None and last:
            before = number(last, "last-event-id", 0, _LAST_EVENT)
            start = before + 1 if before is not None else None
        until_done = query_text(request, "until", 10) == "done"
        return Streaming(self._talks.events(name, start, until_done), "text/event-stream")

    async def table_file(self, request: Request) -> Response:
        """GET .../tables/INDEX?format=csv|json|md."""
        name, index = _name(request), number(request.path_params["index"], "index", 0, 1 << 30)
        form = query_text(request, "format", 10) or "csv"

        def made() -> tuple[bytes, str]:
            saved, notes = self._talks.sessions.read(name), self._talks.sessions.notes.read(name)
            assert index is not None
            message = view.message_of(self._page.library, saved, notes, view.place_of(saved.turns, index))
            return table_file(message["table"], form)

        data, kind = await asyncio.to_thread(made)
        return _download(data, kind, f"{name}-{index}.{form}")

    async def export(self, request: Request) -> Response:
        """GET .../export?format=md|json."""
        name, form = _name(request), query_text(request, "format", 10) or "md"
        if form not in ("md", "json"):
            raise bad_request("the parameter 'format' must be one of md, json", "format")

        def made() -> bytes:
            saved, notes = self._talks.sessions.read(name), self._talks.sessions.notes.read(name)
            messages = view.messages_of(self._page.library, saved, notes)
            title = view.title_of(saved, notes) or name
            if form == "json":
                whole = {
                    "name": name,
                    "title": title,
                    "model": saved.model,
                    "system": saved.system,
                    "messages": messages,
                }
                return json.dumps(whole, ensure_ascii=False, indent=2).encode("utf-8", "replace")
            return _markdown(title, messages, self._names(messages)).encode("utf-8", "replace")

        kind = "text/markdown; charset=utf-8" if form == "md" else "application/json"
        return _download(await asyncio.to_thread(made), kind, f"{name}.{form}")

    def _names(self, messages: list[dict[str, Any]]) -> dict[str, str]:
        found = {name for message in messages for name in message["documents"]}
        return {d.id: d.name for d in self._page.library.all() if d.id in found}


def _markdown(title: str, messages: list[dict[str, Any]], names: Mapping[str, str]) -> str:
    """A conversation as Markdown, with its documents and sources."""
    parts = [f"# {title}"]
    for message in messages:
        who = {"user": "You", "assistant": "Answer"}.get(message["role"], message["role"].capitalize())
        parts.append(f"## {who}")
        if message["documents"]:
            parts.append("Documents: " + ", ".join(names.get(name, name) for name in message["documents"]))
        parts.append(message["text"])
        sources = dict.fromkeys(
            f"- {mark['label']}"
            + (f": “{' '.join(mark['quote'].split())}”" if mark["quote"] else " (no words of the answer)")
            for mark in message["citations"]
        )
        if sources:
            parts.append("Sources:\n\n" + "\n".join(sources))
    return "\n\n".join(parts) + "\n"


def _table_title(columns: list[Column], instruction: str, chosen: Mapping[str, Any]) -> str:
    """A table's question, for people."""
    names = ", ".join(column.name for column in columns)
    what = chosen.get("title") or instruction.strip() or "A table"
    return f"{what}: {names}"


def _download(data: bytes, kind: str, name: str) -> Response:
    shown = f"attachment; filename*=utf-8''{quote(name, safe='')}"
    return Response(data, 200, {"content-disposition": shown, "content-type": kind})


def _name(request: Request) -> str:
    name = str(request.path_params["name"])
    try:
        return session_file.check_name(name)
    except UsageError as error:
        raise not_there(name) from error


def _said(body: Mapping[str, Any], field: str) -> str:
    value = body.get(field)
    if not isinstance(value, str) or not value.strip() or len(value) > MOST_TEXT:
        raise bad_request(f"the field '{field}' must be a text of 1 to {MOST_TEXT:,} characters", field)
    return value


def _short(body: Mapping[str, Any], field: str) -> str | None:
    value = body.get(field)
    if value is not None and (not isinstance(value, str) or len(value) > _SHORT):
        raise bad_request(f"the field '{field}' must be a text of at most {_SHORT} characters", field)
    return value or None


def session_routes(server: Server, page: Page) -> list[Route]:
    """The routes of conversations."""
    routes = SessionRoutes(server, page)
    reading = {"export": routes.export, "events": routes.events, "tables/{index}": routes.table_file}
    changing = {
        "messages": routes.message,
        "regenerate": routes.regenerate,
        "edit": routes.edit,
        "branch": routes.branch,
        "select": routes.select,
        "summarize": routes.summarize,
        "compare": routes.compare,
        "table": routes.table,
        "stop": routes.stop,
    }
    more = {("GET", path): work for path, work in reading.items()}
    more |= {("POST", path): work for path, work in changing.items()}
    return collection_routes("/v1/library/sessions", "name", routes, more)
