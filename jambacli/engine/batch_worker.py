"""A thread that owns a model: it steps a BatchEngine, and other threads submit requests and read their text."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Iterator

from jambacli.engine.batch import BatchEngine
from jambacli.engine.batch_job import Job, Request
from jambacli.errors import JambaError

logger = logging.getLogger(__name__)

# Seconds after which an idle thread looks again whether it is to end.
_LOOK = 1.0


class Turn:
    """A lock that is given to threads in the order in which they ask: engines that share it step by turns."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = self._serving = 0

    def __enter__(self) -> None:
        with self._changed:
            number = self._next
            self._next += 1
            self._changed.wait_for(lambda: self._serving == number)

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._serving += 1
            self._changed.notify_all()


class BatchWorker:
    """Steps an engine in a thread of its own, the only one that computes with the model."""

    def __init__(self, engine: BatchEngine, turn: Turn | None = None) -> None:
        """``turn``: taken for every step, so that the engines of several models do not slow each other down."""
        self.engine = engine
        self._turn = turn or contextlib.nullcontext()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="jamba-batch", daemon=True)
        self._thread.start()

    def stream(self, request: Request) -> Iterator[str]:
        """Submit a request and yield its text as it comes; closing the iterator cancels it. Raises the request's error."""
        events: queue.SimpleQueue[str | Job] = queue.SimpleQueue()
        job = self.engine.submit(request, on_text=events.put, on_end=events.put)
        try:
            while isinstance(event := events.get(), str):
                yield event
        finally:
            job.cancel()
        if job.error is not None:
            raise job.error

    def close(self) -> None:
        """Cancel every request, store what was read, and end the thread."""
        self._closing = True
        self.engine.wake()
        self._thread.join()
        self.engine.close()

    def __enter__(self) -> BatchWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closing:
            if self.engine.idle:
                self.engine.wait(_LOOK)
                continue
            jobs = self.engine.jobs
            try:
                with self._turn:
                    self.engine.step()
            except Exception as error:
                logger.exception("a step failed; its requests end")
                self.engine.fail(jobs, error if isinstance(error, JambaError) else JambaError(f"internal: {error}"))
