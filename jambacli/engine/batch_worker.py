"""A thread that owns a model: it steps a BatchEngine, and other threads submit requests and read their text."""

from __future__ import annotations

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


class BatchWorker:
    """Steps an engine in a thread of its own, the only one that computes with the model."""

    def __init__(self, engine: BatchEngine) -> None:
        self.engine = engine
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
                self.engine.step()
            except Exception as error:
                logger.exception("a step failed; its requests end")
                self.engine.fail(jobs, error if isinstance(error, JambaError) else JambaError(f"internal: {error}"))
