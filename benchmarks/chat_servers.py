"""Runs ``jamba serve`` and llama-server on one file, and sends both the same chat requests."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.made_up_vocabulary import words
from benchmarks.scratch_model import parser_of
from jambacli.errors import JambaError

#: Seconds in which a server must have started.
_STARTING = 180
_CHAT = "/v1/chat/completions"
# Seconds after which a request has failed.
_PATIENCE = 1200
# The made-up vocabulary's tokens that are no text: they would end a reply or leave it without text.
_NO_TEXT = 9


def server_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """The model's options, and those of both servers."""
    parser = parser_of(module, description)
    parser.add_argument("--peer", type=Path, default=None, metavar="DIR", help="llama-server and its libraries")
    parser.add_argument("--threads", "-t", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


@dataclass(frozen=True)
class Program:
    """How to serve a file. ``peer``: the directory of llama-server, None for ``jamba serve``. ``tokens``: at most in a
    request; ``clients``: at once."""

    path: Path
    threads: int
    clients: int
    tokens: int
    peer: Path | None = None

    @property
    def name(self) -> str:
        """The program's name in tables."""
        return "jamba serve" if self.peer is None else "llama-server"

    def command(self, port: int) -> list[str]:
        """The command line."""
        common = ["--host", "127.0.0.1", "--port", str(port), "--threads", str(self.threads)]
        if self.peer is None:
            command = [sys.executable, "-m", "jambacli", "serve", str(self.path), *common]
            return [*command, "--parallel", str(self.clients), "--ctx", str(self.tokens)]
        command = [str(self.peer / "llama-server"), "-m", str(self.path), *common, "--no-ui"]
        return [*command, "-np", str(self.clients), "-c", str(self.tokens * self.clients)]

    @contextlib.contextmanager
    def running(self) -> Iterator[int]:
        """Run it and yield its port; killed at the end. Raises JambaError when it does not start."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = dict(os.environ)
        if self.peer is not None:
            environment["LD_LIBRARY_PATH"] = str(self.peer)
        process = subprocess.Popen(
            self.command(port), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + _STARTING
            while not _healthy(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise JambaError(f"{self.name} did not start: {' '.join(self.command(port))}")
                time.sleep(0.1)
            yield port
        finally:
            process.kill()
            process.wait()


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


@dataclass(frozen=True)
class Answer:
    """A reply as its client saw it: the times of the first byte, of the first and of the last text, in seconds; the tokens of
    the prompt, how many of them were ``read``, and how many were ``written``; the ``text``."""

    first_byte: float
    first_text: float
    last_text: float
    prompt: int
    read: int
    written: int
    text: str


def ask(port: int, body: dict[str, Any], began: float) -> Answer:
    """Send a chat request and read its reply as a stream; times count from ``began``, a ``time.perf_counter()``.

    Raises JambaError for a request that fails.
    """
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
    connection.request("POST", _CHAT, json.dumps(body), {"Content-Type": "application/json"})
    lines: list[tuple[float, bytes]] = []
    with connection.getresponse() as response:
        if response.status != 200:
            raise JambaError(f"a request failed: {response.read().decode()[:500]}")
        # Parsed afterwards: what the client computes is not the servers' time.
        while line := response.readline():
            lines.append((time.perf_counter() - began, line))
    times: list[float] = []
    text = ""
    usage: dict[str, Any] = {}
    for at, line in lines:
        if line.startswith(b"data: {"):
            chunk = json.loads(line[6:])
            usage = chunk.get("usage") or usage
            said = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            text += said
            times += [at] if said else []
    if not times or not usage:
        raise JambaError("a reply had no text")
    prompt, written = usage["prompt_tokens"], usage["completion_tokens"]
    read = prompt - usage["prompt_tokens_details"]["cached_tokens"]
    return Answer(lines[0][0], times[0], times[-1], prompt, read, written, text)


class Requests:
    """Chat requests of made-up words for a file with the made-up vocabulary."""

    def __init__(self, path: Path, seed: int = 1) -> None:
        from jambacli.gguf.reader import GGUFFile
        from jambacli.text.tokenizer import Tokenizer

        with GGUFFile.open(path) as file:
            self._tokenizer = Tokenizer(file.metadata)
        self._rng = random.Random(seed)

    def text(self, tokens: int) -> str:
        """Text of about so many tokens, another one each time."""
        return words(self._rng, tokens, self._tokenizer.pieces, self._tokenizer)

    def tokens(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self._tokenizer.encode(text))

    def body(self, messages: list[dict[str, str]], generate: int, *, greedy: bool = False) -> dict[str, Any]:
        """A request for a reply of exactly ``generate`` tokens."""
        sampling: dict[str, Any] = {"temperature": 0.0}
        if not greedy:  # sampled, so that no program gains from a reply that repeats itself
            sampling = {"temperature": 1.0, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.0}
            sampling["seed"] = self._rng.randrange(1 << 31)
        never = {str(token): -100 for token in range(_NO_TEXT)}
        return {"messages": messages, "max_tokens": generate, "logit_bias": never, **sampling}
