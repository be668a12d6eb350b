"""Hub repositories as conversion sources, against a small server with the hub's API."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from jambacli.errors import UsageError
from jambacli.hub.checkpoints import find_checkpoint
from tests.support.checkpoints import make_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """The few routes of the hub that a download needs; repositories are directories under ``root``."""

    root: ClassVar[Path]
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._info("/".join(parts[2:4]), tree=parts[4:5] == ["tree"])
        else:
            self._file("/".join(parts[:2]), "/".join(parts[4:]))

    def _info(self, repo: str, tree: bool) -> None:
        if self._refused(repo):
            return
        files = [p for p in (self.root / repo).rglob("*") if p.is_file()]
        names = [str(p.relative_to(self.root / repo)) for p in files]
        answer: Any = {"_id": "1", "id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        if tree:
            answer = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0" * 40}
                for name, path in zip(names, files, strict=True)
            ]
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, repo: str, name: str) -> None:
        if self._refused(repo):
            return
        path = self.root / repo / name
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        if self.command == "GET":
            self.asked.append(f"{repo}/{name}")
        data = path.read_bytes()
        self._send(200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'})

    def _refused(self, repo: str) -> bool:
        if repo == "ai21labs/gated":
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif repo == "ai21labs/broken":
            self._send(400, b"", {})
        elif not (self.root / repo).is_dir():
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        else:
            return False
        return True

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, type[Hub]]]:
    root = tmp_path_factory.mktemp("hub")
    good = make_checkpoint(root / "ai21labs" / "Jamba-tiny", num_hidden_layers=2, attn_layer_offset=0)
    (good / "pytorch_model.bin").write_bytes(b"x" * 1000)
    (good / "consolidated.00.pth").write_bytes(b"x" * 1000)
    (good / "figure.png").write_bytes(b"x" * 1000)
    other = root / "someone" / "llama"
    other.mkdir(parents=True)
    (other / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    (other / "model.safetensors").write_bytes(b"x" * 1000)
    pickled = root / "someone" / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((good / "config.json").read_bytes())
    (pickled / "pytorch_model.bin").write_bytes(b"x" * 1000)
    (root / "someone" / "empty").mkdir()
    Hub.root = root
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Hub
    server.shutdown()
    server.server_close()
    thread.join()


SCRIPT = """
import json, sys
from jambacli.errors import JambaError
from jambacli.hub.checkpoints import find_checkpoint
answers = []
for source in sys.argv[1:]:
    try:
        answers.append(["found", str(find_checkpoint(source))])
    except JambaError as error:
        answers.append([type(error).__name__, str(error)])
print(json.dumps(answers))
"""


def ask(home: Path, endpoint: str, *sources: str, **env: str) -> dict[str, tuple[str, str]]:
    """The result of find_checkpoint for each source, in a separate process (the library reads its settings on import)."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "*", **env}
    environment.pop("HF_TOKEN", None)
    command = [sys.executable, "-c", SCRIPT, *sources]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    answers = [tuple(answer) for answer in json.loads(done.stdout)]
    assert all("\n" not in text for _, text in answers)
    return dict(zip(sources, answers, strict=True))


def test_a_repository_is_downloaded_and_errors_are_one_line(tmp_path: Path, hub: tuple[str, type[Hub]]) -> None:
    endpoint, server = hub
    server.asked.clear()
    found = ask(
        tmp_path,
        endpoint,
        "ai21labs/Jamba-tiny",
        "ai21labs/gated",
        "ai21labs/broken",
        "ai21labs/nothing",
        "someone/llama",
        "someone/pickled",
        "someone/empty",
    )
    kind, folder = found["ai21labs/Jamba-tiny"]
    assert kind == "found"
    names = {str(p.relative_to(folder)) for p in Path(folder).rglob("*")}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
    }
    for name in names:
        assert (Path(folder) / name).read_bytes() == (server.root / "ai21labs" / "Jamba-tiny" / name).read_bytes()
    errors = {source: text for source, (kind, text) in found.items() if kind != "found"}
    assert "is gated: accept its terms" in errors["ai21labs/gated"] and "hf auth login" in errors["ai21labs/gated"]
    assert "the hub answered with an error" in errors["ai21labs/broken"]
    assert "no such repository on the hub" in errors["ai21labs/nothing"]
    assert "the architecture is LlamaForCausalLM" in errors["someone/llama"]
    assert "someone/llama/model.safetensors" not in server.asked
    assert "pickled (pytorch_model.bin)" in errors["someone/pickled"]
    assert "someone/pickled/pytorch_model.bin" not in server.asked
    assert "has no config.json" in errors["someone/empty"]

    again = ask(tmp_path, endpoint, "ai21labs/Jamba-tiny", "someone/pickled", HF_HUB_OFFLINE="1")
    assert again["ai21labs/Jamba-tiny"] == ("found", folder)
    assert "offline" in again["someone/pickled"][1] or "pickled" in again["someone/pickled"][1]


def test_offline(tmp_path: Path) -> None:
    found = ask(tmp_path, "http://127.0.0.1:9", "ai21labs/Jamba-tiny", HF_HUB_OFFLINE="1")
    kind, text = found["ai21labs/Jamba-tiny"]
    assert kind == "JambaError" and "offline" in text


@pytest.mark.slow  # the hub library tries five times, waiting longer each time
def test_without_a_network(tmp_path: Path) -> None:
    kind, text = ask(tmp_path, "http://127.0.0.1:9", "ai21labs/Jamba-tiny")["ai21labs/Jamba-tiny"]
    assert kind == "JambaError" and "cannot be reached" in text


def test_sources_that_are_neither_directory_nor_repository(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert find_checkpoint(str(tmp_path)) == tmp_path
    for source, message in (
        (str(tmp_path / "m.gguf"), "is a file: it is already in GGUF; jamba quantize"),
        (str(tmp_path / "model.safetensors"), "is a file: convert takes the directory"),
        ("nowhere", "no such directory, and not a hub repository"),
        ("./no/where", "'./no/where': no such directory"),
        ("a/b/c", "no such directory"),
        ("../model", "no such directory"),
        ("/no/where", "no such directory"),
        ("owner/na me", "no such directory"),
        ("x" * 5000, "no such directory"),
        ("a\0b", "no such directory"),
    ):
        with pytest.raises(UsageError, match=message):
            find_checkpoint(source)
