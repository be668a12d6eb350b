"""The examples run as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import REPO

EXAMPLES = sorted((REPO / "examples").glob("*.py"))
ARGUMENTS = {"train_tiny.py": ["--steps", "2", "--out", "tiny"]}  # all of it takes an hour


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda p: p.name)
def test_it_runs_and_prints_something(script: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(script), *ARGUMENTS.get(script.name, [])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_demo_model_is_asked_what_it_can_answer(tmp_path: Path) -> None:
    command = [sys.executable, str(next(p for p in EXAMPLES if p.name == "ask_a_text.py"))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert "Leila Haddad counted 42 herons" in done.stdout
