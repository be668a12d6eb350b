"""The thread in which a model's prompts are prepared, one after another, and how work in it ends early: a chat template may
take seconds, and neither a client that has gone nor a server that stops waits for it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jambacli.server.errors import stopping

# Seconds that work has to finish when the server stops: a conversation is rendered in milliseconds.
_LAST = 0.25
# Seconds between two attempts to end work: it may have been between two renderings.
_AGAIN = 0.02


class _Work:
    """Something to do in the thread. ``unwanted``: nobody waits for it any more."""

    __slots__ = ("do", "unwanted")

    def __init__(self, do: Callable[[], Any]) -> None:
        self.do, self.unwanted = do, False


class PromptThread:
    """Templates and tokenizers are not made for several threads, so one prepares all prompts of a model."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        """``cancel``: lets the rendering that the thread waits for fail at once."""
        self._cancel = cancel
        self._executor = ThreadPoolExecutor(1, "jamba-prompts")
        self._lock = threading.Lock()
        self._current: _Work | None = None
        self._stopped = False

    async def run(self, do: Callable[[], Any]) -> Any:
        """The result of ``do``. When the task that awaits it is cancelled, a rendering in it ends. Raises ApiError when the
        server stops."""
        loop, work = asyncio.get_running_loop(), _Work(do)
        try:
            return await loop.run_in_executor(self._executor, self._done, work)
        except asyncio.CancelledError:
            self._end(work, loop)
            raise
        except Exception as error:
            if self._stopped:
                raise stopping() from error
            raise

    def stop_soon(self) -> None:
        """Let what is being prepared, and what waits for that, fail in a moment: the server stops. For the event loop."""
        loop = asyncio.get_running_loop()
        loop.call_later(_LAST, self._stop, loop)

    def close(self) -> None:
        """End what is being prepared, and the thread."""
        self._stopped = True
        while self._current is not None:
            self._cancel()
            time.sleep(_AGAIN)
        self._executor.shutdown(cancel_futures=True)

    def _done(self, work: _Work) -> Any:
        with self._lock:
            if work.unwanted or self._stopped:
                raise stopping()
            self._current = work
        try:
            return work.do()
        finally:
            with self._lock:
                self._current = None

    def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        self._stopped = True
        work = self._current
        if work is not None:
            self._end(work, loop)

    def _end(self, work: _Work, loop: asyncio.AbstractEventLoop) -> None:
        """End this work and no other, if it has begun."""
        with self._lock:
            work.unwanted = True
            if self._current is not work:
                return
            self._cancel()
        loop.call_later(_AGAIN, self._end, work, loop)
