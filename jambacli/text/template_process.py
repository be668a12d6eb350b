"""Compiles and renders chat templates in a child process with limits, one for all templates of this process.

A template is code from a model file. The child (``template_worker``) limits its memory and processor time; here the time that
it takes and the size of its answers are limited, and an interrupt ends it at once. A child that was killed or crashed is
replaced.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from jambacli.text.template_protocol import (
    LENGTH,
    MEMORY_CODE,
    Answer,
    Kind,
    characters_for,
    memory_for,
    seconds_for,
)

_ROOT = str(Path(__file__).resolve().parents[2])
_PROGRAM = "import sys; sys.path += sys.argv[1:]; from jambacli.text.template_worker import main; main()"
# Seconds that a new process may take to import jinja2 on a busy machine, and seconds without another try if it did not start.
_START_SECONDS, _PAUSE = 30.0, 30.0
# What a request waits for longer than its processor time: the process may not be alone.
_GRACE = 0.5
# Seconds of a processor with which a process has hardly run: most conversations are rendered in less.
_HARDLY = 0.1
# Bytes of an answer that is not a rendering.
_MESSAGE = 1 << 16
# A child that ended without a fault of the template is replaced, and asked again.
_ATTEMPTS = 2
_CPU_SIGNAL = getattr(signal, "SIGXCPU", 1 << 30)
_FROM_OUTSIDE = (
    0,
    *(-getattr(signal, name, 1 << 30) for name in ("SIGKILL", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1")),
)


class UnavailableError(Exception):
    """No child can be had."""


class _EndedError(Exception):
    """The child has ended. ``code``: as subprocess has it, 0 if it is unknown."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


class _TimeError(Exception):
    """The time is over."""


class _SizeError(Exception):
    """An answer is longer than allowed."""


def _too_much(megabytes: int) -> Answer:
    return Kind.LIMIT, f"it takes more than {megabytes} MB of memory"


class TemplateProcess:
    """A child process for templates. Its methods can be called from any thread; they take turns."""

    def __init__(self) -> None:
        self._reset()
        self._registered = False

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._not_before = 0.0
        self._key: str | None = None
        self._cancelled = False

    def start(self) -> None:
        """Start the child, if there is none, without waiting until it is ready."""
        with contextlib.suppress(UnavailableError), self._lock:
            self._running()

    def ask(self, request: bytes, key: str, size: int) -> Answer:
        """The answer to a marshalled request about the template ``key``, with ``size`` bytes of a user. Raises
        UnavailableError."""
        with self._lock:
            self._key, self._cancelled = key, False
            try:
                return self._asked(request, size)
            except BaseException:  # Ctrl-C: its answer would be taken for the next one's
                self._end()
                raise
            finally:
                self._key = None

    def cancel(self, key: str) -> None:
        """Let another thread's request about the template ``key`` fail at once."""
        child = self._child
        if self._key == key and child is not None:
            self._cancelled = True
            child.kill()

    def close(self) -> None:
        """End the child; the next request starts another."""
        child = self._child
        if child is not None:
            self._cancelled = True
            child.kill()
        with self._lock:
            self._end()

    def forget(self) -> None:
        """Leave the child to the process that started it: this one is a copy made by fork."""
        child = self._child
        self._reset()
        if child is not None:
            child.forget()

    def _asked(self, request: bytes, size: int) -> Answer:
        seconds, memory = seconds_for(size), memory_for(size) >> 20
        for attempt in range(_ATTEMPTS):
            child = self._running()
            try:
                child.wait_ready()
                answer = child.exchange(request, size, seconds + _GRACE)
                return _too_much(memory) if answer[0] is Kind.MEMORY else answer
            except UnavailableError:
                self._not_before = time.monotonic() + _PAUSE
                raise
            except _TimeError:
                self._end()
                return Kind.LIMIT, f"it takes more than {seconds} seconds"
            except _SizeError:
                self._end()
                return Kind.LIMIT, f"it produces more than {characters_for(size):,} characters"
            except _EndedError as error:
                self._end()
                if error.code == -_CPU_SIGNAL:
                    return Kind.LIMIT, f"it takes more than {seconds} seconds"
                if error.code == MEMORY_CODE:
                    return _too_much(memory)
                # It ended by itself before the request, or somebody killed it: a new one answers.
                if self._cancelled or error.code not in _FROM_OUTSIDE or attempt == _ATTEMPTS - 1:
                    return Kind.FAILED, "the process that renders it ended"
        raise AssertionError

    def _running(self) -> _Child:
        child = self._child
        if child is not None and child.alive():
            return child
        self._end()
        if time.monotonic() < self._not_before:
            raise UnavailableError
        try:
            self._child = child = _Child()
        except OSError as error:
            raise UnavailableError from error
        if not self._registered:
            self._registered = True
            atexit.register(self.close)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=self.forget)
        return child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()


class _Child:
    """One child, from its start to its end."""

    def __init__(self) -> None:
        """Raises OSError when it cannot be started."""
        if not sys.executable:
            raise OSError("there is no Python interpreter to start")
        given = None if sys.flags.ignore_environment else os.environ.get("PYTHONPATH")
        paths = os.pathsep.join(filter(None, [_ROOT, given]))
        self._process = subprocess.Popen(
            # -P: do not import a json.py from the user's directory. -S: what site does takes a fifth of the start.
            [sys.executable, "-P", "-S", "-c", _PROGRAM, *_packages()],
            # One arena: each reserves 64 MB of the address space.
            env={**os.environ, "PYTHONPATH": paths, "MALLOC_ARENA_MAX": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            # A terminal's Ctrl-C reaches the parent only.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = _taken(self._process.stdin), _taken(self._process.stdout)
        self._ready = False
        if _POLLS:
            os.set_blocking(self._input, False)
            os.set_blocking(self._output, False)

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Kill it; whoever waits for its answer sees that it has ended."""
        self._process.kill()

    def end(self) -> None:
        """Kill it and release what it held."""
        self._process.kill()
        self._process.wait()
        self._close()

    def forget(self) -> None:
        """Release what it holds in a copy of its parent."""
        self._process.returncode = 0
        self._close()

    def wait_ready(self) -> None:
        """Wait until it takes requests. Raises UnavailableError when it does not; _EndedError when it was killed."""
        if not self._ready:
            try:
                with self._limited(_START_SECONDS) as limit:
                    self._ready = self._answer(limit, _MESSAGE)[0] is Kind.READY
            except (_EndedError, _TimeError, _SizeError) as error:
                if isinstance(error, _EndedError) and error.code in _FROM_OUTSIDE[1:]:
                    raise
                raise UnavailableError from error

    def exchange(self, request: bytes, size: int, seconds: float) -> Answer:
        """The answer to a request with ``size`` bytes of a user. Raises _EndedError, _TimeError, _SizeError."""
        with self._limited(seconds) as limit:
            self._write(b"".join(n.to_bytes(LENGTH, "little") for n in (len(request), size)), limit)
            self._write(request, limit)
            return self._answer(limit, 4 * characters_for(size))

    def _close(self) -> None:
        for descriptor in (self._input, self._output):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    @contextlib.contextmanager
    def _limited(self, seconds: float) -> Iterator[_TimeLimit]:
        """A limit of the waits within. Where waits cannot be limited, the process is killed when it is reached."""
        limit = _TimeLimit(seconds, self._process.pid)
        if _POLLS:
            yield limit
            return
        timer = threading.Timer(seconds, self.kill)
        timer.start()
        try:
            yield limit
        except _EndedError as error:
            raise (error if limit.left() else _TimeError()) from None
        finally:
            timer.cancel()

    def _write(self, data: bytes, limit: _TimeLimit) -> None:
        rest = memoryview(data)
        while rest:
            _wait(self._input, _WRITABLE, limit)
            try:
                rest = rest[os.write(self._input, rest[:_PIECE]) :]
            except BlockingIOError:
                continue
            except OSError:
                raise _EndedError(self._code()) from None

    def _answer(self, limit: _TimeLimit, most: int) -> Answer:
        head = self._read(1 + LENGTH, limit)
        try:
            kind, size = Kind(bytes(head[:1])), int.from_bytes(head[1:], "little")
            if size > (most if kind is Kind.TEXT else _MESSAGE):
                raise _SizeError
            return kind, self._read(size, limit).decode("utf-8", "surrogatepass")
        except ValueError:  # not what it writes: something else has its descriptor
            raise _EndedError(1) from None

    def _read(self, size: int, limit: _TimeLimit) -> bytearray:
        data = bytearray()
        while len(data) < size:
            _wait(self._output, _READABLE, limit)
            try:
                piece = os.read(self._output, min(size - len(data), _PIECE))
            except BlockingIOError:
                continue
            if not piece:
                raise _EndedError(self._code())
            data += piece
        return data

    def _code(self) -> int:
        """The exit code of the process, which has closed its end of a pipe."""
        try:
            return self._process.wait(1)
        except subprocess.TimeoutExpired:
            return 0


# Where pipes can be waited for; on Windows they cannot.
_POLLS = hasattr(select, "poll")
_READABLE, _WRITABLE = getattr(select, "POLLIN", 0), getattr(select, "POLLOUT", 0)
_PIECE = 1 << 20
# How many times longer a request may take whose process waits for a processor.
_BUSY = 1.8


class _TimeLimit:
    """How long a request may take. On a busy machine it goes on while the process got less than a third of its time, and much
    longer while it hardly ran."""

    def __init__(self, seconds: float, process: int) -> None:
        self._seconds, self._process = seconds, process
        now = time.monotonic()
        self._soft, self._hard, self._last = now + seconds, now + _BUSY * seconds, now + _START_SECONDS
        self._used = self._processor_seconds()

    def left(self) -> float:
        """Seconds until the next look, 0 when the time is over."""
        now = time.monotonic()
        used = self._processor_seconds() - self._used
        end = self._last if used < _HARDLY else self._hard if used < self._seconds / 3 else self._soft
        return max(0.0, self._soft - now) or min(0.1, max(0.0, end - now))

    def _processor_seconds(self) -> float:
        try:  # Linux's number for the clock of another process, as clock_getcpuclockid gives it
            return time.clock_gettime(~self._process << 3 | 2)
        except (AttributeError, OSError, OverflowError):
            return math.inf


def _wait(descriptor: int, event: int, limit: _TimeLimit) -> None:
    """Wait until a pipe can be used. Raises _TimeError."""
    if not _POLLS:
        return
    poll = select.poll()
    poll.register(descriptor, event)
    while True:
        left = limit.left()
        if poll.poll(left * 1000):
            return
        if not left:
            raise _TimeError


def _packages() -> list[str]:
    """The directories that hold the packages a child imports."""
    found = {}
    for name in ("jinja2", "markupsafe"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            found[str(Path(spec.origin).parents[1])] = None
    return list(found)


def _taken(file: IO[bytes]) -> int:
    """The descriptor of an open file, outside the numbers of the standard streams, to which libraries print."""
    with file:
        if sys.platform == "win32":
            return os.dup(file.fileno())
        import fcntl

        return fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)


@functools.cache
def shared() -> TemplateProcess:
    """The process for all templates."""
    return TemplateProcess()
