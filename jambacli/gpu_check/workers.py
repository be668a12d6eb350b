"""Runs parts of the GPU check in worker processes, so that one that crashes or hangs does not end the others.

After an illegal access every later call on the GPU fails in that process, and a kernel may never end. Such a process is killed
and another one continues after the step it was in. A worker keeps its results in a JSON file, with ``done`` (names of steps),
``running`` (the current one), ``patience`` (seconds until it counts as hung) and ``ended``.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Exit status of a worker that can no longer use its GPU.
LOST = 75
# Maximum number of starts of one job; every start takes a few seconds.
_MAX_STARTS = 8
# Seconds until the first results are written: torch is imported and the GPU initialized.
_START_PATIENCE = 120.0
_WORKER_KEYS = ("done", "running", "patience", "ended", "seconds")


@dataclass
class Job:
    """A worker, restarted until it ends properly.

    ``command(left, failure)`` is its command line, with the seconds left and the reason of a restart. ``out``: its results.
    ``environment``: variables added to this process's own.
    """

    command: Callable[[float, str | None], list[str]]
    out: Path
    environment: dict[str, str] = field(default_factory=dict)
    over: bool = False
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None
    _since: float = field(default=0.0, repr=False)

    def poll(self, left: float) -> None:
        """Start, restart or stop the worker as needed; ``left``: seconds left for everything."""
        if self.over:
            return
        status = None if self.process is None else self.process.poll()
        if status is None and left <= 0:
            self.stop()
            self._give_up("the time was up")
        elif self.process is None:
            self._start(None, left)
        elif status is None:
            heard = self.out.stat().st_mtime if self.out.exists() else 0.0
            silent = time.time() - max(self._since, heard)
            if silent > (
                float(self.results().get("patience", _START_PATIENCE)) if heard > self._since else _START_PATIENCE
            ):
                self.stop()
                self._restart(f"there was no sign of progress for {silent:.0f} s", left)
        elif self.results().get("ended"):
            self.over = True
        else:
            self._restart("" if status == LOST else f"the process ended with status {status}", left)

    def results(self) -> dict[str, Any]:
        """The results so far."""
        try:
            found = json.loads(self.out.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def stop(self) -> None:
        """Kill the process."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _start(self, reason: str | None, left: float) -> None:
        self.starts, self._since = self.starts + 1, time.time()
        self.process = subprocess.Popen(self.command(left, reason), env=os.environ | self.environment)

    def _restart(self, reason: str, left: float) -> None:
        if self.starts >= _MAX_STARTS or left <= 0:
            self._give_up(f"{reason or 'the GPU was lost'}; started {self.starts} times")
        else:
            self._start(reason, left)

    def _give_up(self, reason: str) -> None:
        """Record that the job failed for good."""
        self.over = True
        found = self.results()
        step = found.get("running") or "the next step"
        found.setdefault("failed", []).append({"step": f"{self.out.stem}: {step}", "error": reason})
        self.out.write_text(json.dumps(found))


def watch(jobs: list[Job], until: float, changed: Callable[[], None], pause: float = 0.5) -> None:
    """Run the jobs side by side until all are over or ``time.monotonic()`` reaches ``until``.

    Calls ``changed`` every ``pause`` seconds or so. All processes are killed on the way out.
    """
    try:
        while not all(job.over for job in jobs):
            for job in jobs:
                job.poll(until - time.monotonic())
            changed()
            waiting = next((job.process for job in jobs if not job.over and job.process is not None), None)
            if waiting is not None:
                try:
                    waiting.wait(pause)
                except subprocess.TimeoutExpired:
                    continue
    finally:
        for job in jobs:
            job.stop()


def merged(found: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The results of several workers in one dictionary; lists are concatenated."""
    results: dict[str, Any] = {"failed": [], "skipped": []}
    for part in found:
        for key, value in part.items():
            if key in _WORKER_KEYS:
                continue
            if isinstance(value, list):
                results.setdefault(key, []).extend(value)
            else:
                results[key] = value
    return results
