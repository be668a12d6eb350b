"""Temporary files of writers: locked while they are written, renamed when they are complete, and removed by a later process
when their writer was killed.

A temporary file is ``.NAME.PID.HEX.part`` beside the file it is to become. With 16 hexadecimal digits its writer holds a lock
on it (flock) until it has its final name, so one that can be locked has no writer, whatever runs under that number today. With
8 digits it is of a version without locks: it counts as abandoned when its process is gone and it has not changed for an hour.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from jambacli.units import counted, format_bytes

logger = logging.getLogger(__name__)

_NAME = re.compile(r"\.(?:.{1,50}\.)?(\d{1,10})\.([0-9a-f]{8}|[0-9a-f]{16})\.part", re.DOTALL)
_LOCKED_DIGITS = 16
# Seconds without a change after which a file without a lock, whose process is gone, has no writer on another machine either.
_OLD = 3600
_TRIES = 100
_MAX_RECORD = 1 << 16
# Folders that this process has searched.
_searched: set[Path] = set()
# Folders that this process has made to hold the records; they go with the last record, if nothing else is in them.
_made: set[Path] = set()


class TemporaryFile:
    """A file while it is written. ``path``: its temporary name. ``target``: its final one, the target of ``path`` if that is
    a link, which is kept. ``renamed``: whether it has its final name.

    Call ``open``, then ``rename`` or ``remove``; ``remove`` does nothing after ``rename``. ``records``: a folder in which the
    file's place is noted meanwhile, for ``remove_recorded``. ``search``: remove what killed processes have left beside it.
    """

    def __init__(self, path: Path, *, records: Path | None = None, search: bool = True) -> None:
        # Not path.resolve(), which fails for a link to itself.
        self.target = Path(os.path.realpath(path)) if path.is_symlink() else path
        self.path = self._new_name()
        self._records, self._search = records, search
        self._record: Path | None = None
        self._lock = -1
        self._created = self.renamed = False

    def open(self, mode: int = 0o666) -> int:
        """Create the file and return its descriptor, which the caller closes before ``rename``. Raises OSError."""
        if self._search:
            remove_abandoned_once(self.target.parent)
            if self._records is not None and self._records not in _searched:  # and what was left in other folders
                _searched.add(self._records)
                report_removed(remove_recorded(self._records))
        for _ in range(_TRIES):
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
            self._created = True
            try:
                # Between its creation and its lock, another process may have taken it for abandoned.
                if _locked(fd) is not False and os.fstat(fd).st_nlink:
                    self._hold(fd)
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            self.path = self._new_name()
        raise OSError("another process removes the temporary file")

    def rename(self) -> None:
        """Give the file its final name and release its lock. Raises OSError."""
        self.path.replace(self.target)
        self.renamed = True
        self._release()

    def remove(self) -> None:
        """Remove the file, if it has not been renamed, and release its lock."""
        if self._created and not self.renamed:  # on a read-only file system, removing nothing fails too
            self.path.unlink(missing_ok=True)
        self._release()

    def _new_name(self) -> Path:
        # File names are limited to 255 bytes, so only the first 50 characters of a name (at most 4 bytes each) are used.
        return self.target.with_name(f".{self.target.name[:50]}.{os.getpid()}.{os.urandom(8).hex()}.part")

    def _hold(self, fd: int) -> None:
        """Keep the lock when the caller closes ``fd``, and note the file's place."""
        if os.name == "posix":  # elsewhere an open file can be neither renamed nor removed
            self._lock = os.dup(fd)
        if self._records is not None:
            with contextlib.suppress(OSError):
                if not self._records.parent.exists():
                    _made.add(self._records.parent)
                self._records.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._record = self._records / os.urandom(8).hex()
                self._record.write_bytes(os.fsencode(Path(os.path.abspath(self.path))))  # noqa: PTH100 - links are kept

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        if self._record is not None:
            with contextlib.suppress(OSError):
                self._record.unlink()
                self._record.parent.rmdir()  # fails while another file is noted there
                if self._record.parent.parent in _made:
                    self._record.parent.parent.rmdir()
            self._record = None


def remove_abandoned_once(folder: Path) -> None:
    """Remove the temporary files of killed processes in ``folder`` and log how many; once in a process."""
    if folder not in _searched:
        _searched.add(folder)
        report_removed(remove_abandoned(folder))


def report_removed(sizes: Iterable[int]) -> None:
    """Log the number and size of removed files, if there are any."""
    found = list(sizes)
    if found:
        logger.info(
            "removed %s that killed processes had left unfinished (%s)",
            counted(len(found), "file"),
            format_bytes(sum(found)),
        )


def remove_abandoned(folder: Path, *, below: bool = False, skip: Iterable[Path] = ()) -> list[int]:
    """Remove the temporary files without a writer in ``folder`` (``below``: and in its subdirectories, but not in those to
    ``skip``); returns their sizes in bytes."""
    found: list[int] = []
    left_out = set(skip)
    for root, folders, files in os.walk(folder):
        here = Path(root)
        folders[:] = [name for name in folders if here / name not in left_out] if below else []
        found += (size for name in files if (size := remove_if_abandoned(here / name)) is not None)
    return found


def remove_recorded(records: Path) -> list[int]:
    """Remove the temporary files without a writer that are noted in the folder ``records``; returns their sizes in bytes."""
    found = []
    for record in records.iterdir() if records.is_dir() else ():
        with contextlib.suppress(OSError, ValueError):
            with record.open("rb") as file:
                path = Path(os.fsdecode(file.read(_MAX_RECORD)))
            size = remove_if_abandoned(path) if path.is_absolute() else None
            if size is not None:
                found.append(size)
            if not os.path.lexists(path):
                record.unlink()
    with contextlib.suppress(OSError):
        records.rmdir()
    return found


def remove_if_abandoned(path: Path) -> int | None:
    """Remove ``path`` if it is a temporary file without a writer; its size in bytes, None if it stays."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    try:
        info = path.lstat()
        if not stat.S_ISREG(info.st_mode):
            return None
        fd = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    try:
        locked = _locked(fd)
        lockable = locked is not None and len(match[2]) == _LOCKED_DIGITS
        if locked is False or not (lockable or _is_old(int(match[1]), info)):
            return None
        if os.name != "posix":  # a file that is open, here or in its writer, cannot be removed
            os.close(fd)
            fd = -1
        path.unlink()
    except OSError:
        return None
    finally:
        if fd >= 0:
            os.close(fd)
    return info.st_size


def _is_old(pid: int, info: os.stat_result) -> bool:
    return time.time() - info.st_mtime > _OLD and not _runs(pid)


def _runs(pid: int) -> bool:
    if os.name != "posix":  # there os.kill ends the process
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _locked(fd: int) -> bool | None:
    """Lock an open file until every copy of ``fd`` is closed, in forked processes too; False: another process has locked it,
    None: there are no locks on this platform or file system."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
