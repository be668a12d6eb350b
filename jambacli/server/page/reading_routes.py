"""/v1/library/reading: documents that are read before anything is asked about them."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jambacli.server.context import Server
from jambacli.server.errors import ApiError, bad_request
from jambacli.server.http import json_response
from jambacli.server.page import session_view as view
from jambacli.server.page.ask import Ask
from jambacli.server.page.generation import check_session
from jambacli.server.page.http import routes_of
from jambacli.server.page.page import Page
from jambacli.server.page.reply_options import generation_options, read_reply_options
from jambacli.server.page.sessions import MOST_NAME, MOST_TEXT, MOST_TITLE, text_field


class ReadingRoutes:
    """The handlers."""

    def __init__(self, server: Server, page: Page) -> None:
        self._server, self._page = server, page

    async def begin(self, request: Request) -> Response:
        """POST /v1/library/reading: {"documents": [ids], "session"?} or {"documents", "system"?, "model"?, "options"?}."""
        from jambacli.server.models import Models

        body = await self._server.body(request)
        talks, models = self._page.conversations, self._page.models
        if not isinstance(models, Models):
            raise ApiError(409, "the server behind this one reads documents when it answers", code="upstream")
        documents = talks.documents(body, refused=True)  # those are left out once that is known of all
        if not documents:
            raise bad_request("the field 'documents' must be a list of ids", "documents")
        name, model = text_field(body, "session", MOST_NAME), text_field(body, "model", MOST_TITLE)
        system = text_field(body, "system", MOST_TEXT)
        saved, chosen = None, read_reply_options(body.get("options"))
        if name:
            saved = await asyncio.to_thread(talks.sessions.read, name)
            notes = await asyncio.to_thread(talks.sessions.notes.read, name)
            known = await asyncio.to_thread(view.session_documents, self._page.library, saved, notes)
            documents = [document for document in documents if document not in known]
            chosen = {k: v for k, v in notes.options.items() if k != "model"}
        served = talks.model_of(saved) if saved is not None else models.find(model)
        if saved is not None and served.worker is not None:
            await asyncio.to_thread(check_session, served.worker, saved)
        ask = Ask(
            kind="message",
            text=(self._server.system if system is None else system) or "",
            documents=documents,
            options=generation_options(chosen, self._server.defaults),
            citations=chosen.get("citations", True),
        )
        return json_response(talks.ahead.begin(models, served, saved, ask).to_json(), 202)

    async def get(self, request: Request) -> Response:
        """GET /v1/library/reading/ID."""
        return json_response(self._page.conversations.ahead.get(request.path_params["id"]).to_json())

    async def cancel(self, request: Request) -> Response:
        """DELETE /v1/library/reading/ID."""
        ahead = self._page.conversations.ahead.get(request.path_params["id"])
        self._page.conversations.ahead.cancel(ahead)
        return json_response(ahead.to_json())


def reading_routes(server: Server, page: Page) -> list[Route]:
    """The routes of reading ahead."""
    routes = ReadingRoutes(server, page)
    one = "/v1/library/reading/{id}"
    return routes_of(
        {
            ("POST", "/v1/library/reading"): routes.begin,
            ("GET", one): routes.get,
            ("DELETE", one): routes.cancel,
        }
    )
