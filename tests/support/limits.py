"""Limits of this process that hold for a while. Not on Windows."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def limited(what: int, value: int) -> Iterator[None]:
    """The soft limit ``what`` (``resource.RLIMIT_...``) is ``value``."""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)
