"""The answers so far, in a file beside the output: one line each, on the disk before the next is written.

    {"key": ..., "record": {...}}

A killed process leaves at most an incomplete last line, which the next one removes. A file that begins otherwise is not of
this kind, and is left as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from jambacli.errors import JambaError
from jambacli.files import sync_directory

_BEGIN = b'{"key": "'


class PartFile:
    """The records of the answers by key, in ``OUTPUT.part``; locked for this process until ``close``."""

    def __init__(self, output: Path) -> None:
        """Open or create it. Raises JambaError when another process has it open, it cannot be written, or is something else."""
        self.path = self.path_of(output)
        self._places: dict[str, int] = {}
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._file = os.fdopen(fd, "r+b")
        except OSError as error:
            raise JambaError(f"cannot write {self.path}: {error.strerror or error}") from error
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise
        sync_directory(self.path.parent)

    @staticmethod
    def path_of(output: Path) -> Path:
        """The file beside ``output``."""
        return output.with_name(f"{output.name}.part")

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> dict[str, Any]:
        """The record of that key, which must be there."""
        self._file.seek(self._places[key])
        record: dict[str, Any] = json.loads(self._file.readline())["record"]
        return record

    def add(self, key: str, record: dict[str, Any]) -> None:
        """Append a record; returns once it is on the disk. Raises JambaError when it cannot be written."""
        line = json.dumps({"key": key, "record": record}).encode() + b"\n"
        try:
            at = self._file.seek(0, os.SEEK_END)
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise JambaError(
                f"cannot write {self.path}: {error.strerror or error}; the answers so far are kept"
            ) from error
        self._places[key] = at

    def clear(self) -> None:
        """Remove every record."""
        self._file.truncate(0)
        self._places.clear()

    def remove(self) -> None:
        """Delete the file."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def close(self) -> None:
        """Release the lock. What ``add`` could not write is tried once more here, and has been reported by then."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # no fcntl on this platform: there is no locking
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise JambaError(
                f"{self.path} is open in another process; wait for it, or choose another output"
            ) from error

    def _read(self) -> None:
        begin = self._file.read(len(_BEGIN))
        # A power failure can leave zero bytes.
        if not _BEGIN.startswith(begin) and begin.strip(b"\0"):
            raise JambaError(f"{self.path} is not a file of earlier answers; move it away, or choose another output")
        self._file.seek(0)
        at = 0
        for line in self._file:
            try:
                value = json.loads(line) if line.endswith(b"\n") else None
                key, record = (value["key"], value["record"]) if isinstance(value, dict) else (None, None)
            except (ValueError, KeyError, RecursionError):
                key, record = None, None
            if not isinstance(key, str) or not isinstance(record, dict):
                break
            self._places[key] = at
            at += len(line)
        # After a damaged line nothing is trusted: its answers are computed again.
        self._file.truncate(at)
