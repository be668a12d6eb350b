"""The page itself: its files, its login, and what it needs to know of the server."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jambacli.server.context import Server
from jambacli.server.errors import ApiError
from jambacli.server.http import json_response
from jambacli.server.login import remove_cookie, set_cookie
from jambacli.server.page.document_routes import document_routes
from jambacli.server.page.http import routes_of
from jambacli.server.page.page import Page
from jambacli.server.page.reading_routes import reading_routes
from jambacli.server.page.session_routes import session_routes

# Seconds that a wrong key takes.
_PENALTY = 0.5


class PageRoutes:
    """The handlers. ``key``: the server's, None for none. ``root``: answers programs that ask for "/"."""

    def __init__(
        self, server: Server, page: Page, key: str | None, root: Callable[[Request], Awaitable[Response]]
    ) -> None:
        self._server, self._page, self._key, self._root = server, page, key, root

    async def index(self, request: Request) -> Response:
        """GET /: the page for browsers."""
        if "text/html" not in request.headers.get("accept", ""):
            answer = await self._root(request)
            answer.headers["vary"] = "accept"
            return answer
        return await asyncio.to_thread(self._page.files.answer, "index.html", request.headers)

    async def static(self, request: Request) -> Response:
        """GET /static/NAME."""
        return await asyncio.to_thread(self._page.files.answer, request.path_params["name"], request.headers)

    async def state(self, request: Request) -> Response:
        """GET /v1/page/state."""
        return json_response(await self._page.state())

    async def login(self, request: Request) -> Response:
        """POST /v1/page/login: {"key"} -> a cookie."""
        given = (await self._server.body(request)).get("key")
        if self._key is None:
            return json_response({"needed": False})
        if not isinstance(given, str) or not hmac.compare_digest(given.encode("utf-8", "replace"), self._key.encode()):
            await asyncio.sleep(_PENALTY)
            raise ApiError(401, "this is not the key of the server", kind="authentication_error", code="login_required")
        return json_response({"needed": True}, headers={"set-cookie": set_cookie(self._key)})

    async def logout(self, request: Request) -> Response:
        """POST /v1/page/logout."""
        return json_response({}, headers={"set-cookie": remove_cookie()})


def page_routes(
    server: Server, page: Page, key: str | None, root: Callable[[Request], Awaitable[Response]]
) -> list[Route]:
    """All routes of the page."""
    page.open(server.models, server.system)
    routes = PageRoutes(server, page, key, root)
    own = routes_of(
        {
            ("GET", "/"): routes.index,
            ("GET", "/static/{name:path}"): routes.static,
            ("GET", "/v1/page/state"): routes.state,
            ("POST", "/v1/page/login"): routes.login,
            ("POST", "/v1/page/logout"): routes.logout,
        }
    )
    return [*own, *document_routes(server, page), *reading_routes(server, page), *session_routes(server, page)]
