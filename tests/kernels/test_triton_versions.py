"""The kernels of decode and of the scan compile to the same kind of machine code with every Triton that PyPI serves.

A version is installed into a folder of its own (0.7 GB), or taken from $JAMBA_TRITONS/VERSION.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import REPO

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install 'jambacli[cuda]'", allow_module_level=True)

pytestmark = pytest.mark.slow
VERSIONS = ("3.2.0", "3.6.0", "3.7.1", "3.8.0", "3.9.0")
#: The most registers and instructions per weight (scan: per step) seen with any of them, and a little more.
LIMITS = {
    "norm + in_proj": (184, 4.9),
    "x_proj": (80, 7.2),
    "out_proj": (120, 5.3),
    "norm + gate and up": (168, 4.9),
    "down in Q6_K": (120, 6.2),
    "norm + in_proj, int8": (104, 3.4),
    "out_proj, int8": (96, 2.8),
    "norm + gate and up, int8": (104, 3.5),
    "down in Q6_K, int8": (112, 3.6),
    "norm + in_proj in Q5_K, int8": (112, 4.6),
    "norm + in_proj in Q8_0, int8": (96, 2.7),
    "scan without outputs": (72, 250),
    "scan with outputs": (80, 330),
}


def folder(version: str, empty: Path) -> Path:
    """The folder with this Triton; skips where it cannot be had."""
    own = Path(os.environ.get("JAMBA_TRITONS", "/nonexistent")) / version
    if own.is_dir():
        return own
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(empty), f"triton=={version}"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        pytest.skip(f"triton {version} cannot be installed: {ran.stderr.strip()[-200:]}")
    return empty


@pytest.mark.parametrize("version", VERSIONS)
def test_no_version_exchanges_values_or_spills_in_its_loops(version: str, tmp_path: Path) -> None:
    path = folder(version, tmp_path / "triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join((str(path), str(REPO))), "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    for capability in (75, 86, 90, 120):
        if capability == 120 and version.startswith("3.2."):
            continue  # its ptxas does not know it
        command = [sys.executable, "-m", "tests.support.machine_code", str(capability)]
        ran = subprocess.run(
            command, env=environment, cwd=REPO, capture_output=True, text=True, timeout=600, check=False
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        found = [json.loads(line) for line in ran.stdout.splitlines()]
        assert {row["kernel"] for row in found} == set(LIMITS)
        for row in found:
            assert row["triton"] == version
            assert row["exchanges"] == 0, row
            # With int8, ptxas keeps a value or two in memory rather than let one warp fewer run: up to 6 accesses in 430.
            assert row["spills"] <= (8 if "int8" in row["kernel"] else 0), row
            assert row["stack"] <= (32 if "int8" in row["kernel"] else 0), row
            registers, instructions = LIMITS[row["kernel"]]
            assert row["registers"] <= registers, row
            assert row["instructions"] / row["weights"] <= instructions, row
