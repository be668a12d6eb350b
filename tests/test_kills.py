"""Commands that are killed at random moments (tests/support/kills.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import REPO

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the processor time of other processes")


def killed(folder: Path, count: str, seed: str, *kinds: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.kills", str(folder), count, seed, *kinds],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return report


@pytest.mark.slow
def test_kills_leave_nothing_damaged_lost_or_behind(tmp_path: Path) -> None:
    """JAMBA_KILLS and JAMBA_KILLS_SEED choose how many and when; a thousand take a quarter of an hour of one core."""
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    count = os.environ.get("JAMBA_KILLS", "60")
    report = killed(tmp_path, count, os.environ.get("JAMBA_KILLS_SEED", "1"))
    assert report["wrong"] == []
    assert isinstance(report["kills"], int) and report["kills"] >= 0.9 * int(count)
