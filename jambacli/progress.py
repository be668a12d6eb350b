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
