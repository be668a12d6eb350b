"""The hash of every byte of a model's files: in chunks, so that it can stop and go on, in this process or a later one."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jambacli.files import file_identity

CHUNK = 16 << 20
_READ = 1 << 20


class FileHash:
    """The hash of some files, one after another; ``chunks`` holds the SHA-256 of each chunk that has been read, in order."""

    def __init__(self, paths: Sequence[Path], chunks: Sequence[str] = ()) -> None:
        """``chunks``: those that an earlier process has read of the same, unchanged files. Raises OSError."""
        self.paths = list(paths)
        stats = [path.stat() for path in self.paths]
        self.sizes = [info.st_size for info in stats]
        self._identities = [file_identity(info) for info in stats]
        self._places = [(i, start) for i, size in enumerate(self.sizes) for start in range(0, size, CHUNK)]
        self.chunks = list(chunks)[: len(self._places)]

    @property
    def identity(self) -> str:
        """The identity of the files whose bytes are hashed: reading them fails once they have another."""
        return "|".join(self._identities)

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(self.sizes)

    @property
    def remaining(self) -> int:
        """The bytes that are still to be read, to a chunk."""
        return (len(self._places) - len(self.chunks)) * CHUNK

    def run(self, stop: threading.Event | None = None) -> bool:
        """Read what remains in this thread, until ``stop`` is set; returns whether all is read. Raises OSError."""
        while self.remaining:
            if stop is not None and stop.is_set():
                return False
            self.chunks.append(self._chunk(len(self.chunks)))
        return True

    def run_parallel(self) -> None:
        """Read what remains in several threads. Raises OSError."""
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8), "jamba-hash") as pool:
            self.chunks.extend(pool.map(self._chunk, range(len(self.chunks), len(self._places))))

    def hexdigest(self) -> str:
        """40 hexadecimal digits, once all is read."""
        assert not self.remaining
        hasher = hashlib.sha256(f"{CHUNK}:{':'.join(map(str, self.sizes))}\n".encode())
        hasher.update("".join(self.chunks).encode())
        return hasher.hexdigest()[:40]

    def _chunk(self, index: int) -> str:
        part, start = self._places[index]
        left = min(CHUNK, self.sizes[part] - start)
        hasher, buffer = hashlib.sha256(), bytearray(min(_READ, left))
        with self.paths[part].open("rb", buffering=0) as file:
            file.seek(start)
            while left:
                n = file.readinto(memoryview(buffer)[: min(_READ, left)])
                if not n:
                    raise OSError(f"{self.paths[part]} ended early")
                hasher.update(memoryview(buffer)[:n])
                left -= n
            if file_identity(os.fstat(file.fileno())) != self._identities[part]:
                raise OSError(f"{self.paths[part]} has changed")
        return hasher.hexdigest()
