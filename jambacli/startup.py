"""Start and end a process faster by keeping imported modules out of garbage collection.

Importing torch creates a million objects that stay. Collecting garbage among them, repeatedly during the import and again at
exit, took a quarter of a short command's time.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import signal
import sys
from collections.abc import Iterator
from typing import Any

_own = False


def own_process() -> None:
    """Declare that the process belongs to one command: imported objects are never collected again, and what a signal raises is
    not dropped in a finalizer."""
    global _own
    if not _own:
        _own = True
        atexit.register(gc.freeze)  # not at exit either
        with contextlib.suppress(AttributeError, ValueError):  # not on this platform, or not in the main thread
            signal.signal(signal.SIGALRM, _raise_again)
            sys.unraisablehook = _unraisable


def signals_raise() -> None:
    """Let SIGTERM and SIGHUP unwind the stack, so that temporary files are removed, as Ctrl-C does."""
    for name in ("SIGTERM", "SIGHUP"):
        with contextlib.suppress(AttributeError, ValueError):  # not on this platform, or not in the main thread
            signal.signal(getattr(signal, name), lambda number, frame: sys.exit(128 + number))


# What a signal raised where Python drops exceptions.
_dropped: BaseException | None = None
# Seconds until it is raised again.
_SOON = 0.002


def _unraisable(what: Any) -> None:
    """Called with an exception that Python drops, in a finalizer for example. One that a signal raised is raised again
    elsewhere: the signal would be lost."""
    global _dropped
    if isinstance(what.exc_value, SystemExit | KeyboardInterrupt):
        _dropped = what.exc_value
        signal.setitimer(signal.ITIMER_REAL, _SOON)
    else:
        sys.__unraisablehook__(what)


def _raise_again(number: int, frame: Any) -> None:
    global _dropped
    error, _dropped = _dropped, None
    if isinstance(error, SystemExit):
        sys.exit(error.code)
    handler = signal.getsignal(signal.SIGINT)  # which may hold it back
    if error is not None and callable(handler):
        handler(signal.SIGINT, frame)


def end_process() -> None:
    """Let a signal end the process at once from here on: Python would report it from wherever its own end is, with a
    traceback."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        with contextlib.suppress(AttributeError, ValueError):  # not on this platform, or not in the main thread
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    with contextlib.suppress(AttributeError, ValueError):
        signal.signal(signal.SIGALRM, signal.SIG_IGN)


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
