"""Stops and Ctrl-C: a request to end a reply, and Ctrl-C held back where it would tear a state apart."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from jambacli.errors import JambaError

# A person who presses Ctrl-C this often within one held block gets out of it, whatever is lost.
_PATIENCE = 3


class StoppedError(JambaError):
    """A stop was asked for before the prompt was read."""


class Stop:
    """A request to end something between two of its steps. It may be asked for in any thread and in a signal handler."""

    __slots__ = ("_asked",)

    def __init__(self) -> None:
        self._asked = False  # a plain attribute: the lock of a threading.Event could be held by the interrupted code

    def ask(self) -> None:
        """Ask for the end."""
        self._asked = True

    @property
    def asked(self) -> bool:
        """Whether it was asked for."""
        return self._asked


@contextlib.contextmanager
def interrupts_held() -> Iterator[Stop]:
    """Hold Ctrl-C back until the end of the block, then call what handles it: by default it raises KeyboardInterrupt.

    Yields a Stop that is asked when one came, for long blocks that can end early. In other threads than the main one, which
    get no signals, and where Ctrl-C is not handled in Python, the block just runs.
    """
    came = Stop()
    handler = _handler()
    if handler is None:
        yield came
        return
    times = 0

    def hold(number: int, frame: Any) -> None:
        nonlocal times
        times += 1
        came.ask()
        if times >= _PATIENCE:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, hold)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, handler)
    for _ in range(times):
        handler(signal.SIGINT, None)


@contextlib.contextmanager
def interrupts_stop(stop: Callable[[], None]) -> Iterator[Stop]:
    """In the block the first Ctrl-C calls ``stop``, every further one raises KeyboardInterrupt. Yields a Stop that is asked
    when one came."""
    came = Stop()
    handler = _handler()
    if handler is None:
        yield came
        return

    def ask(number: int, frame: Any) -> None:
        if came.asked:
            raise KeyboardInterrupt
        came.ask()
        stop()

    signal.signal(signal.SIGINT, ask)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, handler)


def _handler() -> Callable[[int, Any], Any] | None:
    """What Python calls at a Ctrl-C, None if it calls nothing or in another thread."""
    if threading.current_thread() is not threading.main_thread():
        return None
    handler = signal.getsignal(signal.SIGINT)
    return handler if callable(handler) else None
