"""Damaged files for every parser of files from elsewhere, the same for the same seed. Each is read or refused by one of the
program's own errors, which the command line shows as one line; any other would be shown as internal. None takes long or much
memory.

    python -m tests.support.fuzzing COUNT SEED [NAME...]

gives the parsers so many files together, with equal processor time for each, and prints one JSON object.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import psutil

from jambacli.documents.extract.sandbox import Sandbox
from jambacli.errors import JambaError

Parser = Callable[[Path], object]
SECONDS, MEMORY = 5.0, 500 << 20
# Files of each parser that measure how long one takes, and the least that it gets.
_MEASURED, _LEAST = 40, 200
_VALUES = [b"1e999", b"-1", b"NaN", b"0", b"9" * 30, b"1" * 5000, b"null", b'""', b"[]", b"{}", b"[" * 2000, b"true"]
_TEXTS = [
    b"\0",
    b"\xff\xfe",
    b"\x80",
    b"\r",
    b"{{",
    b"%}",
    b"<",
    b"&#x110000;",
    b"\\",
    b"**/",
    b"[!",
    b"*" * 40,
    b'"\\ud800"',
]


#: What may stand in the place of any value in JSON.
ODD_VALUES: list[Any] = [
    None, True, [], {}, "", "x", -1, 0, 2.5, 10**30, float("inf"), [None], [[]], {"": None}, {"type": []}, "\ud800", "\0",
    [1, "a", {}], "9" * 400, [{}] * 3,
]  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to every value within a value of JSON, itself first."""
    yield at
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*at, key))


def replaced(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """A copy of a value of JSON with another value at that place."""
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = replaced(value[at[0]], at[1:], new)
    return copy


@functools.lru_cache(maxsize=200)
def _as_object(source: bytes) -> Any:
    with contextlib.suppress(ValueError):
        return json.loads(source)
    return None


def damaged(source: bytes, r: random.Random) -> bytes:
    """``source`` with one to four changes: bytes replaced, removed, repeated, numbers and words put in the place of others; of
    JSON, every second time values replaced by odd ones or by others of the same text."""
    value = _as_object(source)
    if isinstance(value, dict) and r.random() < 0.5:
        for _ in range(r.choice([1, 1, 2, 3])):
            known = list(places(value))
            place = r.choice(known)
            if r.random() < 0.7:
                new = r.choice(ODD_VALUES)
            else:
                new = functools.reduce(lambda inner, key: inner[key], r.choice(known), value)
            changed = replaced(value, place, new)
            value = changed if isinstance(changed, dict) else value
        return json.dumps(value).encode()
    data = bytearray(source)
    for _ in range(r.randint(1, 4)):
        at = r.randrange(len(data) + 1) if r.random() < 0.5 else r.randrange(min(len(data), 400) + 1)
        length = min(r.choice([1, 1, 2, 4, 8, 50]), len(data) - at)
        kind = r.randrange(7)
        if kind == 0:
            data[at : at + length] = r.randbytes(length)
        elif kind == 1:
            data[at : at + length] = b"\xff" * length if r.random() < 0.5 else bytes(length)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length] * r.choice([1, 2, 100])
        elif kind == 4:
            del data[at:]
        elif kind == 5:
            data[at : at + r.choice([0, length])] = r.choice(_TEXTS)
        else:
            ends = [i for i, c in enumerate(data) if c in b",:}]"]
            if ends:  # a value of JSON in the place of another
                end = r.choice(ends)
                begin = max(data.rfind(mark, 0, end) for mark in (b":", b",", b"[", b"{")) + 1
                data[begin:end] = r.choice(_VALUES)
    return bytes(data)


class Case:
    """One parser with the valid files that are damaged for it, by ``damage``. ``times``: how many files it gets where time is
    short. ``refusals``: its errors other than JambaError. ``place``: the name of its file."""

    def __init__(
        self,
        name: str,
        parse: Parser,
        sources: list[bytes],
        times: float = 1.0,
        *,
        refusals: tuple[type[Exception], ...] = (),
        place: str = "file",
        damage: Callable[[bytes, random.Random], bytes] = damaged,
    ) -> None:
        self.name, self.parse, self.sources, self.times = name, parse, sources, times
        self.refusals, self.place, self.damage = refusals, place, damage


class TooLongError(BaseException):
    """A file took more than its time."""


def parse_one(case: Case, path: Path, number: int, seed: int) -> float:
    """Write the damaged file of that number and parse it; returns the processor time. Raises AssertionError for a parser that
    fails in a way of its own."""
    data = case.damage(case.sources[number % len(case.sources)], random.Random(f"{case.name} {seed} {number}"))
    path.write_bytes(data)
    started = time.process_time()
    try:
        case.parse(path)
    except (JambaError, *case.refusals) as error:
        if not str(error).strip():
            raise AssertionError(f"{case.name} {seed} {number}: an error without words") from error
    except (Exception, TooLongError) as error:
        what = f"{type(error).__name__}: {error}"
        raise AssertionError(f"{case.name} {seed} {number}: {what}; input {data[:3000]!r}") from error
    took = time.process_time() - started
    if took > SECONDS:
        raise AssertionError(f"{case.name} {seed} {number}: {took:.1f} s for {data[:3000]!r}")
    return took


def place_for(case: Case, folder: Path) -> Path:
    """Where the damaged files go."""
    from jambacli.files import jamba_home

    (jamba_home() / "models").mkdir(parents=True, exist_ok=True)
    path = folder / case.place
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def run(case: Case, folder: Path, seed: int, seconds: float, most: int) -> int:
    """Parse up to ``most`` damaged files within ``seconds``; returns how many."""
    path, before = place_for(case, folder), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin, count = time.monotonic(), 0
    while count < most and time.monotonic() - begin < seconds:
        parse_one(case, path, count, seed)
        count += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < MEMORY, f"{case.name} {seed}: {grown >> 20} MB"
    return count


def _time_is_over(number: int, frame: object) -> NoReturn:
    raise TooLongError(f"more than {2 * SECONDS} s")


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Limits of this process for what is done within: its address space, and processor time for each ``_again``."""
    signal.signal(signal.SIGPROF, _time_is_over)
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _processor_time() -> float:
    """Seconds of a processor that this process and those that parse for it have used."""
    total = time.process_time()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            total += sum(child.cpu_times()[:2])
    return total


def _many(case: Case, path: Path, first: int, last: int, seed: int, report: dict[str, Any]) -> float:
    """Parse the damaged files of these numbers; what fails goes into the report. Returns the processor time."""
    total = 0.0
    for number in range(first, last):
        signal.setitimer(signal.ITIMER_PROF, 2 * SECONDS)
        try:
            took = parse_one(case, path, number, seed)
        except AssertionError as error:
            report["wrong"].append(str(error)[:1000])
            took = SECONDS
        total += took
        report["longest"] = max(report["longest"], took)
    return total


def main(count: int, seed: int, names: list[str]) -> None:
    from tests.support.fuzz_cases import cases, document_cases

    folder = Path(tempfile.mkdtemp())
    os.environ["JAMBA_HOME"] = str(folder / "home")
    sandbox = Sandbox()
    logging.getLogger("jambacli").setLevel(logging.ERROR)
    known = cases(folder) | {case.name: case for case in document_cases(sandbox)}
    chosen = [known[name] for name in names or known]
    report: dict[str, Any] = {"seed": seed, "count": 0, "wrong": [], "longest": 0.0, "parsers": {}}
    costs: dict[str, float] = {}
    for case in chosen:
        with contextlib.suppress(JambaError, *case.refusals):
            case.parse(_first(case, folder))  # what is imported and started does not count
        began = _processor_time()
        with _limited():
            _many(case, place_for(case, folder / case.name), 0, _MEASURED, seed, report)
        costs[case.name] = max(1e-4, (_processor_time() - began) / _MEASURED)
    known_wrong = 0
    share = count / sum(1 / costs[case.name] for case in chosen)
    for case in chosen:
        wanted, slice_ = max(_LEAST, int(share / costs[case.name])), 1000
        for first in range(_MEASURED, wanted, slice_):
            with _limited():
                _many(case, place_for(case, folder / case.name), first, min(wanted, first + slice_), seed, report)
        report["parsers"][case.name] = wanted
        report["count"] += wanted
        new, known_wrong = report["wrong"][known_wrong:], len(report["wrong"])
        print(case.name, wanted, f"{costs[case.name] * 1e6:.0f} us", new[:3], file=sys.stderr, flush=True)
    sandbox.close()
    report["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps(report))


def _first(case: Case, folder: Path) -> Path:
    path = place_for(case, folder / case.name)
    path.write_bytes(case.sources[0])
    return path


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
