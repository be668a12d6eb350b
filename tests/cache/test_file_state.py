"""Edits that are hard to see: without a new time, under another name, while the file is in use, or with a record cut short."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jambacli.api import Jamba
from jambacli.cache import file_state, fingerprint
from jambacli.cache.file_hash import CHUNK, FileHash
from jambacli.cache.file_state import settled
from jambacli.cache.fingerprint import Weights
from jambacli.gguf.reader import GGUFFile
from tests.support.cli_runner import jamba
from tests.support.repository import REPO
from tests.support.small_models import small_file

AT = 70_001  # from the end: inside a matrix, and in no sample


def flipped(path: Path, at: int = AT) -> None:
    """Change a byte of the file in its place; a second time changes it back."""
    with path.open("r+b") as file:
        file.seek(-at, os.SEEK_END)
        byte = file.read(1)
        file.seek(-at, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))


def named(path: Path) -> str:
    """The file's name, once it is read where that happens in the background."""
    with GGUFFile.open(path) as file:
        weights = Weights(file)
        if weights._thread is not None:
            weights._thread.join()
        return weights.name


def told(path: Path) -> None:
    """Skip the test where the system does not tell whether a file is open for writing."""
    with path.open("rb") as file:
        if file_state._has_writers(file.fileno()) is None:
            pytest.skip("this system does not tell whether a file is open for writing")


@pytest.fixture(params=["small", "large"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files are read at once, large ones go by their identity."""
    if request.param == "large":
        monkeypatch.setattr(fingerprint, "READ_AT_ONCE", 0)


def run(path: Path) -> int:
    """Answers a prompt with a command of its own; the number of tokens whose state was stored."""
    text = "the quick brown fox jumps over the lazy dog. " * 8
    done = jamba("run", str(path), "--raw", "-n", "1", "--temp", "0", "--stats", text)
    assert done.returncode == 0, done.stderr
    found = re.search(rb"([\d,]+) (?:tokens )?reused", done.stderr)
    return int(found[1].replace(b",", b"")) if found else 0


def test_an_edited_file_never_gets_the_state_of_the_other_on_the_command_line(tmp_path: Path, size: None) -> None:
    path, kept = small_file(tmp_path, "q4_k"), tmp_path / "kept.gguf"
    assert run(path) == 0
    assert run(path) > 0
    shutil.copyfile(path, kept)
    assert run(kept) > 0
    flipped(path)
    assert run(path) == 0
    assert run(path) > 0
    before = path.stat()
    flipped(path, 60_000)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run(path) == 0
    assert run(kept) > 0
    moved = tmp_path / "moved.gguf"
    path.rename(moved)
    run(moved)
    assert run(moved) > 0


def test_a_file_that_is_open_for_writing_gets_a_name_of_its_own_each_time(tmp_path: Path, size: None) -> None:
    """A change through a page that was changed before alters no time."""
    path = small_file(tmp_path, "q4_k")
    told(path)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as writable:
        writable[-AT] ^= 1
        first = named(path)
        writable[-AT] ^= 2
        assert named(path) != first
        with GGUFFile.open(path) as opened:
            weights = Weights(opened)
            assert not weights.in_use()
            assert weights.full_hash() is None
        assert not fingerprint._read_known()
    last = named(path)
    assert named(path) == last
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as writable:
        writable[-AT] ^= 4
    assert named(path) != last


def test_state_of_a_file_that_is_open_for_writing_is_not_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = small_file(tmp_path, "q4_k")
    told(path)
    with path.open("r+b"):
        assert [run(path), run(path)] == [0, 0]
    assert [run(path), run(path) > 0] == [0, True]


def test_an_edit_through_a_hard_link_is_seen(tmp_path: Path, size: None) -> None:
    path, link = small_file(tmp_path, "q4_k"), tmp_path / "link.gguf"
    name = named(path)
    link.hardlink_to(path)
    flipped(link)
    assert named(path) == named(link) != name


def test_a_new_file_with_the_inode_and_time_of_a_deleted_one_is_another(tmp_path: Path, size: None) -> None:
    path = small_file(tmp_path, "q4_k")
    data, before, name = bytearray(path.read_bytes()), path.stat(), named(path)
    data[-AT] ^= 1
    for _ in range(20):  # most file systems give the inode away again at once
        path.unlink()
        path.write_bytes(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        if path.stat().st_ino == before.st_ino:
            break
    assert named(path) != name


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("keeps_time", [False, True])
def test_an_edit_while_in_use_is_seen_wherever_the_file_is(
    tmp_path: Path, size: None, moved: bool, keeps_time: bool
) -> None:
    path = small_file(tmp_path, "q4_k")
    with GGUFFile.open(path) as file:
        weights = Weights(file)
        weights.full_hash()
        info = path.stat()
        assert weights.in_use()
        if moved:
            path = path.rename(tmp_path / "moved.gguf")
            assert weights.in_use()
        flipped(path)
        if keeps_time:
            os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
        assert not weights.in_use()
        flipped(path)


def test_a_model_that_is_linked_owned_or_deleted_while_in_use_stays_in_use(tmp_path: Path) -> None:
    path = small_file(tmp_path, "q4_k")
    model = Jamba.load(path)
    assert model.weights.in_use()
    (tmp_path / "link.gguf").hardlink_to(path)
    path.chmod(0o600)
    assert model.weights.in_use()
    path.unlink()
    (tmp_path / "link.gguf").unlink()
    assert model.weights.in_use()


@pytest.mark.parametrize("offset", [-3000.0, -1.0, 1e6])
@pytest.mark.parametrize("coarse", [False, True])
def test_it_waits_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: float, coarse: bool
) -> None:
    """The file's times are a server's, or the clock was set back after the change: ``offset`` seconds from this clock."""
    waited: list[float] = []
    path = tmp_path / "x"
    path.write_bytes(b"x")
    info = path.stat()
    times = [int(info.st_ctime)] * 3 if coarse else [info.st_ctime] * 3
    found = os.stat_result((*info[:7], *[int(t) for t in times], *times, *[int(t * 1e9) + (not coarse) for t in times]))
    monkeypatch.setattr(os, "fstat", lambda fd: found)
    monkeypatch.setattr(time, "time", lambda: info.st_ctime + offset)
    monkeypatch.setattr(time, "sleep", waited.append)
    with path.open("rb") as file:
        assert settled([file.fileno()])
    expected = 0.0 if offset > 3600 else 2.0 if coarse else 0.02
    assert waited == [expected]


def test_a_changed_large_file_is_not_read_before_the_first_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "READ_AT_ONCE", 0)
    path = small_file(tmp_path, "q4_k")
    with GGUFFile.open(path) as file:
        name = Weights(file).full_hash()
    flipped(path)
    read: list[int] = []
    chunk = FileHash._chunk

    def counted(self: FileHash, index: int) -> str:
        read.append(index)
        return chunk(self, index)

    monkeypatch.setattr(FileHash, "_chunk", counted)
    monkeypatch.setattr(Weights, "_read_in_background", lambda self: None)
    with GGUFFile.open(path) as file:
        weights = Weights(file)
        assert not read
        assert weights.full_hash() != name
        assert read


def test_a_file_changed_back_gets_its_name_back_and_sessions_of_either_name_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "READ_AT_ONCE", 0)
    path = small_file(tmp_path, "q4_k")
    names = []
    for i in range(3):
        with GGUFFile.open(path) as file:
            weights = Weights(file)
            names.append(weights.name)
            weights.full_hash()
            assert weights.name == names[-1]
        if i < 2:
            flipped(path)
    assert len(set(names)) == 3
    with GGUFFile.open(path) as file:
        weights = Weights(file)
        assert weights.name == names[0]
        assert [weights.are(name) for name in names] == [True, False, True]


def test_a_killed_reader_leaves_nothing_wrong(tmp_path: Path, own_home: Path) -> None:
    """The process that reads a large file is killed; the next one reads on, and the hash is that of the bytes."""
    path = small_file(tmp_path, "q4_k")
    with path.open("r+b") as file:  # several chunks: the end of a GGUF file may hold anything
        file.truncate(5 * CHUNK + 17)
    program = (
        "import sys, os, signal, threading\n"
        "from pathlib import Path\n"
        "from jambacli.cache import fingerprint, file_hash\n"
        "from jambacli.gguf.reader import GGUFFile\n"
        "fingerprint.READ_AT_ONCE = 0\n"
        "chunk = file_hash.FileHash._chunk\n"
        "def counted(self, i):\n"
        "    if i == 3:\n"
        "        sys.argv[2] == 'kill' and os.kill(os.getpid(), signal.SIGKILL)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return chunk(self, i)\n"
        "file_hash.FileHash._chunk = counted\n"
        "file = GGUFFile.open(Path(sys.argv[1]))\n"
        "weights = fingerprint.Weights(file)\n"
        "weights._thread.join(60)\n"
    )
    environment = {**os.environ, "JAMBA_HOME": str(own_home), "PYTHONPATH": str(REPO)}
    names = set()
    for how in ("kill", "interrupt", "interrupt"):
        subprocess.run(
            [sys.executable, "-c", program, str(path), how], env=environment, capture_output=True, check=False
        )
        (entry,) = fingerprint._read_known().values()
        names.add(entry.name)
        with GGUFFile.open(path) as file:
            assert file.identity in fingerprint._read_known()
    assert len(names) == 1
    with GGUFFile.open(path) as file:
        expected = FileHash([path])
        expected.run_parallel()
        assert Weights(file).full_hash() == expected.hexdigest()


def test_a_full_disk_while_recording_costs_the_record_and_nothing_else(
    tmp_path: Path, own_home: Path, size: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_file(tmp_path, "q4_k")
    name = named(path)
    record = (own_home / "weights.json").read_bytes()
    flipped(path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(Path, "replace", full)
        changed = named(path)
    assert changed != name
    assert (own_home / "weights.json").read_bytes() == record
    assert [p.name for p in own_home.iterdir() if p.suffix == ".part"] == []
    assert named(path) == changed


def test_records_are_readable_by_the_owner_alone(tmp_path: Path, own_home: Path) -> None:
    own_home.mkdir(exist_ok=True)
    earlier = own_home / "fingerprints.json"
    earlier.write_text("{}")
    earlier.chmod(0o644)
    old = os.umask(0)
    try:
        with Jamba.load(small_file(tmp_path, "q8_0", vocabulary=None)).session() as session:
            list(session.complete("the quick", max_tokens=1))
    finally:
        os.umask(old)
    assert [p for p in (earlier, own_home / "weights.json") if p.stat().st_mode & 0o77] == []


def test_descriptors_are_closed_with_the_file(tmp_path: Path) -> None:
    path = small_file(tmp_path, "q8_0")
    opened = GGUFFile.open(path)
    (fd,) = opened.descriptors
    os.fstat(fd)
    opened.close()
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(fd)
    opened = GGUFFile.open(path)
    (fd,) = opened.descriptors
    del opened
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(fd)
