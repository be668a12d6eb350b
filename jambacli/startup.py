"""Start and end a process faster by keeping imported modules out of garbage collection.

Importing torch creates a million objects that stay. Collecting garbage among them, repeatedly during the import and again at
exit, took a quarter of a short command's time.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import signal
from collections.abc import Iterator

_own = False


def own_process() -> None:
    """Declare that the process belongs to one command: imported objects are never collected again."""
    global _own
    if not _own:
        _own = True
        atexit.register(gc.freeze)  # not at exit either


def end_process() -> None:
    """Let a signal end the process at once from here on: Python would report it from wherever its own end is, with a
    traceback."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        with contextlib.suppress(AttributeError, ValueError):  # not on this platform, or not in the main thread
            signal.signal(getattr(signal, name), signal.SIG_DFL)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Disable the garbage collector during imports of torch; after ``own_process`` it never visits the imported objects."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if _own:
            gc.freeze()
        if was_on:
            gc.enable()
