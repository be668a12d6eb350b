"""Session archives from elsewhere: what is read is bounded by the file itself, whatever its directory claims."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from jambacli.cache.prefix_store import PrefixStore
from jambacli.errors import BadFileError
from jambacli.session import export, session_file
from jambacli.session.export import export_session, import_session
from tests.support.cli_runner import jamba

BLOB = b"state" * 100


def name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:40]


def session_json(blobs: list[bytes] | None = None, **changes: Any) -> bytes:
    now = time.time()
    names = [name_of(b) for b in blobs or ()]
    prefix = {
        "version": 1, "position": 3, "chain": "0" * 40, "checkpoint": names[0], "segments": names[1:], "segment_tokens": 512,
        "logits": None, "documents": [],
    } if names else None  # fmt: skip
    saved = session_file.SavedSession(
        "s", "m", "/m.gguf", "f" * 24, "f16", 512, now, now, turns=[{"role": "user", "content": "Hi"}]
    )
    value = json.loads(session_file.to_json(saved))
    return json.dumps({**value, "prefixes": [prefix] if prefix else [], **changes}).encode()


def archive(path: Path, entries: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path


def refused(path: Path, words: str) -> None:
    """Importing fails with one line that names the file, from Python and from the command line; nothing is kept."""
    with pytest.raises(BadFileError, match=words):
        import_session(path)
    done = jamba("sessions", "import", str(path))
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1
    assert b"internal" not in done.stderr and path.name.encode() in done.stderr
    assert session_file.names() == []


def test_an_exported_session_comes_back(tmp_path: Path) -> None:
    store = PrefixStore()
    blobs = [BLOB, b"segment"]
    session_file.session_path("s").write_bytes(session_json(blobs))
    with store.writing():
        for blob in blobs:
            store.put_blob(blob, name_of(blob))
    export_session("s", tmp_path / "a.zip")
    store.clear()
    assert import_session(tmp_path / "a.zip", "t") == "t"
    assert [store.get_blob(name_of(b)) for b in blobs] == blobs
    assert session_file.read("t").turns == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("lying", [False, True])
def test_packed_entries_are_refused_whatever_size_they_claim(tmp_path: Path, packing: int, lying: bool) -> None:
    bomb = bytes(50_000_000)
    path = archive(tmp_path / "a.zip", {"session.json": session_json([bomb]), f"blobs/{name_of(bomb)}": bomb}, packing)
    if lying:
        data = bytearray(path.read_bytes())
        at = data.find(b"PK\x01\x02")
        while at >= 0:  # the directory claims that the unpacked size is the packed one
            data[at + 24 : at + 28] = data[at + 20 : at + 24]
            at = data.find(b"PK\x01\x02", at + 4)
        path.write_bytes(data)
    refused(path, "compressed or encrypted entries")


def test_an_entry_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"session.json": session_json()})
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02")
    struct.pack_into("<II", data, at + 20, 3 << 30, 3 << 30)
    path.write_bytes(data)
    refused(path, "not a session archive")


def test_entries_within_each_other_are_not_all_read(tmp_path: Path) -> None:
    """Each blob is the local header and the data of the next: 300 MB of entries in 2 MB."""

    def entry(signature: bytes, name: str, data: bytes, *more: int) -> bytes:
        sizes = (zlib.crc32(data), len(data), len(data), len(name), 0)
        fields = struct.pack("<HHHHHLLLHH", 20, 0, 0, 0, 33, *sizes)
        if more:
            return signature + struct.pack("<H", 20) + fields + struct.pack("<HHHLL", 0, 0, 0, 0, *more) + name.encode()
        return signature + fields + name.encode()

    blobs = [os.urandom(1_900_000)]
    for _ in range(150):
        blobs.append(entry(b"PK\x03\x04", f"blobs/{name_of(blobs[-1])}", blobs[-1]) + blobs[-1])
    text = session_json(blobs)
    outermost = entry(b"PK\x03\x04", f"blobs/{name_of(blobs[-1])}", blobs[-1])
    first = entry(b"PK\x03\x04", "session.json", text) + text
    body = first + outermost + blobs[-1]
    directory = entry(b"PK\x01\x02", "session.json", text, 0)
    for blob in blobs:
        local = len(outermost)  # all names have the same length
        directory += entry(b"PK\x01\x02", f"blobs/{name_of(blob)}", blob, len(body) - len(blob) - local)
    end = struct.pack("<4sHHHHLLH", b"PK\x05\x06", 0, 0, 151, 151 + 1, len(directory), len(body), 0)
    (tmp_path / "a.zip").write_bytes(body + directory + end)
    refused(tmp_path / "a.zip", "not a session archive")


def test_the_same_bytes_are_not_counted_for_every_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = [os.urandom(1000), os.urandom(1000)]
    path = archive(
        tmp_path / "a.zip", {"session.json": session_json(blobs), **{f"blobs/{name_of(b)}": b for b in blobs}}
    )
    monkeypatch.setattr(export, "_MAX_BLOB", 999)
    refused(path, "longer than it can be")


def test_a_session_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "a.zip", {"session.json": session_json(system="x" * 10_000)})
    monkeypatch.setattr(export, "_MAX_JSON", 5000)
    refused(path, "longer than it can be")


def test_a_session_of_millions_of_values_is_refused_before_they_are_built(tmp_path: Path) -> None:
    refused(archive(tmp_path / "a.zip", {"session.json": b"[" + b"[]," * 3_000_000 + b"[]]"}), "too large")


def test_an_archive_of_too_many_entries_is_refused(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.zip", {"session.json": session_json(), **{f"blobs/{i:040x}": b"" for i in range(20_001)}}
    )
    refused(path, "holds more than 20,000 files")


@pytest.mark.parametrize("entries", [{}, {"other": b""}, {"session.json/": b""}])
def test_an_archive_of_something_else_is_refused(tmp_path: Path, entries: dict[str, bytes]) -> None:
    refused(archive(tmp_path / "a.zip", entries), "has no session.json")


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06", b"PK\x03\x04" * 100, os.urandom(1000)])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    refused(tmp_path / "a.zip", "not a session archive")


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.zip")
    refused(tmp_path / "a.zip", "no file")


@pytest.mark.parametrize("blobs", [[BLOB], [BLOB, b"x"]])
def test_missing_and_damaged_blobs_are_named(tmp_path: Path, blobs: list[bytes]) -> None:
    refused(archive(tmp_path / "a.zip", {"session.json": session_json(blobs)}), "is missing")
    wrong = {f"blobs/{name_of(b)}": b + b"!" for b in blobs}
    refused(archive(tmp_path / "b.zip", {"session.json": session_json(blobs), **wrong}), "is damaged")
