"""``jamba serve`` as a process: where it listens, and how it stops."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from jambacli.hub.demo import demo_model_path
from tests.support.cli_runner import jamba
from tests.support.repository import REPO
from tests.support.servers import serve_process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_in_order(number: signal.Signals) -> None:
    with serve_process() as (server, client):
        assert client.get("/health").status_code == 200
        server.send_signal(number)
        assert server.wait(60) == 0


def test_a_running_reply_does_not_keep_it_from_stopping() -> None:
    with serve_process() as (server, client):
        body = {"messages": [{"role": "user", "content": "Hello."}], "stream": True, "max_tokens": 15_000}
        body["logit_bias"] = {str(token): -1000 for token in range(8)}
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert next(response.iter_lines()).startswith("data: ")
            server.send_signal(signal.SIGINT)
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0


def test_a_key_is_required_beyond_loopback() -> None:
    done = jamba("serve", "jamba:tiny", "--host", "0.0.0.0")
    assert done.returncode == 2 and b"--api-key" in done.stderr
    assert jamba("serve", "jamba:tiny", "--cors-origin", "*").returncode == 2


def test_a_port_that_is_taken_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = jamba("serve", "jamba:tiny", "--port", str(port))
    assert done.returncode == 1 and f"port {port}".encode() in done.stderr


def test_a_unix_socket_is_its_users_own(tmp_path: Path) -> None:
    path = tmp_path / "jamba.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))  # of a server that was killed
    command = [sys.executable, "-m", "jambacli", "serve", str(demo_model_path()), "--unix", str(path)]
    server = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(REPO)}, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        assert any(line.startswith(f"serving Tiny Jamba (demonstration model) at {path}") for line in server.stderr)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://jamba") as client:
            assert client.get("/health").status_code == 200
        assert jamba("serve", "jamba:tiny", "--unix", str(path)).returncode == 1
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0 and not path.exists()
    finally:
        server.kill()
        server.communicate()
