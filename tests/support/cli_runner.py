"""Runs the `jamba` command inside the test process: what it prints and how it leaves, without two seconds of imports."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from jambacli import ui
from jambacli.cli import main


@dataclass(frozen=True)
class Done:
    """Exit code and output of one command."""

    returncode: int
    stdout: bytes
    stderr: bytes


@contextlib.contextmanager
def _streams(stdin: bytes | None) -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    """Standard streams of our own; stdin is a real file, since commands ask the system what it is."""
    out, err = io.BytesIO(), io.BytesIO()
    saved = sys.stdin, sys.stdout, sys.stderr, sys.argv
    with tempfile.TemporaryFile() as given, open(os.devnull, encoding="utf-8") as nothing:  # noqa: PTH123
        given.write(stdin or b"")
        given.seek(0)
        sys.stdin = nothing if stdin is None else io.TextIOWrapper(given, encoding="utf-8")
        sys.stdout = io.TextIOWrapper(out, encoding="utf-8", write_through=True)
        sys.stderr = io.TextIOWrapper(err, encoding="utf-8", write_through=True)
        try:
            yield out, err
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdin, sys.stdout, sys.stderr, sys.argv = saved


@contextlib.contextmanager
def _log_restored() -> Iterator[None]:
    """The command shows the libraries' log on stderr; afterwards other tests see it as before."""
    loggers = [logging.getLogger(name) for name in ("jambacli", "quant")]
    before = [(x.handlers, x.level, x.propagate) for x in loggers]
    try:
        yield
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def jamba(*arguments: str, stdin: bytes | None = None) -> Done:
    """Run one command line, as the shell would."""
    with _streams(stdin) as (out, err), _log_restored():
        sys.argv = ["jamba", *arguments]
        try:
            main()
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        finally:
            ui.set_quiet(False)
            ui.set_verbose(False)
            ui.log_to(None)
        return Done(code, out.getvalue(), err.getvalue())
