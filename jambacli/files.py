"""The one way a file is written: under a temporary name beside its place, flushed, renamed; knows nothing of contents."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from jambacli.errors import JambaError


def refuse_existing(path: Path, force: bool) -> None:
    """Raise JambaError when ``path`` exists and the user has not said ``--force``."""
    if path.exists() and not force:
        raise JambaError(f"{path} exists already; choose another name with -o, or use --force to replace it")


def sync_directory(path: Path) -> None:
    """Flush a directory's entries, so that a rename survives a power cut; silent where the platform cannot."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``; on a clean exit flush it and rename it into place, else remove it.

    The file is opened ``w+b`` so that it can be preallocated and written out of order. OSError (a full disk, say)
    becomes a JambaError naming ``path``.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.part")
    try:
        with part.open("w+b") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise JambaError(f"cannot write {path}: {error.strerror or error}; nothing was left behind") from error
    finally:
        part.unlink(missing_ok=True)
    if durable:
        sync_directory(path.parent)


def jamba_home() -> Path:
    """Where models, sessions and prefixes live: ``JAMBA_HOME`` or the platform's user cache directory."""
    if home := os.environ.get("JAMBA_HOME"):
        return Path(home).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("jamba", appauthor=False))
