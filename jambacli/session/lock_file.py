"""Lock files: a lock that ends with its process, however that ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO


class LockedError(Exception):
    """Another process holds the lock; ``owner``: its number, or "unknown"."""

    def __init__(self, owner: str) -> None:
        super().__init__(owner)
        self.owner = owner


def lock_file(path: Path) -> IO[bytes]:
    """Create and lock a file, until the returned one is closed; it holds this process's number.

    On a platform without locks nothing is locked. Raises LockedError at once when another process holds it, OSError when it
    cannot be written.
    """
    file = path.open("a+b")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
            file.close()
            return lock_file(path)  # its last owner has just removed it
    except ImportError:
        return file
    except OSError as error:
        file.seek(0)
        owner = file.read(20).decode("ascii", "replace").strip() or "unknown"
        file.close()
        raise LockedError(owner) from error
    file.truncate(0)
    file.write(f"{os.getpid()}".encode())
    file.flush()
    return file
