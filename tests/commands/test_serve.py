"""``jamba serve`` as a process: where it listens, and how it stops."""

from __future__ import annotations

import json
import os
import shutil
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

from jambacli.commands.serve import _listen, _reuse_later
from jambacli.errors import JambaError
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


def test_a_program_reads_the_address_and_a_preset_holds_for_requests() -> None:
    system = "You are a careful reader of reports about herons."
    assert jamba("preset", "save", "mine", "--system", system, "-n", "3").returncode == 0
    options = ["--port", "0", "--json", "--preset", "mine"]
    command = [sys.executable, "-m", "jambacli", "serve", str(demo_model_path()), *options]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            assert server.stdout is not None
            address = json.loads(server.stdout.readline())["address"]

            def usage(*messages: tuple[str, str]) -> dict[str, int]:
                body = {"messages": [{"role": role, "content": text} for role, text in messages]}
                url = f"{address}/v1/chat/completions"
                counts: dict[str, int] = httpx.post(url, json=body, trust_env=False, timeout=60).json()["usage"]
                return counts

            plain, same, other = (
                usage(("user", "Hi")),
                usage(("system", system), ("user", "Hi")),
                usage(("system", "No."), ("user", "Hi")),
            )
            assert plain["prompt_tokens"] == same["prompt_tokens"] > other["prompt_tokens"]
            assert max(plain["completion_tokens"], other["completion_tokens"]) <= 3
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0 and server.stdout.read() == b""


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


def test_several_models_are_loaded_on_demand(tmp_path: Path) -> None:
    other = shutil.copy(demo_model_path(), tmp_path / "other.gguf")
    with serve_process(str(other), "--alias", "demo", "--keep-alive", "1h", "--max-loaded", "1") as (_, client):
        assert [(m["id"], m["status"]["value"]) for m in client.get("/v1/models").json()["data"]] == [
            ("demo", "unloaded"),
            ("other", "unloaded"),
        ]
        body = {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 1}
        for name in ("other", "demo"):
            assert client.post("/v1/chat/completions", json={**body, "model": name}).json()["model"] == name
        assert client.post("/v1/chat/completions", json={**body, "model": "gpt"}).status_code == 404
        assert [m["name"] for m in client.get("/api/ps").json()["models"]] == ["demo"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--keep-alive", "1h"), b"several models"),
        (("jamba:tiny", "--keep-alive", "soon"), b"not a duration"),
        (("--alias", "a", "--alias", "b"), b"--alias"),
        (("jamba:tiny",), b"two models are called jamba:tiny"),
        (("--upstream", "http://127.0.0.1:1"), b"--upstream"),
    ],
)
def test_options_that_do_not_go_together(options: tuple[str, ...], words: bytes) -> None:
    done = jamba("serve", "jamba:tiny", "--port", "0", *options)
    assert done.returncode == 2 and words in done.stderr


def test_another_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAMBA_API_KEY", "secret")
    with serve_process() as (_, behind):
        monkeypatch.setenv("JAMBA_API_KEY", "own\n")
        monkeypatch.setenv("JAMBA_UPSTREAM_KEY", "secret")
        with serve_process("--upstream", f"{behind.base_url}/v1") as (server, client):
            client.headers["X-Api-Key"] = "own"
            body = {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 2}
            assert client.post("/v1/chat/completions", json=body).json()["usage"]["completion_tokens"] > 0
            assert client.post("/v1/messages", json=body).json()["usage"]["output_tokens"] > 0
            assert client.post("/v1/messages", json=body, headers={"X-Api-Key": "secret"}).status_code == 401
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0


def test_an_address_that_is_none() -> None:
    for url in ("example.com", "ftp://example.com", "http://", "http://user:pass@example.com", "http://a/?x"):
        done = jamba("serve", "--port", "0", "--upstream", url)
        assert done.returncode == 2 and b"--upstream" in done.stderr, url


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


def test_a_port_is_taken_from_the_beginning_and_free_at_once_at_the_end() -> None:
    with _listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(JambaError, match="cannot listen"):  # the model is being loaded
            _listen("127.0.0.1", port)
        _reuse_later(listener)
        listener.listen()
        with pytest.raises(JambaError, match="cannot listen"):
            _listen("127.0.0.1", port)
        with socket.create_connection(("127.0.0.1", port)) as client:
            connection, _ = listener.accept()
            connection.close()  # the side that closes first keeps the address for a while
            assert client.recv(1) == b""
    _listen("127.0.0.1", port).close()
