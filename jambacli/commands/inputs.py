"""Texts that come from a file or from standard input."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from jambacli.errors import JambaError

#: Maximum size of a text that is read whole, in bytes.
MAX_INPUT = 256 << 20


def read_text(path: Path | None) -> str:
    """The text of a file, or of stdin for ``-``. Raises JambaError when it is missing, too large or not UTF-8."""
    name = "standard input" if path is None or str(path) == "-" else str(path)
    try:
        if path is None or str(path) == "-":
            data = sys.stdin.buffer.read(MAX_INPUT + 1)
        else:
            with path.open("rb") as file:
                data = file.read(MAX_INPUT + 1)
    except OSError as error:
        raise JambaError(f"cannot read {name}: {error.strerror}") from error
    if len(data) > MAX_INPUT:
        raise JambaError(f"{name} is larger than {MAX_INPUT >> 20} MB of text; give a part of it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JambaError(f"{name} is not UTF-8 text (byte {error.start}); convert it first") from error


def has_input() -> bool:
    """Whether something is piped in: standard input is a pipe, a file or a socket."""
    if sys.stdin.isatty():
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)
