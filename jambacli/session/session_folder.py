"""Where sessions lie and what they are called. Light: imports neither numpy nor torch."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
import unicodedata
from pathlib import Path

from jambacli.errors import JambaError, UsageError
from jambacli.files import data_home, jamba_home, private_folder, state_home
from jambacli.session.moved_sessions import HISTORY, keep_link, move_once

_FOLDER = "sessions"


def check_name(name: str) -> str:
    """``name`` in NFC, if it is valid: up to 64 letters, marks and digits of any script, dots, dashes, underscores.

    Raises UsageError otherwise, or for more than 200 bytes: file systems limit the length of a file's name.
    """
    composed = unicodedata.normalize("NFC", name)
    # \w leaves out marks, such as vowels in Devanagari and Thai, and points in Hebrew.
    letters = "".join(c for c in composed[1:] if not unicodedata.category(c).startswith("M"))
    valid = re.fullmatch(r"\w[\w.-]*", composed[:1] + letters) and len(composed) <= 64
    if not valid or len(composed.encode()) > 200:
        raise UsageError(
            f"session name {name[:80]!r} is not valid; use up to 64 letters, digits, dots, dashes or underscores"
        )
    return composed


def generated_name() -> str:
    """A new name for a session without one."""
    start, number = time.strftime("chat-%Y%m%d-%H%M%S"), os.getpid() % 10000
    while exists(f"{start}-{number:04d}"):
        number = (number + 1) % 10000
    return f"{start}-{number:04d}"


def sessions_folder() -> Path:
    """``sessions`` in the user's data (see ``data_home``), private to the user; those of earlier versions are moved there.

    Raises JambaError when it cannot be created.
    """
    old, new = jamba_home() / _FOLDER, data_home() / _FOLDER
    if old == new:
        return private_folder(new, "keep sessions")
    keep_link(old, new)
    private_folder(new, "keep sessions")
    move_once(old, new, history_place())
    return new


def history_path() -> Path:
    """The file of what was typed in chats, in a folder private to the user. Raises JambaError when it cannot be written."""
    sessions_folder()
    path = history_place()
    _check_writable(private_folder(path.parent, "keep the history"), "keep the history")
    with contextlib.suppress(OSError):  # it exists before others write it, for this user only
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        path.chmod(0o600)
    return path


def history_place() -> Path:
    """Where the file of what was typed in chats is, if there is one."""
    if state_home() == jamba_home():
        return jamba_home() / _FOLDER / HISTORY
    return state_home() / "history"


def require_writable() -> None:
    """Raise JambaError where no session can be saved."""
    _check_writable(sessions_folder(), "keep sessions")


def _check_writable(folder: Path, purpose: str) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise JambaError(
            f"cannot {purpose} under {folder}: {error.strerror or error}; set JAMBA_HOME to a folder that can be "
            "written to"
        ) from error


def session_path(name: str) -> Path:
    """The file of the session of that name."""
    return sessions_folder() / f"{check_name(name)}.json"


def exists(name: str) -> bool:
    """Whether there is a session of that name."""
    return session_path(name).exists()


def is_generated(name: str) -> bool:
    """Whether a name comes from ``generated_name``."""
    return re.fullmatch(r"chat-\d{8}-\d{6}-\d{4}", name) is not None


def names() -> list[str]:
    """The names of all sessions, most recently used first."""
    used: dict[str, float] = {}
    for path in sessions_folder().glob("*.json"):
        if not path.name.startswith("."):
            with contextlib.suppress(FileNotFoundError):  # another process has just removed it
                used[unicodedata.normalize("NFC", path.stem)] = path.stat().st_mtime
    return sorted(used, key=lambda name: -used[name])
