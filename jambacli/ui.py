"""Notes, warnings and progress bars, all on stderr. Commands print their output to stdout themselves."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jambacli import __version__
from jambacli.errors import JambaError
from jambacli.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# What is logged without ``--verbose``; of other libraries nothing is.
_OWN = ("jambacli", "quant")
_quiet = False
_verbose = False
_log_file: logging.Handler | None = None
# A line on the terminal that disappears; what is printed meanwhile goes above it.
_standing = ""


def set_quiet(quiet: bool) -> None:
    """Show no progress and no notes for the rest of the process (``--quiet``); warnings and errors are still shown."""
    global _quiet
    _quiet = quiet


def set_verbose(verbose: bool) -> None:
    """Show all that this program logs on stderr, and what other libraries log at the level INFO, each with its time
    (``--verbose``)."""
    global _verbose
    _verbose = verbose
    root = logging.getLogger()
    root.handlers = [h for h in root.handlers if not isinstance(h, _TimedHandler)]
    if verbose:
        root.addHandler(_TimedHandler())
    _set_levels()


def log_to(path: Path | None) -> None:
    """Append messages, and what the libraries log, to a file, with times (``--log``); None: no more. Raises JambaError."""
    global _log_file
    if _log_file is not None:
        for name in (None, *_OWN):
            logging.getLogger(name).removeHandler(_log_file)
        _log_file.close()
        _log_file = None
    if path is not None:
        try:
            _log_file = _LogFile(path, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise JambaError(f"cannot write {path}: {error.strerror or error}") from error
        _log_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        for name in (None, *_OWN):
            logging.getLogger(name).addHandler(_log_file)
        record(logging.INFO, f"jamba {__version__}, Python {sys.version.split()[0]}, {sys.platform}")
    _set_levels()


def record(level: int, text: str, error: BaseException | None = None) -> None:
    """Write a message to the file of ``--log``, if there is one, with an error's traceback."""
    if _log_file is not None:
        cause = None if error is None else (type(error), error, error.__traceback__)
        _log_file.handle(logging.LogRecord("jamba", level, "", 0, text, (), cause))


def _set_levels() -> None:
    more = _verbose or _log_file is not None
    for name in _OWN:
        logging.getLogger(name).setLevel(logging.DEBUG if more else logging.INFO)
    logging.getLogger().setLevel(logging.INFO if more else logging.WARNING)


class _LogFile(logging.FileHandler):
    """A file whose failed writes are ignored: a full disk ends no reply."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@functools.cache
def console() -> Console:
    """The one rich console, on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """One line of information on stderr."""
    record(logging.INFO, text)
    _show_note(text)


def _show_note(text: str) -> None:
    if not _quiet:
        _print_above(harmless(text))


def warn(text: str) -> None:
    """One line of warning on stderr, even with ``--quiet``."""
    record(logging.WARNING, text)
    _show_warning(text)


def _show_warning(text: str) -> None:
    _print_above(f"warning: {harmless(text)}")


def _print_above(text: str) -> None:
    line = _standing
    _stand("")
    print(text, file=sys.stderr, flush=True)
    _stand(line)


def _stand(line: str) -> None:
    """Show ``line`` as the standing line, in place of the one before; "": none."""
    global _standing
    if line or _standing:
        columns = shutil.get_terminal_size().columns
        print(f"\r\x1b[K{harmless(line)[: columns - 1]}", end="", file=sys.stderr, flush=True)
    _standing = line


#: Seconds after which a loading line shows how much is done, and between two changes of it.
_SLOW, _REDRAW = 0.5, 0.1


@contextlib.contextmanager
def loading(title: str, total: int | None, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
    """A Progress of one line, which stands at once, with the share that is done if it takes longer, and disappears.

    Shows nothing without a terminal or with ``--quiet``. Unlike ``progress`` it imports nothing slow.
    """
    if _quiet or not sys.stderr.isatty():
        yield lambda n: None
        return
    size = f" ({format_bytes(total)})" if total and unit == "bytes" else ""
    done, began = 0, time.monotonic()
    drawn = began + _SLOW - _REDRAW

    def advance(n: int) -> None:
        nonlocal done, drawn
        done += n
        if stands and total and time.monotonic() - drawn >= _REDRAW:
            drawn = time.monotonic()
            _stand(f"{title}{size} ... {min(done / total, 1):.0%}")

    stands = True
    _stand(f"{title}{size} ...")
    try:
        yield advance
    finally:
        stands = False
        _stand("")


def starting(name: str | None) -> None:
    """Say that a model is being loaded before anything is imported for that. The line stands until the one of ``loading``, a
    question, a bar or an error takes its place. Shows nothing without a terminal or with ``--quiet``."""
    if not _quiet and sys.stderr.isatty():
        _stand(f"Loading {Path(name or '').name or 'the model'} ...")


def settled() -> None:
    """Remove the standing line."""
    _stand("")


def can_ask() -> bool:
    """Whether there is somebody to answer a question."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def asked(question: str) -> bool:
    """Ask a question on the terminal; whether the answer is yes. False without a terminal."""
    if not can_ask():
        return False
    settled()
    print(f"{harmless(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


class _LogHandler(logging.Handler):
    """Shows what library code logs: warnings and above as warnings, the rest as notes. An error among a record's arguments
    is worded with the front end's names of options. With ``--verbose`` every line has its time and the logger's name."""

    def __init__(self, option: Callable[[str], str]) -> None:
        super().__init__()
        self._option = option

    def emit(self, record: logging.LogRecord) -> None:
        arguments = record.args if isinstance(record.args, tuple) else ()
        worded = tuple(a.worded(self._option) if isinstance(a, JambaError) else a for a in arguments)
        text = " ".join((str(record.msg) % worded if worded else record.getMessage()).split())
        if _verbose:
            _show_timed(record, text)
        elif record.levelno >= logging.INFO:
            (_show_warning if record.levelno >= logging.WARNING else _show_note)(text)


class _TimedHandler(logging.Handler):
    """Shows what other libraries log, in one line each."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # a library's message that does not go with its arguments
            _show_timed(record, " ".join(record.getMessage().split()))


def _show_timed(record: logging.LogRecord, text: str) -> None:
    when = time.strftime("%H:%M:%S", time.localtime(record.created))
    level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
    line = f"{when}.{int(record.msecs):03d} {record.name}: {level}{text}"
    print(harmless(line), file=sys.stderr, flush=True)


def show_log(option: Callable[[str], str]) -> None:
    """Show what the libraries log on stderr, with the option names that ``option`` gives (see ``_LogHandler``)."""
    for name in _OWN:
        logger = logging.getLogger(name)
        logger.handlers = [h for h in logger.handlers if not isinstance(h, _LogHandler)] + [_LogHandler(option)]
        logger.propagate = False
    _set_levels()


def harmless(text: str) -> str:
    """Text without control characters for the terminal: a model may repeat them from its documents."""
    return _CONTROLS.sub("", text)


def thought(text: str) -> None:
    """A piece of a model's thoughts: dimmed, on stderr, only on a terminal."""
    if not _quiet and sys.stderr.isatty():
        print(f"\x1b[2m{harmless(text)}\x1b[0m", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(title: str, total: int | None, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left; yields ``advance(n)``. Shows nothing without a terminal or with ``--quiet``.

    ``unit`` is "bytes" or the plural name of what is counted ("tokens").
    """
    if _quiet or not sys.stderr.isatty():
        yield lambda n: None
        return
    settled()
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} {unit}/s" if speed else "", no_wrap=True)

    middle: list[ProgressColumn] = (
        [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn(), Rate()]
    )
    if console().width < 60:
        middle = [TaskProgressColumn()]
    with Progress(
        TextColumn("{task.description}"), BarColumn(), *middle, TimeRemainingColumn(), console=console(), transient=True
    ) as bar:
        task = bar.add_task(title, total=total)
        yield lambda n: bar.advance(task, n)


@contextlib.contextmanager
def transfers(title: str, total: int, done: int = 0) -> Iterator[Callable[[str, int, int], Callable[[int], None]]]:
    """A bar for ``total`` bytes, of which ``done`` exist already, and one for each file in progress.

    Yields ``begin(name, size, done)``, which opens a file's bar and returns its ``advance(n)``; the bar disappears when the
    file is complete. Shows nothing without a terminal or with ``--quiet``.
    """
    if _quiet or not sys.stderr.isatty():
        yield lambda name, size, done: lambda n: None
        return
    settled()
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = [BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    with Progress(TextColumn("{task.description}"), *columns, console=console(), transient=True) as bars:
        whole = bars.add_task(title, total=total, completed=done)

        def begin(name: str, size: int, done: int) -> Callable[[int], None]:
            bar = bars.add_task(name, total=size, completed=done)

            def advance(n: int) -> None:
                bars.advance(bar, n)
                bars.advance(whole, n)
                if bars.tasks[bars.task_ids.index(bar)].finished:
                    bars.update(bar, visible=False)

            return advance

        yield begin
