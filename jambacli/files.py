"""Atomic file writes (temporary file, flush, rename), and the directories that this program uses."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from jambacli.errors import JambaError
from jambacli.unfinished import TemporaryFile, remove_abandoned, remove_recorded, report_removed

# Below ``jamba_home``: the places of files that are being written elsewhere.
_RECORDS = "unfinished"
# Below ``jamba_home``: many files, whose temporary ones the prefix store removes.
_STORED = ("prefixes/blobs", "prefixes/index")


def refuse_existing(path: Path, force: bool) -> None:
    """Raise JambaError where ``path`` exists and ``force`` is False, or where it is a directory, a device or a pipe."""
    try:
        mode = path.stat().st_mode
    except OSError:  # it does not exist, or cannot be reached: writing it will report why
        return
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise JambaError(f"cannot write {path}: it is {kind}; give the name of a file")
    if not force:
        raise JambaError(f"{path} already exists", remedy="choose another name, or use {force} to replace it")


def temporary_beside(path: Path) -> TemporaryFile:
    """A temporary file for an output that takes long to write. ``remove_unfinished`` finds it, wherever it is, should this
    process be killed."""
    try:
        records = jamba_home() / _RECORDS
    except JambaError:  # no home
        return TemporaryFile(path)
    return TemporaryFile(path, records=records)


def remove_unfinished() -> None:
    """Remove the temporary files of killed processes under ``jamba_home`` and ``data_home`` and where ``temporary_beside`` has
    noted one; log how many. Raises JambaError for a user without a home directory."""
    home = jamba_home()
    skip = [home / name for name in _STORED]
    found = [*remove_recorded(home / _RECORDS), *remove_abandoned(home, below=True, skip=skip)]
    if data_home() != home:
        found += remove_abandoned(data_home(), below=True)
    report_removed(found)


def sync_directory(path: Path) -> None:
    """Flush a directory's entries, so that a rename survives a power failure; does nothing if the platform cannot."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def atomic_write(
    path: Path, *, durable: bool = True, private: bool = False, recorded: bool = False
) -> Iterator[BinaryIO]:
    """Open a temporary file in ``path``'s directory; on a clean exit flush it and rename it to ``path``, else remove it.

    The file is opened ``w+b``, so that it can be preallocated and written out of order. ``durable``: flush to the disk, so
    that the file survives a power failure. ``private``: only the user can read it. ``recorded``: for a large file, see
    ``temporary_beside``. Raises JambaError naming ``path`` for an OSError (a full disk, say), and when ``path`` is a device, a
    pipe or a directory.
    """
    path = Path(path)
    refuse_existing(path, force=True)
    part = temporary_beside(path) if recorded else TemporaryFile(path)
    try:
        with os.fdopen(part.open(0o600 if private else 0o666), "w+b") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        part.rename()
    except OSError as error:
        raise JambaError(f"cannot write {path}: {error.strerror or error}; nothing was left behind") from error
    finally:
        part.remove()
    if durable:
        sync_directory(part.target.parent)


def open_regular(path: Path) -> BufferedReader:
    """Open a file of this program for reading. Raises OSError also for a pipe, which would wait for a writer, or a device."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def read_regular(path: Path) -> bytes:
    """The bytes of a file of this program; see ``open_regular``."""
    with open_regular(path) as file:
        return file.read()


def file_identity(info: os.stat_result) -> str:
    """What changes when a file's bytes change. Not its path: a file can be moved."""
    return f"{info.st_dev}:{info.st_ino}:{info.st_size}:{info.st_mtime_ns}:{info.st_ctime_ns}"


def path_of(text: str) -> Path:
    """``text`` as a path with ``~`` expanded; an unknown ``~user`` is left as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises RuntimeError for an unknown user


def jamba_home() -> Path:
    """The directory of models and of what can be computed again: ``JAMBA_HOME``, or ``jamba`` in the platform's user cache
    directory.

    Raises JambaError for a user without a home directory.
    """
    return _home("cache")


def data_home() -> Path:
    """The directory of what a user has made, such as sessions: ``JAMBA_HOME``, or ``jamba`` in the platform's user data
    directory, which no program empties. Raises JambaError for a user without a home directory."""
    return _home("data")


def state_home() -> Path:
    """The directory of what a user has typed: ``JAMBA_HOME``, or ``jamba`` in the platform's user state directory. Raises
    JambaError for a user without a home directory."""
    return _home("state")


def config_home() -> Path:
    """The directory of the user's settings: ``JAMBA_HOME``, or ``jamba`` in the platform's user config directory. Raises
    JambaError for a user without a home directory."""
    return _home("config")


def _home(kind: str) -> Path:
    if (home := os.environ.get("JAMBA_HOME", "")).strip():
        return path_of(home)
    import platformdirs

    folders = {
        "cache": platformdirs.user_cache_dir,
        "config": platformdirs.user_config_dir,
        "data": platformdirs.user_data_dir,
        "state": platformdirs.user_state_dir,
    }
    try:
        return Path(folders[kind]("jamba", appauthor=False))
    except RuntimeError as error:
        raise JambaError(
            "this user has no home directory; set JAMBA_HOME to a folder that can be written to"
        ) from error


def private_folder(folder: Path, purpose: str, inside: Iterable[str] = ()) -> Path:
    """Create a directory below ``jamba_home`` that only the user can access, with the subdirectories ``inside``; returns it.

    ``purpose`` ("keep sessions") is what the JambaError says cannot be done when it cannot be created.
    """
    try:
        for path in (folder, *(folder / name for name in inside)):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise JambaError(
            f"cannot {purpose} under {folder}: {error.strerror or error}; set JAMBA_HOME to a folder that can be "
            "written to"
        ) from error
    with contextlib.suppress(OSError):
        folder.chmod(0o700)
    return folder
