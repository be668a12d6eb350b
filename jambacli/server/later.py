"""A call whose model is still being loaded: silence until then, and then its reply."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any

from jambacli.server.events import Event, Running, Waiting


class Later(Running):
    """What ``Running`` is, before it can start. An error of the request comes as one of its events."""

    def __init__(self, starting: asyncio.Future[Running], model: str, replies: int, silence: float) -> None:
        """``starting``: the call. ``replies``: how many there will be. ``silence``: seconds between signs of life."""
        super().__init__(model, replies)
        self._starting, self._silence = starting, silence
        self._tokenizer: Any = None

    @property
    def tokenizer(self) -> Any:
        """See ``Running``."""
        return self._tokenizer

    def cancel(self) -> None:
        """See ``Running``."""
        if not self._starting.done():
            self._starting.cancel()
        elif not self._starting.cancelled() and self._starting.exception() is None:
            self._starting.result().cancel()

    async def events(self) -> AsyncGenerator[Event, None]:
        """``Waiting`` while the model is loaded, then the events of the reply. Leaving it early cancels the call."""
        try:
            while not self._starting.done():
                yield Waiting(0, 0, 0, None, time.perf_counter() - self.began)
                await asyncio.wait((self._starting,), timeout=self._silence)
            running = self._starting.result()
        except BaseException:
            self.cancel()
            raise
        self.finished, self.unseen, self._tokenizer = running.finished, running.unseen, running.tokenizer
        async with contextlib.aclosing(running.events()) as events:
            async for event in events:
                yield event
