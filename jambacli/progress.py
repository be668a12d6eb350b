"""How library code reports progress: a callback that the front end provides, by default one that shows nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class Progress(Protocol):
    """Opens a progress display; the context manager yields ``advance(n)``, called with each amount of work done."""

    def __call__(
        self, title: str, total: int | None, unit: str = "bytes"
    ) -> AbstractContextManager[Callable[[int], None]]:
        """``title``: what is being done ("Quantizing"). ``total``: amount of work, None if unknown. ``unit``: "bytes", or
        the plural of what is counted ("tokens")."""


def no_progress(title: str, total: int | None, unit: str = "bytes") -> AbstractContextManager[Callable[[int], None]]:
    """A Progress that shows nothing."""
    return contextlib.nullcontext(lambda n: None)


class Transfers(Protocol):
    """Opens a progress display for several files that are transferred together; the context manager yields ``begin``.

    ``begin(name, size, done)`` is called as each file starts and returns its ``advance(n)``; all numbers are bytes.
    """

    def __call__(
        self, title: str, total: int, done: int = 0
    ) -> AbstractContextManager[Callable[[str, int, int], Callable[[int], None]]]:
        """``title``: what is being done ("Pulling jamba:3b"). ``total``: bytes of all files. ``done``: bytes of them that
        an earlier run has transferred already."""


def no_transfers(
    title: str, total: int, done: int = 0
) -> AbstractContextManager[Callable[[str, int, int], Callable[[int], None]]]:
    """A Transfers that shows nothing."""
    return contextlib.nullcontext(lambda name, size, done: lambda n: None)
