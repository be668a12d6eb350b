"""What the routes of the page share: the headers of answers, and what a request that changes something must have."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jambacli.errors import UsageError
from jambacli.server.errors import ApiError, as_api_error, bad_request
from jambacli.server.http import error_response, handler
from jambacli.server.page.static_files import SAFE

Work = Callable[[Request], Awaitable[Response]]

#: The header of an upload: a form on another page cannot send it.
UPLOAD_HEADER = "x-jamba"
_LONGEST_NUMBER = 16


def checked(work: Work) -> Work:
    """A handler of a request that changes something: no form of another page can send such a request.

    Origin and Host are checked for all requests, and no other origin gets permission to send these headers.
    """

    @functools.wraps(work)
    async def handle(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and UPLOAD_HEADER not in request.headers:
            raise ApiError(415, "the request needs Content-Type: application/json", code="content_type")
        return await work(request)

    return handle


def safe(work: Work) -> Work:
    """A handler whose answers have the headers of the page, also its errors."""

    async def worded(request: Request) -> Response:
        try:
            return await work(request)
        except UsageError as error:
            raise as_api_error(error, 400) from error

    @functools.wraps(work)
    async def handle(request: Request) -> Response:
        answer = await handler(worded, error_response)(request)
        for name, value in SAFE.items():
            answer.headers.setdefault(name, value)
        answer.headers.setdefault("cache-control", "no-store")
        return answer

    return handle


def routes_of(table: dict[tuple[str, str], Work]) -> list[Route]:
    """Routes by method and path; requests that change something are ``checked``."""
    found = []
    for (method, path), work in table.items():
        changes = method in ("POST", "PATCH", "PUT")
        found.append(Route(path, safe(checked(work) if changes else work), methods=[method]))
    return found


class Collection(Protocol):
    """The handlers of what can be listed, made, looked at, changed and deleted."""

    async def listed(self, request: Request) -> Response:
        """GET the collection."""

    async def create(self, request: Request) -> Response:
        """POST to the collection."""

    async def get(self, request: Request) -> Response:
        """GET one."""

    async def change(self, request: Request) -> Response:
        """PATCH one."""

    async def delete(self, request: Request) -> Response:
        """DELETE one."""


def collection_routes(path: str, key: str, of: Collection, more: Mapping[tuple[str, str], Work]) -> list[Route]:
    """The routes of a collection at ``path``, whose members ``key`` names, with ``more`` by method and path below a member."""
    one = f"{path}/{{{key}}}"
    table = {
        ("GET", path): of.listed,
        ("POST", path): of.create,
        ("GET", one): of.get,
        ("PATCH", one): of.change,
        ("DELETE", one): of.delete,
    }
    return routes_of({**table, **{(method, f"{one}/{rest}"): work for (method, rest), work in more.items()}})


def number(value: str | None, name: str, low: int, high: int, default: int | None = None) -> int | None:
    """A whole number in a path or a query. Raises ApiError."""
    if value is None:
        return default
    if not (value.isascii() and value.isdigit()) or len(value) > _LONGEST_NUMBER or not low <= int(value) <= high:
        raise bad_request(f"the parameter '{name}' must be a whole number from {low} to {high}", name)
    return int(value)


def query_text(request: Request, name: str, most: int = 1000) -> str:
    """A text in the query, "" without it. Raises ApiError for one that is too long."""
    value = request.query_params.get(name, "")
    if len(value) > most:
        raise bad_request(f"the parameter '{name}' has more than {most} characters", name)
    return value


def answer_text(value: Any) -> str:
    """A name as it may stand in a header."""
    return "".join(c for c in str(value) if c.isascii() and (c.isalnum() or c in "._-")) or "download"
