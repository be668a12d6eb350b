"""Ctrl-C and SIGTERM while a hostile chat template renders, in real processes: obeyed at once, and no process is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
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
_RENDERS = 0.15
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


def rendering_child(process: subprocess.Popen[Any]) -> psutil.Process:
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
        assert process.stdin is not None
        process.stdin.close()  # it is read to its end first
        process.stdin = None
        child = rendering_child(process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code, errors
        assert b"seconds" not in errors and b"internal" not in errors and b"Traceback" not in errors
        assert gone(child)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_chat_from_a_pipe_stops(template: str, number: signal.Signals, code: int) -> None:
    with started("chat", "jamba:tiny", "--chat-template", template, "--no-store") as process:
        assert process.stdin is not None
        process.stdin.write(b"Hello\n")
        process.stdin.flush()
        child = rendering_child(process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code, errors
        assert b"internal" not in errors and b"Traceback" not in errors
        assert gone(child)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_stops(template: str, number: signal.Signals) -> None:
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    from tests.support.servers import serve_process

    answers: list[httpx.Response] = []
    with serve_process("--chat-template", template, "--no-store") as (server, client):
        body = {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 1}

        def ask() -> None:
            with contextlib.suppress(httpx.HTTPError):
                answers.append(client.post("/v1/chat/completions", json=body))

        asking = threading.Thread(target=ask)
        asking.start()
        child = rendering_child(server)
        server.send_signal(number)
        assert server.wait(60) == 0
        assert gone(child)
        asking.join()
    (answer,) = answers  # that it takes too long would be the answer if the server had waited for it
    assert answer.status_code == 503 and "stopping" in answer.json()["error"]["message"]


def _used_until_gone(child: psutil.Process) -> float:
    """The processor time of a child at its end."""
    used = 0.0
    with contextlib.suppress(psutil.Error):
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            used = sum(child.cpu_times()[:2])
            time.sleep(0.002)
    return used


def test_a_server_ends_a_rendering_that_nobody_waits_for(tmp_path: Path) -> None:
    """A client that has gone, and a stop on the page."""
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    from tests.support.servers import serve_process

    path = tmp_path / "sometimes.jinja"
    path.write_text("{% if 'slow' in (messages | last).content %}" + ENDLESS + "{% endif %}Hello")
    slow = {"role": "user", "content": "slow"}
    with serve_process("--chat-template", str(path), "--no-store") as (server, client):
        request = json.dumps({"messages": [slow], "max_tokens": 1}).encode()
        with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(request)}\r\n\r\n"
            connection.sendall(head.encode() + request)
            child = rendering_child(server)
        assert _used_until_gone(child) < 1.5  # its limit is two seconds
        body = {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 1}
        assert client.post("/v1/chat/completions", json=body).status_code == 200

        sessions = "/v1/library/sessions"
        name = client.post(sessions, json={}).json()["name"]
        assert client.post(f"{sessions}/{name}/messages", json={"text": "slow"}).status_code in (200, 202)
        child = rendering_child(server)
        assert client.post(f"{sessions}/{name}/stop", json={}).json()["stopped"]
        assert _used_until_gone(child) < 1.5
        assert client.post("/v1/chat/completions", json=body).status_code == 200
