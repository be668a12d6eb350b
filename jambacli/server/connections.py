"""Connections below HTTP: a request's headers must come in time, and idle connections never keep others from being accepted."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

#: Seconds in which the headers of a request must have come, also of the first one of a connection.
HEADER_SECONDS = 20.0
#: Bytes of the headers of a request.
MAX_HEADERS = 64 << 10
# Connections at once, as far as the system allows, less those files that other things need.
_MOST_CONNECTIONS, _OTHER_FILES = 8192, 128


def server_config(app: ASGIApp, *, grace: int, most: int | None = None) -> uvicorn.Config:
    """How uvicorn runs the app. ``grace``: seconds that replies have to finish when it stops; ``most``: connections at once."""
    room = most or _allowed_connections()
    waiting: dict[H11Protocol, None] = {}

    class Connection(H11Protocol):
        """A connection that is closed when its request does not come, and first of all when there are too many."""

        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()
            if len(self.connections) > room:
                oldest = next(iter(waiting), self)
                oldest.transport.close()
                waiting.pop(oldest, None)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_watching()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Start to wait for a request, unless one is being read or answered or is awaited already."""
            if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
                self._stop_watching()
            elif self._deadline is None:
                waiting[self] = None
                self._deadline = self.loop.call_later(HEADER_SECONDS, self._too_late)

        def _stop_watching(self) -> None:
            waiting.pop(self, None)
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _too_late(self) -> None:
            self._stop_watching()
            self.transport.close()

    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_level="critical",  # errors of requests are logged where they are answered
        access_log=False,
        server_header=False,
        lifespan="off",
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEADERS,
        timeout_graceful_shutdown=grace,
        backlog=512,
    )


def _allowed_connections() -> int:
    """How many connections the system lets this process have, after asking for as many as are useful."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return _MOST_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_CONNECTIONS + _OTHER_FILES
    wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    limit = _MOST_CONNECTIONS + _OTHER_FILES if soft == resource.RLIM_INFINITY else soft
    return max(16, min(_MOST_CONNECTIONS, limit - _OTHER_FILES))
