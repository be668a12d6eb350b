"""Writes a GGUF file's tensors in a background thread, while the next piece is computed.

The number of buffers is fixed, which bounds memory however slow the disk is.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from jambacli.gguf.writer import GGUFWriter

BUFFERS = 4


@dataclass(frozen=True)
class FilePiece:
    """Bytes ``start`` to ``stop`` of a buffer, which go to byte ``offset`` of tensor ``name``."""

    name: str
    offset: int
    start: int
    stop: int


class BackgroundWriter:
    """``take`` a buffer, fill it, ``write`` it. Leaving the context waits for pending writes, or drops them after an error."""

    def __init__(self, writer: GGUFWriter, buffer_bytes: int, wrote: Callable[[int], None]) -> None:
        """``wrote(cost)`` is called in the thread after each write, with the ``cost`` passed to ``write``."""
        import numpy as np

        self._writer, self._wrote = writer, wrote
        self._free: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
        for _ in range(BUFFERS):
            self._free.put(np.empty(buffer_bytes, np.uint8))
        self._work: queue.SimpleQueue[tuple[np.ndarray, Sequence[FilePiece], int] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="gguf-writer", daemon=True)

    def take(self) -> np.ndarray:
        """A free buffer; waits until there is one. Raises the thread's error, if it had one."""
        self._raise()
        return self._free.get()

    def write(self, buffer: np.ndarray, pieces: Sequence[FilePiece], cost: int) -> None:
        """Queue the ``pieces`` of a taken buffer; the caller may not use the buffer any more."""
        self._work.put((buffer, pieces, cost))

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            buffer, pieces, cost = item
            try:
                if not self._stop:
                    for piece in pieces:
                        self._writer.write_at(piece.name, piece.offset, buffer[piece.start : piece.stop])
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
