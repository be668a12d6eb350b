"""Ctrl-C and SIGTERM while a hostile chat template renders, in real processes: obeyed at once, and no process is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.repository import REPO
from tests.support.template_bombs import bombs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
]
ENDLESS = dict(bombs())["tuples: equal"]
# Seconds of a processor that a child has used when it renders and no longer starts.
_RENDERS = 0.6
_FOUND = 120.0


@pytest.fixture
def template(tmp_path: Path) -> str:
    path = tmp_path / "endless.jinja"
    path.write_text("{% if messages | length > 0 %}" + ENDLESS + "{% endif %}")
    return str(path)


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "jambacli", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def rendering_child(process: subprocess.Popen[bytes]) -> psutil.Process:
    """The child that renders, once it does."""
    parent = psutil.Process(process.pid)
    deadline = time.monotonic() + _FOUND
    while time.monotonic() < deadline and process.poll() is None:
        for child in parent.children():
            with contextlib.suppress(psutil.Error):
                if "template_worker" in " ".join(child.cmdline()) and sum(child.cpu_times()[:2]) > _RENDERS:
                    return child
        time.sleep(0.01)
    raise AssertionError(
        f"nothing rendered: {process.communicate()[1]!r}" if process.poll() is not None else "nothing rendered"
    )


def gone(child: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        child.wait(5)
    return not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_run_stops(template: str, number: signal.Signals, code: int) -> None:
    with started("run", "jamba:tiny", "Hello", "--chat-template", template, "--no-store") as process:
        child = rendering_child(process)
        process.send_signal(number)
        began = time.monotonic()
        _, errors = process.communicate(timeout=60)
        print(f"{time.monotonic() - began:.2f} s")
        assert process.returncode == code, errors
        assert b"seconds" not in errors and b"internal" not in errors and b"Traceback" not in errors
        assert gone(child)


def test_a_chat_goes_on_after_an_interrupt_and_ends_on_sigterm(template: str) -> None:
    with started("chat", "jamba:tiny", "--chat-template", template, "--no-store") as process:
        assert process.stdin is not None
        process.stdin.write(b"Hello\n")
        process.stdin.flush()
        first = rendering_child(process)
        process.send_signal(signal.SIGINT)
        assert gone(first)
        process.stdin.write(b"Again\n")
        process.stdin.flush()
        second = rendering_child(process)
        assert second.pid != first.pid
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 143, errors
        assert b"internal" not in errors and b"Traceback" not in errors
        assert gone(second)
