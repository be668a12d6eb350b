"""Runs a command in a pseudo-terminal: what a person sees of it, with keys typed in advance."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence


def in_terminal(arguments: Sequence[str], typed: str = "", *, columns: int = 80) -> tuple[int, str]:
    """Run ``jamba`` with all three streams on a terminal, where ``typed`` has been typed; its exit code and what the terminal
    received, with plain line ends. Skip tests that use it where ``os.openpty`` is missing."""
    import fcntl
    import struct
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    os.write(ours, typed.encode())
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    command = [sys.executable, "-m", "jambacli", *arguments]
    with subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment, "TERM": "xterm"},
        start_new_session=True,
    ) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # the end of a terminal is an error on Linux
            while piece := os.read(ours, 65536):
                seen += piece
    os.close(ours)
    return process.returncode, seen.decode("utf-8", "replace").replace("\r\n", "\n")
