"""Failures: broken connections, killed clients, refusals, damaged files, hostile servers, full and read-only disks."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jambacli.errors import JambaError
from jambacli.hub import download
from jambacli.hub.store import Store, StoreEntry
from tests.support.hub_fixtures import REPO, STEM
from tests.support.hub_servers import Repo, Server
from tests.support.pulls import file_of, get, tree

BIG = "someone/big"


@pytest.fixture
def big(server: Server, large: bytes) -> Server:
    assert len(large) > 3 << 20
    server.repos[BIG] = Repo({"big-Q8_0.gguf": large})
    return server


def part_size(root: Path) -> int:
    return sum(p.stat().st_size for p in root.rglob("*.part"))


def check_resumption(server: Server, size: int) -> None:
    """Check that no request starts after the end of the bytes before it, and that the last one reaches the end."""
    starts = [first for _, first, _ in server.asked]
    assert starts == sorted(starts)
    assert starts[0] == 0 and starts[-1] > 0
    assert server.asked[-1][2] == size


@pytest.mark.parametrize(
    ("tries", "cuts"),
    [(5, 50), (1, 8), pytest.param(1, 50, marks=pytest.mark.slow)],
    ids=["50 in one pull", "8 pulls", "50 pulls"],
)
def test_connections_cut_at_random_offsets(
    tries: int, cuts: int, big: Server, large: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(tries)
    left = [cuts]

    def cut(n: int) -> int | None:
        if not left[0]:
            return None
        left[0] -= 1
        return rng.randrange(1, max(2, n * 4 // cuts))

    big.trouble.cut = cut
    monkeypatch.setattr(download, "TRIES", tries)
    pulls = 0
    while True:
        before, asked = part_size(Store().root), len(big.asked)
        pulls += 1
        try:
            entry = get(BIG)
        except JambaError as error:
            assert tries == 1 and "pull again to resume" in str(error) and "\n" not in str(error)
            assert Store().entries() == []
            continue
        finally:
            assert big.asked[asked][1] == before
        break
    assert left == [0] and pulls == (cuts + 1 if tries == 1 else 1)
    assert file_of(entry) == large
    check_resumption(big, len(large))
    assert not list(Store().root.rglob("*.part"))


def start(*arguments: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jambacli", *arguments],
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_and_resume(server: Server, large: bytes, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    have = 0
    for i in range(kills):
        server.trouble.holding.clear()
        server.trouble.released.clear()
        # A random position in the missing bytes, before their end.
        server.trouble.hold = rng.randrange(1001, max(1002, (len(large) - have) // max(2, kills // 6)))
        asked = len(server.asked)
        client = start("pull", BIG, "--yes")
        assert server.trouble.holding.wait(60), client.communicate()
        client.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        _, said = client.communicate(timeout=60)
        server.trouble.released.set()
        assert client.returncode != 0
        assert "Traceback" not in said
        assert server.asked[asked][1] == have, f"kill {i} did not resume"
        have = part_size(Store().root)
        assert Store().entries() == []
    asked = len(server.asked)
    client = start("pull", BIG, "--yes")
    _, said = client.communicate(timeout=120)
    assert client.returncode == 0, said
    assert server.asked[asked][1] == have  # 0 where every kill came before the first bytes were on the disk
    entry = Store().get(f"hf.co/{BIG}")
    assert entry is not None and file_of(entry) == large
    check_resumption(server, len(large))


def test_killed_clients_resume(big: Server, large: bytes) -> None:
    kill_and_resume(big, large, 3, seed=1)


@pytest.mark.slow
def test_50_killed_clients_resume(big: Server, large: bytes) -> None:
    kill_and_resume(big, large, 50, seed=2)


def test_a_server_without_ranges(big: Server, large: bytes) -> None:
    big.trouble.ranges = False
    cuts = iter([1 << 20, None, None, None])
    big.trouble.cut = lambda n: next(cuts, None)
    assert file_of(get(BIG)) == large


def test_a_corrupted_blob_is_never_registered(big: Server, large: bytes) -> None:
    big.trouble.corrupt = True
    for _ in range(2):
        with pytest.raises(JambaError, match="damaged"):
            get(BIG)
        assert Store().entries() == [] and not list(Store().root.rglob("*.gguf"))
    big.trouble.corrupt = False
    assert file_of(get(BIG)) == large


def test_damage_in_an_earlier_partial_download_is_repaired(
    big: Server, large: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TRIES", 1)
    big.trouble.cut = lambda n: (2 << 20) + 1000 if n > 2 << 20 else None
    with pytest.raises(JambaError):
        get(BIG)
    part = next(Store().root.rglob("*.part"))
    with part.open("r+b") as file:
        file.seek(part.stat().st_size - 7)
        file.write(b"damaged")
    big.trouble.cut = lambda n: None
    assert file_of(get(BIG)) == large


def refused(name: str, message: str, **request: Any) -> None:
    with pytest.raises(JambaError, match=message) as caught:
        get(name, **request)
    assert "\n" not in str(caught.value)


def test_private_and_gated_repositories(hub: Server, models: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    repo = hub.repos[REPO]
    repo.private = True
    refused("jamba:3b", r"no such repository on the hub \(401\); if it is private, log in with: hf auth login")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused("jamba:3b", r"does not accept the token \(401\); log in")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert file_of(get("jamba:3b")) == models["Q4_K_M"]
    repo.gated = True
    refused("jamba:3b-q4_0", rf"is gated \(403\): ask for access on {hub.url}/{REPO}, then log in")
    refused("someone/nothing", r"no such repository on the hub, or your token may not see it \(404\)")
    assert [e.name for e in Store().entries()] == ["jamba:3b"]


def test_the_token_stays_with_the_hub(hub: Server, models: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect to another host, as the hub's are, does not carry the token there."""
    import http.server
    import threading

    seen: list[str | None] = []

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            data = models["Q4_K_M"]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    hub.trouble.on = "/resolve/"
    hub.trouble.answers = [(302, {"Location": f"http://127.0.0.1:{other.server_port}/signed"})]
    try:
        assert file_of(get("jamba:3b")) == models["Q4_K_M"]
    finally:
        other.shutdown()
        other.server_close()
        thread.join()
    assert seen == [None]


@pytest.mark.parametrize("on", ["/api/", "/resolve/"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_temporary_errors_are_retried(status: int, on: str, hub: Server, models: dict[str, bytes]) -> None:
    hub.trouble.on = on
    hub.trouble.answers = [(status, {}), (status, {"Retry-After": "0"})]
    assert file_of(get("jamba:3b")) == models["Q4_K_M"]
    hub.trouble.answers = [(status, {})] * 20
    word = "asks to slow down" if status == 429 else "has an error"
    refused("jamba:3b-q4_0", rf"{word} \({status}\), 5 times in a row")
    assert len(hub.trouble.answers) == 15
    hub.trouble.answers = [(429, {"Retry-After": "3600"})]
    refused("jamba:3b-q4_0", "to wait")


@pytest.mark.parametrize(
    ("status", "message"), [(404, "has no file"), (401, "token"), (403, "forbidden"), (418, "418")]
)
def test_refusals_of_a_file(status: int, message: str, hub: Server) -> None:
    hub.trouble.on = "/resolve/"
    hub.trouble.answers = [(status, {})]
    refused("jamba:3b", message)
    assert Store().entries() == []


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "log-in"), (403, "log-in"), (404, "no such model"), (429, "slow down"), (500, "error")],
)
@pytest.mark.parametrize("on", ["/manifests/", "/blobs/"])
def test_refusals_of_a_registry(on: str, status: int, message: str, server: Server, models: dict[str, bytes]) -> None:
    server.add_ollama("library/jamba", "latest", models["Q4_0"])
    server.trouble.on = on
    server.trouble.answers = [(status, {})] * 5
    refused("ollama:jamba", message)
    server.trouble.answers = []
    assert file_of(get("ollama:jamba")) == models["Q4_0"]


def test_stalls(big: Server, large: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "0.3")
    monkeypatch.setattr(download, "TRIES", 2)
    big.trouble.stalls = 3
    assert file_of(get(BIG)) == large
    check_resumption(big, len(large))
    Store().remove(f"hf.co/{BIG}")
    monkeypatch.setattr(download, "TRIES", 1)
    big.trouble.stalls = 1
    refused(BIG, "no data for 0.3 s, 1 times in a row; .* are stored; pull again to resume")


def test_an_unreachable_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("JAMBA_OLLAMA_REGISTRY", "http://127.0.0.1:9")
    refused("jamba:3b", "the hub cannot be reached: .*; try again later")
    refused("ollama:jamba", "cannot be reached")


@pytest.mark.parametrize(
    "path", ["../../../escape.gguf", "/tmp/escape.gguf", "a/../../b.gguf", "..\\b.gguf", "C:\\b.gguf"]
)
def test_a_listing_that_names_paths_outside(path: str, hub: Server, tmp_path: Path) -> None:
    row = {"size": 4, "blobId": "0" * 40, "lfs": {"sha256": "0" * 64, "size": 4, "pointerSize": 1}}
    hub.repos[REPO].listed[path] = row
    before = tree(tmp_path)
    refused("jamba:3b", "a path outside the repository; nothing was downloaded")
    assert hub.asked == [] and tree(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x.gguf", "a/b/../../../x.gguf", "/etc/passwd:q4", "/no/such.gguf", "a/b:../../x", "a\x00b",
     "jamba:\x1b[2J", "a/b\nc", "ollama:../../x", "ollama:x:../../y", "a/b@../../x",
     "hf.co/..", "..", "jamba:..", "a\\..\\b", "", "x" * 5000],
)  # fmt: skip
def test_names_that_lead_out_of_the_store(name: str, server: Server, tmp_path: Path) -> None:
    before = tree(tmp_path)
    refused(name, ".")
    with pytest.raises(JambaError) as caught:
        get(name)
    assert str(caught.value).isprintable()
    assert server.asked == [] and tree(tmp_path) == before


@pytest.mark.parametrize(
    "change", [{"digest": "sha256:../../x"}, {"digest": None}, {"size": -1}, {"size": "1"}, {"size": 1 << 60}]
)
def test_hostile_manifests(change: dict[str, Any], server: Server, models: dict[str, bytes], tmp_path: Path) -> None:
    server.add_ollama("library/jamba", "latest", models["Q4_0"])
    server.manifests["library/jamba/latest"]["layers"][1] |= change
    refused("ollama:jamba", "valid size and digest")
    for manifest in ([], {}, {"layers": "x"}, {"layers": [None, {"mediaType": 3}]}):
        server.manifests["library/jamba/latest"] = manifest
        refused("ollama:jamba", "ollama:jamba:latest")
    assert not list(tmp_path.rglob("*.gguf*"))


@pytest.mark.parametrize("data", [b"not a model" * 500, b"GGUF" + b"\xff" * 5000, b"GGUF", b""])
def test_a_file_that_is_not_a_model_is_not_kept(data: bytes, server: Server) -> None:
    server.repos["a/b"] = Repo({"b-Q4_0.gguf": data})
    refused("a/b", ".")
    assert tree(Store().root) == set()


def test_another_architecture_is_refused_from_its_head(server: Server, large: bytes) -> None:
    other = large.replace(b"jamba", b"llama")
    server.repos["a/b"] = Repo({"b-Q4_0.gguf": other})
    refused("a/b", "cannot be run: .*llama")
    assert sum(last - first for _, first, last in server.asked) <= 2 << 20
    assert tree(Store().root) == set()


def test_a_full_disk_is_noticed_before_the_download(hub: Server) -> None:
    row = {"size": 10**13, "blobId": "0" * 40, "lfs": {"sha256": "0" * 64, "size": 10**13, "pointerSize": 1}}
    hub.repos[REPO].listed[f"{STEM}-Q5_K_M.gguf"] = row
    refused("jamba:3b-q5_k_m", "needs 10 TB more, but the disk of .* has .* free; make room, or set JAMBA_HOME")
    assert hub.asked == [] and tree(Store().root) == set()


@contextmanager
def unprivileged() -> Iterator[None]:
    """Become another user, since root may write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_store(hub: Server, models: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        home.chmod(0o755)
        monkeypatch.setenv("JAMBA_HOME", str(home / "jamba"))
        get("jamba:3b")
        for path in (home / "jamba").rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        (home / "jamba").chmod(0o555)
        hub.asked.clear()
        with unprivileged():
            for name in ("jamba:3b", "jamba:3b-q4_0"):
                refused(name, "cannot write to the model store .*; set JAMBA_HOME")
            with pytest.raises(JambaError, match="cannot write to the model store"):
                Store().remove("jamba:3b")
            Store().remember_used("jamba:3b")
            assert [e.name for e in Store().entries()] == ["jamba:3b"]
        assert hub.asked == []
        for path in [home / "jamba", *(home / "jamba").rglob("*")]:
            path.chmod(0o755)


def test_two_pulls_of_one_name_at_once(big: Server, large: bytes) -> None:
    clients = [start("pull", BIG, "--yes") for _ in range(2)]
    said = [client.communicate(timeout=120)[1] for client in clients]
    assert [client.returncode for client in clients] == [0, 0], said
    assert sum(last - first for _, first, last in big.asked) == len(large)
    entry: StoreEntry | None = Store().get(f"hf.co/{BIG}")
    assert entry is not None and file_of(entry) == large
    assert any(re.search("already downloaded", text) for text in said)


def test_a_pull_is_safe_from_rm(big: Server, large: bytes) -> None:
    big.trouble.hold = 1 << 20
    client = start("pull", BIG, "--yes")
    assert big.trouble.holding.wait(60)
    # The client may not have written yet what the server has sent.
    deadline = time.monotonic() + 60
    while part_size(Store().root) == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert Store().remove_unfinished() == 0
    assert part_size(Store().root) > 0
    client.kill()
    client.communicate()
    big.trouble.released.set()
    assert [nbytes for _, nbytes in Store().unfinished()] == [part_size(Store().root)]
    assert Store().remove_unfinished() > 0
    assert tree(Store().root) == set()
