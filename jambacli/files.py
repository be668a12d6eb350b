"""The one way a file is written: under a temporary name beside its place, flushed, renamed; knows nothing of contents."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from jambacli.errors import JambaError


def refuse_existing(path: Path, force: bool) -> None:
    """Raise JambaError when ``path`` exists and the user has not said ``--force``, or is nothing a file could replace.

    A device, a pipe or a directory stays what it is, whatever was said.
    """
    try:
        mode = path.stat().st_mode
    except OSError:  # not there, or not to be reached: then writing says why
        return
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise JambaError(f"cannot write {path}: it is {kind}; give the name of a file")
    if not force:
        raise JambaError(f"{path} exists already; choose another name, or use --force to replace it")


def temporary_beside(path: Path) -> tuple[Path, Path]:
    """A new temporary name and the place to rename it to: ``path``, or what it is a link to, so that links stay."""
    place = path.resolve() if path.is_symlink() else path
    # Names may have 255 bytes: of a long one only the beginning is taken, 4 bytes a character at most.
    return place.with_name(f".{place.name[:50]}.{os.getpid()}.{os.urandom(4).hex()}.part"), place


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
    becomes a JambaError naming ``path``, and so does a device, a pipe or a directory of that name.
    """
    path = Path(path)
    refuse_existing(path, force=True)
    part, place = temporary_beside(path)
    try:
        with part.open("w+b") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        part.replace(place)
    except OSError as error:
        raise JambaError(f"cannot write {path}: {error.strerror or error}; nothing was left behind") from error
    finally:
        part.unlink(missing_ok=True)
    if durable:
        sync_directory(place.parent)


def path_of(text: str) -> Path:
    """The path that a person wrote, ``~`` expanded; that of an unknown ~user stands as it is, and leads nowhere."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path's own raises RuntimeError there


def jamba_home() -> Path:
    """The folder of models, sessions and prefixes: ``JAMBA_HOME``, or the platform's user cache directory."""
    if home := os.environ.get("JAMBA_HOME"):
        return path_of(home)
    import platformdirs

    return Path(platformdirs.user_cache_dir("jamba", appauthor=False))


def private_folder(folder: Path, purpose: str, inside: Iterable[str] = ()) -> Path:
    """Create a folder below ``jamba_home``, private to the user, with the subfolders ``inside``; returns it.

    Raises JambaError when it cannot be created: "cannot ``purpose`` under ...", with a purpose such as "keep sessions".
    """
    try:
        for place in (folder, *(folder / name for name in inside)):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise JambaError(
            f"cannot {purpose} under {folder}: {error.strerror or error}; set JAMBA_HOME to a folder that can be "
            "written to"
        ) from error
    with contextlib.suppress(OSError):
        folder.chmod(0o700)
    return folder
