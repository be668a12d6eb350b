"""The process that compiles and renders chat templates with limited memory and processor time, started by
``template_process``; ``template_protocol`` describes requests and answers."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from typing import NoReturn

from jambacli.text.template_environment import TemplateEnvironment, Templates
from jambacli.text.template_protocol import LENGTH, MEMORY_CODE, Answer, Kind, memory_for, seconds_for

# A process that has this much more address space than at its start is replaced.
_GROWTH = 64 << 20


def _limit(size: int) -> bool:
    """Set the limits for a request with ``size`` bytes of a user; the time that earlier ones took does not count. False where
    the platform has none."""
    try:
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + seconds_for(size)
        for what, wanted in ((resource.RLIMIT_AS, memory_for(size)), (resource.RLIMIT_CPU, seconds)):
            hard = resource.getrlimit(what)[1]
            resource.setrlimit(what, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    except (ImportError, ValueError, OSError):
        return False
    return sys.platform != "darwin"  # where a limit of memory can be set, but has no effect


def _address_space() -> int:
    """Bytes of address space of this process, 0 where that is not known."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123
            return int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    except (OSError, ValueError, AttributeError):
        return 0


class _Worker:
    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._input, self._output = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1):  # what a library prints must not mix with the answers
            os.dup2(null, number)
        self._templates = Templates(TemplateEnvironment if _limit(0) else _bounded_environment())

    def read(self) -> None:
        """Collect requests, in a thread of its own: so the process ends with its parent, also while it renders."""
        with contextlib.suppress(BaseException), open(self._input, "rb") as requests:  # noqa: PTH123
            while len(header := requests.read(2 * LENGTH)) == 2 * LENGTH:
                _limit(int.from_bytes(header[LENGTH:], "little"))
                self._requests.put(requests.read(int.from_bytes(header[:LENGTH], "little")))
        os._exit(0)

    def serve(self) -> NoReturn:
        """Answer requests until the reader ends the process, or until it has grown."""
        at_start = _address_space()
        self._write((Kind.READY, ""))
        while True:
            answer = self._templates.answer(self._requests.get())
            self._write(answer)
            if answer[0] is Kind.MEMORY or _address_space() - at_start > _GROWTH:
                os._exit(0)
            del answer

    def _write(self, answer: Answer) -> None:
        data = answer[1].encode("utf-8", "surrogatepass")
        os.write(self._output, answer[0].value + len(data).to_bytes(LENGTH, "little"))
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._output, rest) :]


def _bounded_environment() -> type[TemplateEnvironment]:
    from jambacli.text.template_limits import BoundedEnvironment

    return BoundedEnvironment


def main() -> NoReturn:
    """Serve requests until standard input ends."""
    with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(256 << 10)  # a default one takes 8 MB of the address space
    worker = _Worker()
    threading.Thread(target=worker.read, daemon=True).start()
    try:
        worker.serve()
    except OSError:  # the parent is gone
        os._exit(0)
    except MemoryError:
        os._exit(MEMORY_CODE)
