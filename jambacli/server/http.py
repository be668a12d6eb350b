"""HTTP below the routes: who may ask, bodies within limits, answers that start only when nothing can be wrong any more.

Plain ASGI: a client that goes away must be noticed at once, which Starlette's middleware classes hide.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import ipaddress
import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jambacli.server.errors import ApiError, as_api_error, bad_request, stopping
from jambacli.server.login import has_cookie

logger = logging.getLogger(__name__)

#: Seconds in which a body must arrive.
BODY_SECONDS = 120.0
# Of a body that is refused: the bytes that are still read, and the seconds in which the client finds the answer.
_SMALL_REST, _LINGER_SECONDS = 1 << 20, 0.5
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
# Answered without a key: they say nothing of what is asked or answered.
_PUBLIC = ("/health", "/v1/health", "/", "/v1/page/login", "/v1/page/logout")
# The files of the page, which asks for the key.
_PUBLIC_FILES = "/static/"


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may ask.

    ``key``: required of every request; None for none. ``hosts``: names besides the local ones under which the server is asked;
    None for any (the key or the socket's file protects it). ``origins``: web pages that may ask from a browser.
    """

    key: str | None = None
    hosts: Sequence[str] | None = ()
    origins: Sequence[str] = ()

    def check(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        """Raise ApiError for a request that is not allowed."""
        host = headers.get("host", "")
        if self.hosts is not None and not self._local(host):
            # Otherwise any web page could ask through a name of its own that points to this machine.
            raise ApiError(403, f"the host {host[:80]!r} is not allowed", kind="permission_error")
        origin = headers.get("origin")
        allowed = "*" in self.origins or origin in self.origins
        if origin is not None and not allowed and not _same(origin, host):
            raise ApiError(403, f"the origin {origin[:80]!r} is not allowed", kind="permission_error")
        if origin is None and not allowed and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise ApiError(403, "requests from other web pages are not allowed", kind="permission_error")
        public = path in _PUBLIC or path.startswith(_PUBLIC_FILES)
        if self.key is not None and method != "OPTIONS" and not public:
            self._check_key(headers)

    def _local(self, host: str) -> bool:
        name = (urlsplit(f"//{host}").hostname or "") if _HOST.fullmatch(host) else ""
        return name in _LOCAL_NAMES or name.endswith(".localhost") or name in (self.hosts or ())

    def _check_key(self, headers: Mapping[str, str]) -> None:
        authorization = headers.get("authorization", "")
        kind, _, value = authorization.partition(" ")
        given = [headers.get("x-api-key", "")]
        if kind.lower() == "bearer":
            given.append(value.strip())
        # AWS clients send their key's id, and a signature that only the secret could check.
        for part in value.split("Credential=")[1:] if kind.startswith("AWS4") else ():
            found = re.match(r"[^/,\s]+(?=/)", part)
            given += [found[0]] if found else []
        assert self.key is not None
        if has_cookie(headers.get("cookie", ""), self.key):
            return
        # Headers are bytes, which were decoded one by one: encoded so again, a key that is not ASCII is its UTF-8.
        if not any(hmac.compare_digest(g.encode("latin-1", "replace"), self.key.encode()) for g in given if g):
            raise ApiError(401, "a valid API key is required", kind="authentication_error", code="invalid_api_key")


#: Path and headers -> how an error is answered there.
RefusalFor = Callable[[str, Mapping[str, str]], Callable[[ApiError], Response]]

_HOST = re.compile(r"[A-Za-z0-9.:\[\]_-]+")


def _same(origin: str, host: str) -> bool:
    """Whether an origin is the server itself."""
    with contextlib.suppress(ValueError):
        return bool(host) and urlsplit(origin).netloc == host
    return False


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server at that address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


class Guard:
    """The middleware that lets in only what ``Access`` allows. ``refusal`` answers the rest, in the form for a path."""

    def __init__(self, app: ASGIApp, access: Access, refusal: RefusalFor) -> None:
        self._app, self._access, self._refusal = app, access, refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        try:
            self._access.check(scope["method"], scope["path"], headers)
        except (ApiError, ValueError) as error:
            refusal = error if isinstance(error, ApiError) else bad_request("the request's headers are not valid")
            await self._refusal(scope["path"], headers)(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def compact(value: Any) -> bytes:
    """JSON without spaces: AI21's client looks for ``"finish_reason":null`` in the bytes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer of JSON."""
    return Response(compact(value), status, headers, media_type="application/json")


def openai_error(error: ApiError) -> dict[str, Any]:
    """An error as OpenAI's API has it."""
    fields = {"message": error.message, "type": error.kind, "param": error.parameter, "code": error.code}
    return {"error": {**fields, **error.more}}


#: An error's body.
ErrorBody = Callable[[ApiError], dict[str, Any]]


def error_response(
    error: ApiError, body: ErrorBody = openai_error, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer to a request that failed."""
    fields = {**error.headers(), **(headers or {})}
    if error.status == 413:
        return _TooLarge(compact(body(error)), 413, {**fields, "connection": "close"}, media_type="application/json")
    return json_response(body(error), error.status, fields)


class _TooLarge(Response):
    """The answer to a body that is still coming. The rest is not read: the client finds the answer while it cannot send, and
    then the connection ends. One that ended at once would take the answer with it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, and leave the client time to read it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        left = _SMALL_REST
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while left > 0:
                    message = await receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        break
                    left -= len(message.get("body", b""))
                else:
                    await asyncio.sleep(_LINGER_SECONDS)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class BodyRoom:
    """The bytes of all bodies that are being read: many large ones at once must not fill the memory."""

    def __init__(self, most: int) -> None:
        self._most, self._used = most, 0

    def take(self, size: int) -> None:
        """Take room. Raises ApiError when there is none."""
        if self._used + size > self._most:
            message = "the server is busy: too many large bodies are arriving; try again in 5 seconds"
            raise ApiError(503, message, kind="unavailable_error", code="server_busy", retry_after=5)
        self._used += size

    def give_back(self, size: int) -> None:
        """Give back what was taken."""
        self._used -= size


async def read_bytes(receive: Receive, limit: int, room: BodyRoom | None = None) -> bytes:
    """The body of a request. Raises ApiError when it is larger than ``limit``, too slow, not finished, or when there is no
    ``room`` for it."""
    parts: list[bytes] = []
    size = taken = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ApiError(400, "the client went away")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if room is not None:
                    room.take(len(parts[-1]))
                    taken = size
                if size > limit:
                    raise ApiError(413, f"the body is larger than {limit:,} bytes", code="body_too_large")
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {BODY_SECONDS:.0f} seconds") from None
    finally:
        if room is not None:
            room.give_back(taken)


def parse_json(data: bytes) -> dict[str, Any]:
    """A body as a JSON object. Raises ApiError for anything else, text that is not Unicode included."""
    try:
        value = json.loads(data.decode("utf-8-sig"), parse_constant=_no_constant)
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()  # refuses half of a surrogate pair
    except (ValueError, RecursionError) as error:
        text = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
        raise bad_request(f"the body is not valid JSON: {text}") from None
    if not isinstance(value, dict):
        raise bad_request("the body must be a JSON object")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


class Streaming(Response):
    """A body in parts. Its first part is awaited before the status is sent, so that an error until then has a status of its
    own, also that the server is stopping; when the client goes away, the parts' iterator is closed."""

    def __init__(
        self,
        parts: AsyncIterator[bytes],
        media_type: str,
        *,
        error: Callable[[ApiError], Response] = error_response,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(None, 200, {"cache-control": "no-store", **(headers or {})}, media_type)
        del self.headers["content-length"]
        self._parts, self._error = parts, error
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the parts until they or the client end."""
        try:
            await self._send_until_gone(scope, receive, send)
        except asyncio.CancelledError:  # there is no time left for replies
            if not self._begun:
                await self._error(stopping())(scope, receive, send)
            raise

    async def _send_until_gone(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(scope, receive, send))
        watching = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait((sending, watching), return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            if not sending.done():
                sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            try:
                await sending
            except asyncio.CancelledError:
                pass
            finally:
                if isinstance(self._parts, AsyncGenerator):
                    await self._parts.aclose()

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            first = await anext(self._parts, b"")
        except Exception as error:
            self._begun = True
            await self._error(_logged(error))(scope, receive, send)
            return
        self._begun = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        try:
            async for part in self._parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except Exception as error:
            # The status is sent: only a connection that ends too early can tell.
            raise ConnectionAbortedError(str(_logged(error))) from error
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_gone(receive: Receive) -> None:
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return


def _logged(error: Exception) -> ApiError:
    """The error as an answer; what is not the client's fault is logged."""
    answer = as_api_error(error)
    if answer.status == 500:
        logger.warning("a request failed: %s: %s", type(error).__name__, error)
    return answer


def handler(
    work: Callable[[Any], Awaitable[Response]], error: Callable[[ApiError], Response] = error_response
) -> Callable[[Any], Awaitable[Response]]:
    """A route whose errors are answered in its API's form, also that the server is stopping."""

    @functools.wraps(work.func if isinstance(work, functools.partial) else work)
    async def handle(request: Any) -> Response:
        try:
            return await work(request)
        except asyncio.CancelledError:
            return error(stopping())
        except Exception as failure:
            return error(_logged(failure))

    return handle
