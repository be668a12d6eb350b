"""Requests to the server behind this one: its streams, and its errors as ours.

Nothing is retried and no redirect followed: the key is for that server alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import httpx

from jambacli.errors import UsageError
from jambacli.server.errors import ApiError, as_api_error

T = TypeVar("T")

# Seconds to connect, and of silence: a long prompt is read without a word.
_CONNECT, _SILENCE = 10.0, 1800.0
# Bytes of a body or of a line of a stream, at most.
_MAX_BYTES = 64 << 20


class UpstreamClient:
    """Asks the server at ``url`` (with or without /v1). ``key``: sent as a bearer token. ``patience``: seconds of waiting for
    its first word after which an answer is begun; also between signs of life."""

    def __init__(self, url: str, key: str | None = None, *, patience: float = 15.0) -> None:
        """Raises UsageError for something that is no address of a server."""
        try:
            parts = urlsplit(url)
            valid = (
                parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
            )
            valid = valid and parts.port != 0 and url.isprintable()
        except ValueError:
            valid = False
        if not valid or parts.username is not None:
            raise UsageError("is not an address such as http://127.0.0.1:8000/v1", field="upstream", value=url[:200])
        self.root = url.rstrip("/").removesuffix("/v1").rstrip("/")
        self.patience = patience
        self._key = key
        self._client: httpx.AsyncClient | None = None

    def _connected(self) -> httpx.AsyncClient:
        """The client, made in the event loop that uses it."""
        if self._client is None:
            headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
            timeout = httpx.Timeout(_SILENCE, connect=_CONNECT)
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
            self._client = httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits, trust_env=False)
        return self._client

    async def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask and return the answer, a JSON object. Raises ApiError."""
        async with self.stream(method, path, body) as response:
            return json_object(await read_all(response))

    @contextlib.asynccontextmanager
    async def stream(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """A response of status 200 whose body is still to be read. Raises ApiError, also in the block."""
        try:
            async with self._connected().stream(method, f"{self.root}{path}", json=body) as response:
                if response.status_code != 200:
                    raise await _refused(response)
                yield response
        except httpx.TimeoutException as error:
            raise ApiError(504, f"the server at {self.root} does not answer", kind="server_error") from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ApiError(
                502, f"the server at {self.root} cannot be reached: {reason}", kind="server_error"
            ) from error


class UpstreamStream(Generic[T]):
    """The items of one response, read in a task of its own so that silence can be noticed.

    Closing its connection, by ``cancel``, is what ends the work of the other server.
    """

    def __init__(
        self,
        client: UpstreamClient,
        path: str,
        body: Mapping[str, Any],
        items: Callable[[httpx.Response], AsyncGenerator[T, None]],
    ) -> None:
        self._client, self._path, self._body, self._items = client, path, body, items
        self._queue: asyncio.Queue[T | ApiError | None] = asyncio.Queue(256)
        self._reading: asyncio.Task[None] | None = None
        self._opened = asyncio.Event()
        self._refusal: ApiError | None = None

    async def open(self) -> None:
        """Send the request, and wait a while for its status. Raises ApiError when it is refused."""
        self._reading = asyncio.ensure_future(self._read())
        try:
            async with asyncio.timeout(self._client.patience):
                await self._opened.wait()
        except TimeoutError:
            return
        except BaseException:
            self.cancel()
            raise
        if self._refusal is not None:
            raise self._refusal

    def cancel(self) -> None:
        """End the request."""
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self) -> None:
        try:
            async with (
                self._client.stream("POST", self._path, self._body) as response,
                contextlib.aclosing(self._items(response)) as items,
            ):
                self._opened.set()
                async for item in items:
                    await self._queue.put(item)
            await self._queue.put(None)
        except Exception as error:
            failure = as_api_error(error)
            if not self._opened.is_set():
                self._refusal = failure
            self._opened.set()
            await self._queue.put(failure)

    async def items(self) -> AsyncGenerator[T | None, None]:
        """The items, and None in silence. Raises ApiError. Leaving it early cancels the request."""
        coming = asyncio.ensure_future(self._queue.get())
        try:
            while True:
                done, _ = await asyncio.wait((coming,), timeout=self._client.patience)
                if not done:
                    yield None
                    continue
                item = coming.result()
                if item is None:
                    return
                if isinstance(item, ApiError):
                    raise item
                coming = asyncio.ensure_future(self._queue.get())
                yield item
        finally:
            coming.cancel()
            self.cancel()
            if self._reading is not None:
                await asyncio.wait((self._reading,))


async def read_all(response: httpx.Response) -> bytes:
    """A body within limits. Raises ApiError."""
    parts, size = [], 0
    async for part in response.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size > _MAX_BYTES:
            raise ApiError(502, "the answer of the server behind this one is too large", kind="server_error")
    return b"".join(parts)


def json_object(data: bytes) -> dict[str, Any]:
    """A body as an object. Raises ApiError."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ApiError(502, "the server behind this one answers something that is no JSON object", kind="server_error")
    return value


async def sse_chunks(response: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
    """The objects of a stream of server-sent events up to ``[DONE]``. Raises ApiError for an error among them."""
    rest = b""
    async for part in response.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        if len(rest) > _MAX_BYTES:
            raise ApiError(502, "a line of the server behind this one is too long", kind="server_error")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or not data:
                continue
            if data == b"[DONE]":
                return
            chunk = json_object(data)
            if chunk.get("error"):
                raise api_error(chunk, 502)
            yield chunk


async def _refused(response: httpx.Response) -> ApiError:
    if 300 <= response.status_code < 400:
        return ApiError(
            502, "the server behind this one redirects to another, which is not followed", kind="server_error"
        )
    data = await read_all(response)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    status = response.status_code if 400 <= response.status_code < 600 else 502
    error = api_error(value if isinstance(value, dict) else {}, status)
    after = response.headers.get("retry-after", "")
    error.retry_after = int(after) if after.isdigit() and len(after) < 6 else None
    return error


def api_error(value: Mapping[str, Any], status: int) -> ApiError:
    """An error in the forms of OpenAI, vLLM and FastAPI."""
    inner = value.get("error") or value
    fields = inner if isinstance(inner, dict) else {"message": inner}
    message = (
        fields.get("message") or fields.get("detail") or f"the server behind this one answers with status {status}"
    )
    kind = fields.get("type")
    code, parameter = fields.get("code"), fields.get("param")
    if isinstance(code, int) and 400 <= code < 600 and status == 502:
        status = code
    return ApiError(
        status,
        message if isinstance(message, str) else json.dumps(message)[:2000],
        kind=kind if isinstance(kind, str) else "invalid_request_error" if status < 500 else "server_error",
        code=code if isinstance(code, str) else None,
        parameter=parameter if isinstance(parameter, str) else None,
        more={k: fields[k] for k in ("n_prompt_tokens", "n_ctx") if k in fields},
    )
