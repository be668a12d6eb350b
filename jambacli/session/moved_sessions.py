"""Moves sessions and the history of what was typed out of the cache, where earlier versions kept them, to the user's data.

Nothing is overwritten and nothing is removed before its copy is on the disk, so it can be interrupted at any moment and goes
on at the next start. A session of the same name in both places is kept under both, the moved one as NAME-2. One that an
earlier version of the program has open stays until it is closed.
"""

from __future__ import annotations

import contextlib
import filecmp
import itertools
import json
import logging
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from jambacli.errors import JambaError
from jambacli.files import atomic_write, private_folder, read_regular, sync_directory
from jambacli.session.lock_file import LockedError, lock_file
from jambacli.unfinished import TemporaryFile
from jambacli.units import counted

logger = logging.getLogger(__name__)

#: In a folder of sessions: what was typed in chats.
HISTORY = ".history"
# In the new folder: the lock of the process that moves, and what could only be copied: {path: size and time}.
_LOCK, _COPIED = ".moving.lock", ".copied.json"
# Files whose locks are held at once.
_BATCH = 64
# As in a session's name.
_MAX_LETTERS, _MAX_BYTES = 64, 200

_thread_lock = threading.Lock()
_done: set[tuple[Path, Path]] = set()


def move_once(old: Path, new: Path, history: Path) -> None:
    """Move the sessions in ``old`` to the folder ``new``, which exists, and its history to the file ``history``; once in a
    process. Logs what was moved, and a warning for what could not be."""
    with _thread_lock:
        if (old, new) in _done:
            return
        _done.add((old, new))
        with contextlib.suppress(OSError):
            if old.is_dir() and not os.path.samefile(old, new):  # noqa: PTH121 - as in the other modules
                with _alone(new / _LOCK):
                    _Move(old, new).run(history)


def keep_link(old: Path, new: Path) -> None:
    """Where a user has put the folder ``old`` elsewhere, by a link, make ``new``, if it does not exist, the same link."""
    with contextlib.suppress(OSError):
        if old.is_symlink() and old.is_dir() and not os.path.lexists(new):
            new.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            new.symlink_to(os.path.realpath(old))
            old.unlink()
            logger.info("sessions are now found at %s, a link to %s as %s was", new, os.path.realpath(new), old)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process moves."""
    with path.open("ab") as file:
        with contextlib.suppress(ImportError):  # no fcntl on this platform: there is no locking
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Move:
    """One move, with what came of it."""

    def __init__(self, old: Path, new: Path) -> None:
        self.old, self.new = old, new
        self.moved = 0
        self.history = False
        self.copied = self._read_copied()
        self._stays = False

    def run(self, history: Path) -> None:
        """Move everything, then say so."""
        known = dict(self.copied)
        paths = [path for path in sorted(self.old.glob("*.json")) if not path.name.startswith(".")]
        for start in range(0, len(paths), _BATCH):
            with contextlib.ExitStack() as locks:
                placed = [path for path in paths[start : start + _BATCH] if self._place(path, locks)]
                sync_directory(self.new)
                for path in placed:
                    self._remove(path)
                    self.moved += 1
        self._move_history(history)
        if self.copied != known:
            with contextlib.suppress(JambaError), atomic_write(self.new / _COPIED, private=True) as file:
                file.write(json.dumps(self.copied).encode())
        for lock in self.old.glob("*.lock"):  # a move that was killed leaves some
            with contextlib.suppress(OSError, LockedError), lock_file(lock):
                _remove_lock(lock, lock.with_suffix(".json"))
        with contextlib.suppress(OSError):
            self.old.rmdir()  # fails while there is something else in it
        self._say()

    def _place(self, path: Path, locks: contextlib.ExitStack) -> bool:
        """Bring a session to the new folder, where it stays locked; whether the old file can go."""
        try:
            info = path.lstat()
            if self.copied.get(str(path)) == _version(info):
                return False
            if not (stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode)):
                return False
            self._lock_old(path, locks)
            return self._place_as(path, locks)
        except LockedError as error:
            logger.info(
                "session %r is open in an earlier version of this program (%s): it is moved once it is closed",
                path.stem,
                error.owner,
            )
        except OSError as error:
            logger.warning("cannot move %s to %s: %s; it stays there", path, self.new, error.strerror or error)
        return False

    def _lock_old(self, path: Path, locks: contextlib.ExitStack) -> None:
        lock = path.with_suffix(".lock")
        try:
            locks.enter_context(lock_file(lock))
        except OSError:  # a place that cannot be written to
            return
        locks.callback(_remove_lock, lock, path)

    def _place_as(self, path: Path, locks: contextlib.ExitStack) -> bool:
        """Bring a session to the new folder under the first name that is free."""
        for name in _names(path.stem):
            target = self.new / f"{name}.json"
            lock = target.with_suffix(".lock")
            try:
                held = lock_file(lock)
            except LockedError:  # a session of that name is about to be saved
                continue
            locks.callback(_release, held, lock, target)
            if os.path.lexists(target):
                if _same(path, target):  # an earlier move got this far
                    return True
                continue
            _bring(path, target)
            if name != path.stem:
                logger.warning(
                    "there are two sessions named %r: the one from %s is now named %r", path.stem, self.old, name
                )
            return True
        raise AssertionError

    def _move_history(self, history: Path) -> None:
        path = self.old / HISTORY
        try:
            info = path.lstat()
            if self.copied.get(str(path)) == _version(info) or not stat.S_ISREG(info.st_mode):
                return
            if os.path.lexists(history):
                earlier, later = read_regular(path), read_regular(history)
                with atomic_write(history, private=True) as file:
                    file.write(earlier + later)
            else:
                private_folder(history.parent, "keep the history")
                _bring(path, history)
                sync_directory(history.parent)
        except FileNotFoundError:
            return
        except (OSError, JambaError) as error:
            logger.warning("cannot move %s to %s: %s; it stays there", path, history, error)
            return
        self._remove(path)
        self.history = True

    def _remove(self, path: Path) -> None:
        """Remove an old file; one that cannot be removed is remembered, so that it is not taken for another session."""
        try:
            path.unlink()
        except OSError:
            with contextlib.suppress(OSError):
                self.copied[str(path)] = _version(path.lstat())
            self._stays = True

    def _read_copied(self) -> dict[str, str]:
        try:
            value = json.loads(read_regular(self.new / _COPIED))
        except (OSError, ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def _say(self) -> None:
        what = [counted(self.moved, "session")] if self.moved else []
        what += ["the history of chats"] if self.history else []
        if not what:
            return
        stays = " (the old files cannot be removed and stay)" if self._stays else ""
        logger.info("moved %s from the cache, %s, to %s%s", " and ".join(what), self.old, self.new, stays)


def _version(info: os.stat_result) -> str:
    """What changes when a file is written, but not when a link to it is removed."""
    return f"{info.st_size}:{info.st_mtime_ns}"


def _names(name: str) -> Iterator[str]:
    """``name``, then it with a number, within the limits of a session's name."""
    yield name
    for number in itertools.count(2):
        base, end = name, f"-{number}"
        while len(base + end) > _MAX_LETTERS or len(os.fsencode(base + end)) > _MAX_BYTES:
            base = base[:-1]
        yield base + end


def _same(path: Path, target: Path) -> bool:
    """Whether ``target`` is already what ``path`` is to become."""
    if path.is_symlink():
        return target.is_symlink() and os.path.realpath(target) == os.path.realpath(path)
    return target.is_file() and filecmp.cmp(path, target, shallow=False)


def _bring(path: Path, target: Path) -> None:
    """Make ``target``, which does not exist, the same file as ``path``, or on another file system a copy. Raises OSError."""
    if path.is_symlink():
        target.symlink_to(os.path.realpath(path))
        return
    try:
        os.link(path, target)
        return
    except FileExistsError:
        raise
    except OSError:  # another file system, or one without links
        pass
    part = TemporaryFile(target)
    try:
        with path.open("rb") as source, os.fdopen(part.open(0o600), "wb") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
        shutil.copystat(path, part.path)
        part.rename()
    finally:
        part.remove()


def _remove_lock(lock: Path, path: Path) -> None:
    if not os.path.lexists(path):
        with contextlib.suppress(OSError):
            lock.unlink()


def _release(held: IO[bytes], lock: Path, target: Path) -> None:
    """Release the lock of a session in the new folder; without a session the lock file is removed too."""
    _remove_lock(lock, target)
    held.close()
