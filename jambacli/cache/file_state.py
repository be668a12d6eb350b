"""Whether a file's identity (``files.file_identity``) can stand for its bytes: whether every later change will alter it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence

# File systems count the times of changes in steps of up to 10 ms, or of whole seconds (2 s on FAT).
_STEP, _COARSE_STEP = 0.02, 2.0
# Files that were changed this long ago, in seconds, have been written to the disk. The clocks of a file server may differ less.
_OLD = 3600


def settled(descriptors: Sequence[int]) -> bool:
    """Wait until another change of these open files gets another time; False while a program has one open for writing.

    Such a program can change bytes without a new time: through a mapped page that it has changed before.
    """
    wait = 0.0
    for fd in descriptors:
        info = os.fstat(fd)
        # Below 0: the clock was set back, or it is a server's. Then only time that passes from now on counts.
        age = time.time() - max(info.st_mtime, info.st_ctime)
        if age < _OLD:
            wait = max(wait, _STEP if info.st_ctime_ns % 10**9 else _COARSE_STEP)
        writers = _has_writers(fd)
        if writers:
            return False
        if writers is None and age < _OLD:
            # Pages that were written to the disk get a new time with their next change.
            with contextlib.suppress(OSError):
                os.fsync(fd)
    time.sleep(wait)
    return True


def _has_writers(fd: int) -> bool | None:
    """Whether a program has the file open for writing; None where the system does not tell.

    Linux grants a read lease to the owner of a file that nobody has open for writing.
    """
    try:
        import fcntl

        # If somebody opens the file at this moment, the kernel sends a signal: one that is ignored by default.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except (ImportError, AttributeError, OSError):
        return None
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
