"""Many turns in two processes on one store (tests/support/soak.py): what they hold on to does not grow."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import REPO


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_descriptors_threads_and_store_stay_as_they_are(tmp_path: Path) -> None:
    """JAMBA_SOAK_TURNS: of each process."""
    turns = os.environ.get("JAMBA_SOAK_TURNS", "400")
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.soak", str(tmp_path / "home"), turns, "1"],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["second's exit code"] == 0
    assert report["parts left"] == []
    for rows in (report["rows"], report["second"]["rows"]):
        middle, last = rows[len(rows) // 3 : 2 * len(rows) // 3], rows[-len(rows) // 3 :]

        def grown(what: str, middle: list[dict[str, int]] = middle, last: list[dict[str, int]] = last) -> float:
            return statistics.median(r[what] for r in last) - statistics.median(r[what] for r in middle)

        assert grown("memory") < 16 << 10  # kilobytes
        assert grown("descriptors") <= 1
        assert grown("threads") <= 0
        assert last[-1]["store"] < 130 << 10
