"""The results of a run of the GPU check, kept in a JSON file after every step."""

from __future__ import annotations

import json
import logging
import math
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jambacli.errors import first_line
from jambacli.files import atomic_write

logger = logging.getLogger(__name__)


class DeviceLostError(Exception):
    """Every later call on the GPU will fail in this process."""


class Suite:
    """The results so far, the time left, and the file that keeps them. ``tiny``: use tiny models, only to test the path."""

    def __init__(self, out: Path, budget: float, tiny: bool) -> None:
        self.out, self.budget, self.tiny = out, budget, tiny
        self.began = time.monotonic()
        self._part_until = math.inf
        self.results: dict[str, Any] = {"failed": [], "skipped": [], "done": [], "running": None}

    def resume(self, failure: str) -> None:
        """Load the results of an earlier process and continue after the step during which it ended because of ``failure``."""
        self.results |= json.loads(self.out.read_text())
        if step := self.results["running"]:
            self.results["failed"].append({"step": step, "error": failure or "the GPU was lost"})
            self.end(step)

    @property
    def left(self) -> float:
        """Seconds of the budget left, or of the current part's share if that is less."""
        now = time.monotonic()
        return min(self.budget - (now - self.began), self._part_until - now)

    def begin_part(self, share: float) -> None:
        """A part begins that may take this share of the seconds that are left."""
        self._part_until = math.inf
        self._part_until = time.monotonic() + share * self.left

    def begin(self, name: str, seconds: float) -> bool:
        """Record that a step of about ``seconds`` begins; False if an earlier process has done it."""
        if name in self.results["done"]:
            return False
        # Generous, since the first run compiles kernels. A step may save results in between, which restarts the clock.
        self.results["patience"] = min(200.0, max(90.0, 10 * seconds))
        self.results["running"] = name
        self.save()
        return True

    def end(self, name: str) -> None:
        """Record that a step has ended, successfully or not."""
        self.results["done"].append(name)
        self.results["running"] = None
        self.save()

    def attempt(self, name: str, seconds: float, run: Callable[[], Any]) -> Any:
        """Run a step expected to take ``seconds``. Returns None, and records why, if time is short or the step fails.

        Raises DeviceLostError if no later step can work either.
        """
        if self.left < seconds and name not in self.results["done"]:
            self.results["skipped"].append(name)
            self.log(f"skipped {name}: {self.left:.0f} s are left, it takes about {seconds:.0f}")
            self.save()
            return None
        if not self.begin(name, seconds):
            return None
        start = time.monotonic()
        try:
            result = run()
        except Exception as error:
            line = f"{type(error).__name__}: {first_line(error)}"
            self.results["failed"].append({"step": name, "error": line, "trace": traceback.format_exc()[-3000:]})
        else:
            self.log(f"{name}: {time.monotonic() - start:.1f} s")
            self.end(name)
            return result
        # Outside the handler: the error's traceback kept the step's GPU memory alive.
        self.log(f"FAILED {name}: {line}")
        self.end(name)
        release_memory()
        return None

    def skip_for_memory(self, name: str, reason: str) -> None:
        """Record that a step is skipped because GPU or host memory is too small."""
        self.results.setdefault("no_room", []).append({"step": name, "reason": reason})
        self.log(f"skipped {name}: {reason}")

    def skip_for_kernel(self, name: str, kernel: str) -> None:
        """Record that a step is skipped because a kernel that it needs is wrong."""
        self.results.setdefault("no_room", []).append({"step": name, "reason": f"the kernel {kernel!r} is wrong"})
        self.log(f"skipped {name}: the kernel {kernel!r} is wrong")
        self.save()

    def log(self, line: str) -> None:
        """Log a line of progress with the seconds so far."""
        logger.info("[%6.1f] %s", time.monotonic() - self.began, line)

    def save(self) -> None:
        """Replace the file by the results so far: the process may be killed at any time."""
        self.results["seconds"] = round(time.monotonic() - self.began, 1)
        write_results(self.out, self.results)


def write_results(out: Path, results: dict[str, Any]) -> None:
    """Write results as JSON, atomically."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out, durable=False) as file:
        file.write(json.dumps(results, indent=1).encode())


def release_memory() -> None:
    """Release the GPU memory of a failed step. Raises DeviceLostError if the GPU can no longer be used."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            raise DeviceLostError(f"the GPU cannot be used any more: {first_line(error)}") from error
