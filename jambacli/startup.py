"""Shortens the start and the end of a process that is a command's own; knows nothing of commands, models or arguments.

Importing torch makes a million objects that stay. Looking through them for garbage, again and again while they come and
once more at the end, took a quarter of a short command's time.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
from collections.abc import Iterator

_own = False


def own_process() -> None:
    """Say that this process is a command's own: what was imported is never looked through for garbage again."""
    global _own
    if not _own:
        _own = True
        atexit.register(gc.freeze)  # nor at the end, where it would be taken apart for nothing


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Around imports that bring torch: no garbage collection meanwhile, nor ever of what they leave in an own process."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if _own:
            gc.freeze()
        if was_on:
            gc.enable()
