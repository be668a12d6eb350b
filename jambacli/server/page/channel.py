"""The events of a conversation: numbered, kept while they are needed, read by any number of clients from any number on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from jambacli.server.http import compact

Event = Mapping[str, Any]

#: Events that are kept of a reply; above that the older ones are joined to a few.
MOST_EVENTS = 20_000


class Channel:
    """The events of one conversation's latest reply. For the thread of the event loop.

    ``next``: the number of the next event. ``since``: that of the first one that is kept: a client that begins there gets the
    whole reply.
    """

    def __init__(self) -> None:
        # Numbers go on after a restart.
        self.next = self.since = int(time.time() * 1000)
        self._events: list[Event] = []
        self._changed = asyncio.Event()
        self.readers = 0

    def begin(self) -> int:
        """Forget the events so far, since a new reply begins; returns the number of its first event."""
        self._events.clear()
        self.since = self.next
        return self.next

    def put(self, event: Event) -> None:
        """Add an event."""
        self._events.append(event)
        self.next += 1
        if len(self._events) > MOST_EVENTS:
            half = len(self._events) // 2
            # A client that has read that far goes on; another one is sent to the new beginning.
            self._events[:half] = joined(self._events[:half])
            self.since = self.next - len(self._events)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def read(self, start: int | None, silence: float) -> AsyncGenerator[bytes | None, None]:
        """The events from the number ``start`` on, None for from now on, as server-sent events; None after each ``silence``
        seconds without any. Ends with a ``reset`` when some of them are not kept."""
        at = self.next if start is None else start
        self.readers += 1
        try:
            while True:
                if not self.since <= at <= self.next:
                    yield _sent(self.next - 1, {"type": "reset"})
                    return
                changed = self._changed
                while self.since <= at < self.next:
                    yield _sent(at, self._events[at - self.since])
                    at += 1
                if at == self.next and changed is self._changed:
                    try:
                        await asyncio.wait_for(changed.wait(), silence)
                    except TimeoutError:
                        yield None
        finally:
            self.readers -= 1


def joined(events: Sequence[Event]) -> list[Event]:
    """The same in fewer events: texts in one piece, and of the states the last one."""
    kept: list[Event] = []
    for event in events:
        kind = event["type"]
        if kind in ("text", "thought") and kept and kept[-1]["type"] == kind:
            kept[-1] = {"type": kind, "delta": kept[-1]["delta"] + event["delta"]}
        elif kind == "status" and kept and kept[-1]["type"] == "status":
            kept[-1] = event
        else:
            kept.append(event)
    return kept


def _sent(number: int, event: Event) -> bytes:
    """An event as it is sent. JSON has no line breaks, so that a text cannot add lines to it."""
    return b"id: %d\ndata: %s\n\n" % (number, compact(event))
