"""Runs parts of the GPU suite in processes of their own: one that crashes or hangs takes nothing else along.

Knows nothing of what the parts do. After an illegal access every later call on the card fails, whoever makes it, and a
kernel may never end: such a process is ended and another goes on after the step it was in. What a process has found lies
in its JSON file: ``done`` (names of steps), ``running`` (the one it is in), ``patience`` (seconds it may say nothing),
``ended``, and the results themselves.
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

#: A process that cannot use its card any more ends with this status.
LOST = 75
# How often one job is begun again: every start takes some seconds.
_MOST_STARTS = 8
# Seconds until a process has written its first words: importing torch, waking the card.
_FIRST_WORDS = 120.0
_OWN = ("done", "running", "patience", "ended", "seconds")


@dataclass
class Job:
    """A command that is run until it has ended properly; ``died`` names the argument that tells it why it last did not.

    ``environment``: variables that it gets besides this process's own.
    """

    command: list[str]
    out: Path
    environment: dict[str, str] = field(default_factory=dict)
    died: str = "--died"
    over: bool = False
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None
    _since: float = field(default=0.0, repr=False)

    def look(self, left: float) -> None:
        """Start it, start it again, or stop it, as things stand; ``left`` seconds of all the time."""
        if self.over:
            return
        status = None if self.process is None else self.process.poll()
        if status is None and left <= 0:
            self.stop()
            self._note("the time was up")
        elif self.process is None:
            self._start(None, left)
        elif status is None:
            heard = self.out.stat().st_mtime if self.out.exists() else 0.0
            silent = time.time() - max(self._since, heard)
            if silent > (float(self.found().get("patience", _FIRST_WORDS)) if heard > self._since else _FIRST_WORDS):
                self.stop()
                self._again(f"nothing was heard for {silent:.0f} s", left)
        elif self.found().get("ended"):
            self.over = True
        else:
            self._again("" if status == LOST else f"the process ended with status {status}", left)

    def found(self) -> dict[str, Any]:
        """What it has written so far."""
        try:
            found = json.loads(self.out.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _start(self, reason: str | None, left: float) -> None:
        again = [] if reason is None else [self.died, reason]
        self.starts, self._since = self.starts + 1, time.time()
        self.process = subprocess.Popen(
            [*self.command, "--budget", str(left), *again], env=os.environ | self.environment
        )

    def _again(self, reason: str, left: float) -> None:
        if self.starts >= _MOST_STARTS or left <= 0:
            self._note(f"{reason or 'the card was lost'}; begun {self.starts} times")
        else:
            self._start(reason, left)

    def _note(self, reason: str) -> None:
        """It is over, and not as it should be."""
        self.over = True
        found = self.found()
        step = found.get("running") or "what came next"
        found.setdefault("failed", []).append({"step": f"{self.out.stem}: {step}", "error": reason})
        self.out.write_text(json.dumps(found))


def watch(jobs: list[Job], until: float, changed: Callable[[], None], pause: float = 0.5) -> None:
    """Run the jobs side by side until all are over or the clock (``time.monotonic``) says ``until``.

    ``changed`` is called now and then. No process is left behind, whatever is raised.
    """
    try:
        while not all(job.over for job in jobs):
            for job in jobs:
                job.look(until - time.monotonic())
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
    """The results of several processes as one would have written them: lists behind each other."""
    results: dict[str, Any] = {"failed": [], "skipped": []}
    for part in found:
        for key, value in part.items():
            if key in _OWN:
                continue
            if isinstance(value, list):
                results.setdefault(key, []).extend(value)
            else:
                results[key] = value
    return results
