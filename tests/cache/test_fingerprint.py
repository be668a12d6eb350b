"""Every byte counts for the name of some weights; a copy, a moved file and an unchanged one keep theirs."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import threading
from pathlib import Path

import pytest

from jambacli.api import Jamba
from jambacli.cache import fingerprint
from jambacli.cache.file_hash import CHUNK, FileHash
from jambacli.cache.fingerprint import Weights
from jambacli.errors import JambaError
from jambacli.gguf.reader import GGUFFile
from jambacli.session.export import export_session, import_session
from tests.support.small_models import small_file


def named(path: Path) -> str:
    with GGUFFile.open(path) as file:
        return Weights(file).name


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files count as large ones: they are not read at once when they are first seen."""
    monkeypatch.setattr(fingerprint, "READ_AT_ONCE", 0)


def read_all(path: Path) -> str:
    """The file's name, after all of it was read in the background."""
    with GGUFFile.open(path) as file:
        weights = Weights(file)
        if weights._thread is not None:
            weights._thread.join()
        assert fingerprint._read_known()[weights._identity].hash
        return weights.name


def edit(path: Path, position: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(data)


@pytest.mark.parametrize(("quant", "experts"), [("q4_k", 4), ("q8_0", 1), ("f32", 4)])
@pytest.mark.parametrize("count", [20, pytest.param(334, marks=pytest.mark.slow)])
def test_every_byte_counts(tmp_path: Path, quant: str, experts: int, count: int) -> None:
    source, choice = small_file(tmp_path, quant, experts), random.Random(7)
    path = tmp_path / "edited.gguf"
    shutil.copyfile(source, path)
    assert named(path) == named(source)
    whole = source.read_bytes()
    with GGUFFile.open(source) as file:
        tensors = {n: (i.offset, i.nbytes, i.shape) for n, i in file.tensors.items()}
    seen = {named(source)}
    names = list(tensors) * (count // len(tensors) + 1)
    for i, name in enumerate(choice.sample(names, count)):
        start, size, shape = tensors[name]
        length = size // (math.prod(shape) // shape[-1]) if i % 2 else 1
        at = start + choice.randrange(size - length + 1)
        edit(path, at, bytes(b ^ choice.randrange(1, 256) for b in whole[at : at + length]))
        seen.add(named(path))
        edit(path, at, whole[at : at + length])
    assert len(seen) == count + 1
    assert named(path) == named(source)


def test_no_stored_state_is_taken_from_weights_that_differ_in_a_byte(tmp_path: Path) -> None:
    path = small_file(tmp_path, "q4_k")
    text = "the quick brown fox jumps over the lazy dog. " * 8

    def reused() -> int:
        with Jamba.load(path).session() as session:
            list(session.complete(text, max_tokens=1, temperature=0))
            return session.stats.reused_tokens

    assert reused() == 0
    assert reused() > 0
    edit(path, path.stat().st_size - 70_001, bytes([path.read_bytes()[-70_001] ^ 1]))
    assert reused() == 0


def test_a_large_file_goes_by_its_identity_until_all_is_read(tmp_path: Path, large: None) -> None:
    path = small_file(tmp_path, "q4_k")
    name = read_all(path)
    assert name == named(path)
    copy, moved = tmp_path / "copy.gguf", tmp_path / "moved.gguf"
    shutil.copyfile(path, copy)
    assert named(copy) == name
    path.rename(moved)
    assert named(moved) == name
    data = copy.read_bytes()
    edit(copy, len(data) - 70_001, bytes([data[-70_001] ^ 1]))
    assert named(copy) != name
    edit(copy, len(data) - 70_001, data[-70_001:-70_000])
    read_all(copy)  # in the background: it was changed in its place
    assert named(copy) == name


def test_an_edit_that_keeps_the_time_is_seen(tmp_path: Path, large: None) -> None:
    path = small_file(tmp_path, "q4_k")
    name, before = read_all(path), path.stat()
    edit(path, before.st_size - 70_001, bytes([path.read_bytes()[-70_001] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert named(path) != name


def test_a_very_large_copy_is_not_read_at_once(tmp_path: Path, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "READ_COPY_AT_ONCE", 0)
    path, copy = small_file(tmp_path, "q4_k"), tmp_path / "copy.gguf"
    name = read_all(path)
    shutil.copyfile(path, copy)
    monkeypatch.setattr(Weights, "_read_in_background", lambda self: None)
    with GGUFFile.open(copy) as file:
        weights = Weights(file)
        assert weights.name != name
        assert weights.are(name)  # a session of the first file: all bytes are compared


def test_reading_stops_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(random.Random(1).randbytes(2 * CHUNK + 5))
    whole = FileHash([path])
    assert whole.run()
    stop = threading.Event()
    part = FileHash([path], whole.chunks[:1])
    stop.set()
    assert not part.run(stop)
    assert part.remaining == 2 * CHUNK
    part.run_parallel()
    assert part.hexdigest() == whole.hexdigest()
    assert FileHash([path, path]).sizes != whole.sizes


@pytest.mark.parametrize("others", [0, 1])
def test_the_name_of_an_earlier_version_is_kept_if_it_stands_for_one_file(
    tmp_path: Path, own_home: Path, others: int
) -> None:
    path = small_file(tmp_path, "q4_k")
    info = path.stat()
    with GGUFFile.open(path) as file:
        sample = fingerprint._sample(file)
    keys = [f"{path}:{info.st_dev}:{info.st_ino + i}:{info.st_size}:{info.st_mtime_ns}" for i in range(others + 1)]
    own_home.mkdir(exist_ok=True)
    (own_home / "fingerprints.json").write_text(json.dumps(dict.fromkeys(keys, sample)))
    assert (named(path) == sample) is (others == 0)
    if not others:
        data = path.read_bytes()
        edit(path, len(data) - 70_001, bytes([data[-70_001] ^ 1]))
        assert named(path) != sample


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", '{"version": 1, "files": [1]}', '{"version": 1, "files": {"a": {"name": 3}}}', "[" * 100_000],
)
def test_a_damaged_record_is_made_again(tmp_path: Path, own_home: Path, damage: str) -> None:
    path = small_file(tmp_path, "q4_k")
    name = named(path)
    (own_home / "weights.json").write_text(damage)
    assert named(path) == name
    assert (own_home / "weights.json").stat().st_mode & 0o77 == 0


def first_reply(model: Jamba) -> int:
    """Reads a text with a session of its own; the number of tokens whose state was stored."""
    with model.session() as session:
        list(session.complete("the quick brown fox jumps over the lazy dog. " * 8, max_tokens=1, temperature=0))
        return session.stats.reused_tokens


def changed_copy(path: Path) -> Path:
    other = path.with_name("other.gguf")
    shutil.copyfile(path, other)
    edit(other, path.stat().st_size - 70_001, bytes([path.read_bytes()[-70_001] ^ 1]))
    return other


@pytest.mark.parametrize("limit", [0, fingerprint.READ_AT_ONCE])
def test_a_file_replaced_after_loading_gets_no_state_of_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(fingerprint, "READ_AT_ONCE", limit)
    path = small_file(tmp_path, "q4_k")
    other = changed_copy(path)
    model = Jamba.load(path)
    other.replace(path)
    assert first_reply(model) == 0
    assert first_reply(Jamba.load(path)) == 0  # other bytes
    assert first_reply(model) > 0
    assert named(path) != model.fingerprint
    assert model.weights.full_hash() is None


def test_a_model_deleted_while_in_use_still_answers(tmp_path: Path) -> None:
    path = small_file(tmp_path, "q4_k")
    model = Jamba.load(path)
    path.unlink()
    assert first_reply(model) == 0
    assert first_reply(model) > 0


def test_state_of_a_file_edited_while_in_use_is_not_stored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, text = small_file(tmp_path, "q4_k"), "the quick brown fox jumps over the lazy dog. " * 8
    data = path.read_bytes()
    model = Jamba.load(path)
    name = model.fingerprint
    with model.session(name="s") as session:
        edit(path, len(data) - 70_001, bytes([data[-70_001] ^ 1]))
        list(session.complete(text, max_tokens=1, temperature=0))
    assert "was changed while it is in use" in caplog.text
    edit(path, len(data) - 70_001, data[-70_001:-70_000])
    again = Jamba.load(path)
    assert again.fingerprint == name  # the bytes of before: known by their hash
    assert first_reply(again) == 0


def test_a_model_moved_while_in_use_keeps_its_state(tmp_path: Path) -> None:
    path = small_file(tmp_path, "q4_k")
    model = Jamba.load(path)
    assert model.fingerprint
    path.rename(tmp_path / "moved.gguf")
    assert first_reply(model) == 0
    assert first_reply(Jamba.load(tmp_path / "moved.gguf")) > 0


def test_an_edit_after_an_earlier_version_that_keeps_the_time_is_seen(tmp_path: Path, own_home: Path) -> None:
    path = small_file(tmp_path, "q4_k")
    info = path.stat()
    with GGUFFile.open(path) as file:
        sample = fingerprint._sample(file)
    own_home.mkdir(exist_ok=True)
    record = own_home / "fingerprints.json"
    record.write_text(json.dumps({f"{path}:{info.st_dev}:{info.st_ino}:{info.st_size}:{info.st_mtime_ns}": sample}))
    os.utime(record, ns=(info.st_ctime_ns, info.st_ctime_ns))
    while path.stat().st_ctime_ns == info.st_ctime_ns:
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert named(path) != sample


def test_a_session_exported_before_its_file_was_read_opens_elsewhere(
    tmp_path: Path, large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Weights, "_read_in_background", lambda self: None)
    path, copy, archive = small_file(tmp_path, "q4_k"), tmp_path / "copy.gguf", tmp_path / "s.zip"
    shutil.copyfile(path, copy)
    with Jamba.load(path).session(name="s") as session:
        list(session.complete("the quick brown fox", max_tokens=1, temperature=0))
    export_session("s", archive)
    monkeypatch.setenv("JAMBA_HOME", str(tmp_path / "elsewhere"))
    import_session(archive)
    edit(path, path.stat().st_size - 70_001, bytes([path.read_bytes()[-70_001] ^ 1]))
    with pytest.raises(JambaError, match="was made with"):
        Jamba.load(path).session(resume="s")
    with Jamba.load(copy).session(resume="s") as session:
        assert session.sequence.tokens


def test_a_new_file_is_read_in_full_by_the_command_that_made_it(tmp_path: Path, large: None) -> None:
    path, copy = small_file(tmp_path, "q8_0"), tmp_path / "copy.gguf"
    fingerprint.record(path)
    assert [e.hash is not None for e in fingerprint._read_known().values()] == [True]
    name = named(path)
    shutil.move(path, copy)
    assert named(copy) == name
    fingerprint.record(tmp_path / "missing.gguf")
