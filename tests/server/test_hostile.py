"""Requests made to do harm: no status of 500, no crash, bounded memory, and a server that answers afterwards."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from jambacli.api import Jamba
from jambacli.engine.options import GenerationOptions
from jambacli.server import connections, http
from tests.support.hostile import POSTS, body_of, hostile_requests, request
from tests.support.servers import serve_process, serving

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "How many herons were counted?"}], "temperature": 0, "max_tokens": 4}
# Statuses of answers to requests that are wrong. 503: the queue is full.
REFUSED = {400, 403, 404, 405, 408, 413, 431, 503}
SHORT = GenerationOptions(max_tokens=2)


def exchange(address: tuple[str, int], data: bytes, seconds: float = 60) -> list[int]:
    """The statuses of the answers to ``data``; none for a connection that is closed without one."""
    with socket.create_connection(address, timeout=seconds) as connection:
        answer = b""
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
            if b"Connection: close" not in data:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                answer += part
    return [int(s) for s in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def send_all(address: tuple[str, int], requests: Iterable[bytes], seconds: float = 5) -> Counter[int]:
    """Send the requests, eight at a time, and wait so long for each answer; the number of answers by status."""
    found: Counter[int] = Counter()

    def send(data: bytes) -> None:
        # What waits for more is given up after a while, as its client would be.
        with contextlib.suppress(TimeoutError):
            statuses = exchange(address, data, seconds)
            assert set(statuses) <= {100, 200} | REFUSED, (statuses, data[:2000])
            found.update(statuses)

    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(send, requests):
            pass
    return found


def address_of(url: Any) -> tuple[str, int]:
    parts = urlsplit(str(url))
    assert parts.hostname is not None and parts.port is not None
    return parts.hostname, parts.port


def wait_until_idle(client: httpx.Client) -> None:
    deadline = time.monotonic() + 60
    while client.get("/health").json() != {"status": "ok", "active": 0, "waiting": 0}:
        assert time.monotonic() < deadline, "requests are stuck"
        time.sleep(0.01)


@pytest.mark.parametrize("seed", range(3))
def test_hostile_requests(tiny: Jamba, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(http, "BODY_SECONDS", 0.5)
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    with serving(tiny, ctx=192, defaults=SHORT) as server:
        expected = server.client.post(CHAT, json=ASK).json()["choices"]
        found = send_all(address_of(server.url), hostile_requests(seed, 120))
        assert found[400] > 20 and found[200] > 10
        wait_until_idle(server.client)
        assert server.client.post(CHAT, json=ASK).json()["choices"] == expected


def test_slow_bodies_and_headers_are_given_up(tiny: Jamba, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    with serving(tiny, ctx=192) as server:
        address = address_of(server.url)
        head = request(CHAT, headers=[("Content-Length", "100")])
        assert exchange(address, head) == [408]
        for part in (b"", b"POST / HT", b"GET / HTTP/1.1\r\nHost: local"):
            with socket.create_connection(address, timeout=60) as connection:
                connection.sendall(part)
                assert connection.recv(1000) == b""
        # A byte now and then changes nothing.
        with socket.create_connection(address, timeout=60) as connection:
            with contextlib.suppress(ConnectionError):
                for byte in b"GET /health HTTP/1.1\r\n" * 100:
                    connection.sendall(bytes([byte]))
                    time.sleep(0.005)
            with contextlib.suppress(ConnectionError):
                assert connection.recv(1000) == b""
        # A connection that is used again waits as long for each request.
        with socket.create_connection(address, timeout=60) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /")
            answer = b""
            while part := connection.recv(1000):
                answer += part
            assert answer.startswith(b"HTTP/1.1 200")


def test_idle_connections_keep_nobody_out(tiny: Jamba) -> None:
    with serving(tiny, ctx=192, most_connections=30) as server, contextlib.ExitStack() as stack:
        address = address_of(server.url)
        idle = [stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(200)]
        for _ in range(5):
            with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
                assert client.post(CHAT, json=ASK).status_code == 200
        # Those that were idle longest were closed.
        assert idle[0].recv(1) == b""


def test_a_running_reply_is_not_closed_for_idle_connections(tiny: Jamba) -> None:
    bias = {str(token): -1000 for token in range(8)}
    body = {**ASK, "max_tokens": 150, "stream": True, "logit_bias": bias}
    with (
        serving(tiny, ctx=192, most_connections=10) as server,
        contextlib.ExitStack() as stack,
        server.client.stream("POST", CHAT, json=body) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        for _ in range(100):
            stack.enter_context(socket.create_connection(address_of(server.url), timeout=60))
        assert [line for line in lines if line][-1] == "data: [DONE]"


@pytest.mark.parametrize("path", POSTS)
def test_every_field_of_every_body_may_be_of_a_wrong_type(tiny_server: tuple[str, int], path: str) -> None:
    import json

    whole = body_of(path)
    wrong = [
        {**whole, name: value} for name in whole for value in (None, True, -1, 1e300, "x", [], {}, [[]], [{}], [1])
    ]
    found = send_all(tiny_server, (request(path, json.dumps(body).encode()) for body in wrong), 300)
    assert sum(found.values()) == len(wrong)


@pytest.fixture(scope="module")
def tiny_server(tiny: Jamba) -> Any:
    with serving(tiny, ctx=192, defaults=SHORT, queue=512) as server:
        yield address_of(server.url)


@pytest.mark.slow
def test_thousands_of_hostile_requests_in_bounded_memory(tmp_path: Path) -> None:
    with serve_process("--ctx", "192", "-n", "2", "--no-store", "--queue", "256") as (server, client):
        process, address = psutil.Process(server.pid), address_of(client.base_url)
        expected = client.post(CHAT, json=ASK).json()["choices"]
        send_all(address, hostile_requests(99, 1000))
        early = process.memory_info().rss
        found = send_all(address, hostile_requests(100, 4000))
        assert found[400] > 1000 and found[200] > 500
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(900)]
            assert client.post(CHAT, json=ASK).json()["choices"] == expected and len(idle) == 900
        wait_until_idle(client)
        assert server.poll() is None
        assert process.memory_info().rss - early < 150 << 20


@pytest.mark.slow
def test_schemathesis_finds_nothing() -> None:
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    checks = "not_a_server_error,content_type_conformance,status_code_conformance,response_schema_conformance"
    program = Path(sys.executable).with_name("schemathesis")
    with serve_process("--ctx", "192", "-n", "2", "--no-store") as (server, client):
        command = [
            str(program),
            "run",
            f"{client.base_url}/openapi.json",
            "--seed",
            "1",
            "-n",
            "15",
            "--checks",
            checks,
        ]
        command += ["--phases", "coverage,fuzzing", "--suppress-health-check", "all", "--warnings", "off"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=1200)
        assert "Failures:" not in done.stdout and server.poll() is None, done.stdout[-5000:]
        assert client.post(CHAT, json=ASK).status_code == 200


@pytest.mark.parametrize("content", [5, True, "text", {"text": "a"}])
def test_a_result_whose_content_is_no_list_is_refused(content: Any) -> None:
    from jambacli.server.bedrock_tools import converse_messages
    from jambacli.server.errors import ApiError

    blocks = [{"toolResult": {"toolUseId": "a", "content": content}}]
    with pytest.raises(ApiError, match="must be a list"):
        converse_messages("messages[0]", "user", blocks, lambda *_: [])
