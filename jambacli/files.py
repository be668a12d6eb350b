"""Atomic file writes (temporary file, flush, rename), and the directories that this program uses."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from jambacli.errors import JambaError


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


def temporary_beside(path: Path) -> tuple[Path, Path]:
    """A new temporary path, and the path to rename it to: ``path``, or the target if ``path`` is a link, which is kept."""
    target = path.resolve() if path.is_symlink() else path
    # File names are limited to 255 bytes, so only the first 50 characters of a name (at most 4 bytes each) are used.
    return target.with_name(f".{target.name[:50]}.{os.getpid()}.{os.urandom(4).hex()}.part"), target


def sync_directory(path: Path) -> None:
    """Flush a directory's entries, so that a rename survives a power failure; does nothing if the platform cannot."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextlib.contextmanager
def atomic_write(path: Path, *, durable: bool = True, private: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file in ``path``'s directory; on a clean exit flush it and rename it to ``path``, else remove it.

    The file is opened ``w+b``, so that it can be preallocated and written out of order. ``durable``: flush to the disk, so
    that the file survives a power failure. ``private``: only the user can read it. Raises JambaError naming ``path`` for an
    OSError (a full disk, say), and when ``path`` is a device, a pipe or a directory.
    """
    path = Path(path)
    refuse_existing(path, force=True)
    part, target = temporary_beside(path)
    try:
        with open(part, "w+b", opener=_private if private else None) as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        raise JambaError(f"cannot write {path}: {error.strerror or error}; nothing was left behind") from error
    finally:
        part.unlink(missing_ok=True)
    if durable:
        sync_directory(target.parent)


def file_identity(info: os.stat_result) -> str:
    """What changes when a file's bytes change. Not its path: a file can be moved."""
    return f"{info.st_dev}:{info.st_ino}:{info.st_size}:{info.st_mtime_ns}:{info.st_ctime_ns}"


def path_of(text: str) -> Path:
    """``text`` as a path with ``~`` expanded; an unknown ``~user`` is left as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises RuntimeError for an unknown user


def jamba_home() -> Path:
    """The directory of models, sessions and prefixes: ``JAMBA_HOME``, or ``jamba`` in the platform's user cache directory.

    Raises JambaError for a user without a home directory.
    """
    if (home := os.environ.get("JAMBA_HOME", "")).strip():
        return path_of(home)
    import platformdirs

    try:
        return Path(platformdirs.user_cache_dir("jamba", appauthor=False))
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
