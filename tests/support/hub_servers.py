"""A small server with the HTTP APIs of the Hugging Face hub and of an Ollama registry, over files in memory. It can misbehave.

Every request for bytes is recorded with its range.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import socket
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """A repository: files by path, and commits by revision. ``lfs`` False: files are in git itself, without a sha256."""

    files: dict[str, bytes]
    private: bool = False
    gated: bool = False
    lfs: bool = True
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    at: dict[str, dict[str, bytes]] = field(default_factory=dict)
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Further files in the listing, in the API's form."""
    sizes_listed: bool = True


@dataclass
class Trouble:
    """How the server misbehaves.

    ``answers``: (status, headers) sent instead of the next answers to paths that contain ``on``. ``cut(n)``: after how many
    bytes of a body of n bytes the connection breaks, None for never. ``corrupt``: flip a bit in bodies. ``ranges``: whether
    ranges are supported. ``stalls``: how many bodies stop halfway until ``released``. ``hold``: after how many bytes the next
    body stops until ``released``; ``holding`` is set when it has.
    """

    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    on: str = ""
    cut: Callable[[int], int | None] = lambda n: None
    corrupt: bool = False
    ranges: bool = True
    stalls: int = 0
    hold: int | None = None
    holding: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)


@dataclass
class Server:
    """One running server: its URL, its content, and the requests it received."""

    url: str = ""
    token: str = "hf_good"
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, Any] = field(default_factory=dict)
    trouble: Trouble = field(default_factory=Trouble)
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    """Path, first byte and last byte + 1 of every request for a file's bytes."""
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add_ollama(self, name: str, tag: str, data: bytes, *, digest: str | None = None) -> str:
        """Add a model as ``ollama push`` does, with config and template beside the weights."""
        digest = digest or f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        layer = {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": len(data)}
        other = {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "0" * 64, "size": 7}
        self.manifests[f"{name}/{tag}"] = {"schemaVersion": 2, "config": {}, "layers": [other, layer]}
        return digest


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urllib.parse.unquote(self.path.split("?")[0])
        trouble = self.served.trouble
        with self.served.lock:
            answer = trouble.answers.pop(0) if trouble.answers and trouble.on in path else None
        if answer is not None:
            return self._send(answer[0], b"", answer[1])
        if path.startswith("/v2/"):
            return self._ollama(path)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._listing("/".join(parts[2:4]), "/".join(parts[5:]) or "main")
        if parts[2:3] == ["resolve"]:
            return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self._send(404, b"", {})

    def _repo(self, name: str, revision: str, file: str | None) -> tuple[Repo, str, dict[str, bytes]] | None:
        repo = self.served.repos.get(name)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        known = token == self.served.token
        if token and not known:
            self._send(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repo is None or (repo.private and not known):
            self._send(404 if known else 401, b"", {"X-Error-Code": "RepoNotFound"})
        elif repo.gated and file is not None:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif revision not in repo.revisions and revision not in repo.revisions.values():
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            commit = repo.revisions.get(revision, revision)
            return repo, commit, repo.at.get(commit, repo.files)
        return None

    def _listing(self, name: str, revision: str) -> None:
        found = self._repo(name, revision, None)
        if found is None:
            return
        repo, commit, files = found
        siblings: list[dict[str, Any]] = []
        for path, data in files.items():
            row: dict[str, Any] = {"rfilename": path}
            if repo.sizes_listed:
                row |= {"size": len(data), "blobId": git_hash(data)}
                if repo.lfs:
                    row["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            siblings.append(row)
        siblings += [{"rfilename": path, **row} for path, row in repo.listed.items()]
        info = {"_id": "1", "id": name, "sha": commit, "siblings": siblings, "private": repo.private}
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, revision: str, path: str) -> None:
        found = self._repo(name, revision, path)
        if found is None:
            return
        repo, commit, files = found
        if path not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = files[path]
        etag = hashlib.sha256(data).hexdigest() if repo.lfs else git_hash(data)
        self._bytes(f"{name}/{path}", data, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'})

    def _ollama(self, path: str) -> None:
        if match := re.fullmatch(r"/v2/(.+)/manifests/(.+)", path):
            manifest = self.served.manifests.get(f"{match[1]}/{match[2]}")
            if manifest is None:
                return self._send(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}', {})
            return self._send(200, json.dumps(manifest).encode(), {})
        digest = path.rpartition("/")[2]
        if digest in self.served.blobs:
            return self._bytes(digest, self.served.blobs[digest], {})
        return self._send(404, b"", {})

    def _bytes(self, name: str, data: bytes, headers: dict[str, str]) -> None:
        trouble = self.served.trouble
        first, last, status = 0, len(data), 200
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match and trouble.ranges:
            first, last = int(match[1]), min(len(data), int(match[2]) + 1 if match[2] else len(data))
            if first >= len(data):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            status, headers = 206, {**headers, "Content-Range": f"bytes {first}-{last - 1}/{len(data)}"}
        if self.command == "GET":
            self.served.asked.append((name, first, last))
        body = data[first:last]
        if trouble.corrupt and len(body) > 100:
            body = body[:-50] + bytes([body[-50] ^ 1]) + body[-49:]
        self._send(status, body, headers)
        return None

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        trouble = self.served.trouble
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "GET":
            return
        cut = trouble.cut(len(body)) if status in (200, 206) and b"rfilename" not in body and len(body) > 1000 else None
        if len(body) > 1000 and status in (200, 206) and (trouble.stalls or trouble.hold is not None):
            with self.served.lock:
                stop = len(body) // 2 if trouble.hold is None else min(trouble.hold, len(body))
                trouble.stalls, trouble.hold = max(0, trouble.stalls - 1), None
            self.wfile.write(body[:stop])
            self.wfile.flush()
            trouble.holding.set()
            trouble.released.wait(60)
            self.close_connection = True
            return
        if cut is None:
            for start in range(0, len(body), 1 << 14):
                self.wfile.write(body[start : start + (1 << 14)])
            return
        self.wfile.write(body[:cut])
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Quiet(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections broken by clients that tests kill."""


@contextmanager
def running() -> Iterator[Server]:
    """Run a server on a free port."""
    served = Server()
    handler = type("Handler", (_Handler,), {"served": served})
    server = _Quiet(("127.0.0.1", 0), handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.trouble.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
