"""Writes a GGUF file's tensors from a thread of its own; knows nothing of where the bytes come from.

While one panel is encoded, the one before it goes to the disk. A fixed set of buffers goes round, so memory stays bounded
however slow the disk is.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from jambacli.weights.writer import GGUFWriter

BUFFERS = 4


class BackgroundWriter:
    """``take`` a buffer, fill it, ``write`` it; leaving the context waits for the rest, or drops it on an error."""

    def __init__(self, writer: GGUFWriter, buffer_bytes: int, wrote: Callable[[int], None]) -> None:
        """``wrote(cost)`` is called, on the thread, after each write with the ``cost`` given for it."""
        import numpy as np

        self._writer, self._wrote = writer, wrote
        self._free: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
        for _ in range(BUFFERS):
            self._free.put(np.empty(buffer_bytes, np.uint8))
        self._work: queue.SimpleQueue[tuple[str, int, np.ndarray, int, int] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="gguf-writer", daemon=True)

    def take(self) -> np.ndarray:
        """A buffer that is not in use, once there is one; raises what went wrong in the thread."""
        self._raise()
        return self._free.get()

    def write(self, name: str, offset: int, buffer: np.ndarray, nbytes: int, cost: int) -> None:
        """Write the first ``nbytes`` of a taken buffer at ``offset`` of tensor ``name``; the buffer is given up."""
        self._work.put((name, offset, buffer, nbytes, cost))

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            name, offset, buffer, nbytes, cost = item
            try:
                if not self._stop:
                    self._writer.write_at(name, offset, buffer[:nbytes])
                    self._wrote(cost)
            except BaseException as error:
                self._error, self._stop = error, True
            self._free.put(buffer)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def __enter__(self) -> BackgroundWriter:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            self._stop = True
        self._work.put(None)
        self._thread.join()
        if kind is None:
            self._raise()
