"""The sessions that the page shows: those of `jamba chat` on the disk or, where nothing is to be kept, some in memory."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator
from typing import Protocol

from jambacli.errors import JambaError
from jambacli.session import library, session_file
from jambacli.session.session_file import SavedSession


class SessionStore(Protocol):
    """Sessions by name. All methods may be called from any thread."""

    #: Whether they outlast the server.
    keep: bool

    def names(self) -> list[str]:
        """All names, the most recently used first."""

    def exists(self, name: str) -> bool:
        """Whether there is one. Raises UsageError for what is no name."""

    def version(self, name: str) -> float:
        """A number that changes when the session does: seconds since 1970."""

    def read(self, name: str) -> SavedSession:
        """A session. Raises JambaError when there is none or it is damaged."""

    def write(self, saved: SavedSession) -> None:
        """Replace a session, whose lock is held. Raises JambaError."""

    def remove(self, name: str) -> None:
        """Delete a session. Raises JambaError when it is open elsewhere."""

    def rename(self, name: str, new: str) -> None:
        """Give a session another name. Raises JambaError."""

    def opened(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Hold its lock. Raises JambaError when another process has it open."""


class DiskSessions:
    """The sessions of this user."""

    keep = True

    def names(self) -> list[str]:
        """See SessionStore."""
        return session_file.names()

    def exists(self, name: str) -> bool:
        """See SessionStore."""
        return session_file.exists(name)

    def version(self, name: str) -> float:
        """See SessionStore."""
        try:
            return session_file.session_path(name).stat().st_mtime
        except OSError:
            return 0.0

    def read(self, name: str) -> SavedSession:
        """See SessionStore."""
        return session_file.read(name)

    def write(self, saved: SavedSession) -> None:
        """See SessionStore."""
        session_file.write(saved)

    def remove(self, name: str) -> None:
        """See SessionStore."""
        session_file.remove(name)

    def rename(self, name: str, new: str) -> None:
        """See SessionStore."""
        library.rename(name, new)

    def opened(self, name: str) -> contextlib.AbstractContextManager[None]:
        """See SessionStore."""
        return session_file.opened(name)


class MemorySessions:
    """Sessions that end with the process."""

    keep = False

    def __init__(self) -> None:
        self._saved: dict[str, tuple[float, SavedSession]] = {}

    def names(self) -> list[str]:
        """See SessionStore."""
        return sorted(self._saved, key=lambda name: -self._saved[name][0])

    def exists(self, name: str) -> bool:
        """See SessionStore."""
        return session_file.check_name(name) in self._saved

    def version(self, name: str) -> float:
        """See SessionStore."""
        return self._saved[name][0] if name in self._saved else 0.0

    def read(self, name: str) -> SavedSession:
        """See SessionStore."""
        if name not in self._saved:
            raise JambaError(f"there is no session {name!r}")
        return copy.deepcopy(self._saved[name][1])

    def write(self, saved: SavedSession) -> None:
        """See SessionStore."""
        self._saved[session_file.check_name(saved.name)] = (time.time(), copy.deepcopy(saved))

    def remove(self, name: str) -> None:
        """See SessionStore."""
        if self._saved.pop(name, None) is None:
            raise JambaError(f"there is no session {name!r}")

    def rename(self, name: str, new: str) -> None:
        """See SessionStore."""
        if self.exists(new):
            raise JambaError(f"a session named {new!r} already exists")
        saved = self.read(name)
        saved.name = session_file.check_name(new)
        self.write(saved)
        self.remove(name)

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[None]:
        """See SessionStore."""
        yield
