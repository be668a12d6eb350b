"""Temporary files: a killed writer's are found and removed, by the next writer beside them, by `list` and by `cache clear`; a
living writer's never are."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jambacli import files, unfinished
from jambacli.errors import JambaError
from jambacli.files import atomic_write, remove_unfinished
from jambacli.gguf.writer import GGUFWriter
from jambacli.unfinished import TemporaryFile, remove_if_abandoned
from tests.support.cli_runner import jamba

WRITER = """
import sys, time
from pathlib import Path
from jambacli.files import atomic_write
from jambacli.gguf.writer import GGUFWriter
from jambacli.unfinished import TemporaryFile
if sys.argv[2] == "gguf":
    writer = GGUFWriter(Path(sys.argv[1]), force=True)
    writer.plan_tensor("weight", (32, 1024), "F32")
    writer.begin()
else:
    context = atomic_write(Path(sys.argv[1]), recorded=sys.argv[2] == "recorded")
    context.__enter__().write(b"x" * 1000)
print("writing", flush=True)
sys.stdin.read()
"""
KINDS = pytest.mark.parametrize("kind", ["gguf", "recorded", "plain"])


def started(path: Path, kind: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    return process


def killed(path: Path, kind: str) -> Path:
    """The part that a killed writer has left beside ``path``."""
    process = started(path, kind)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return one_part(path.parent)


def one_part(folder: Path) -> Path:
    (part,) = folder.glob(".*.part")
    return part


def write(path: Path) -> None:
    with atomic_write(path) as file:
        file.write(b"new")


@pytest.fixture(autouse=True)
def as_a_new_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAMBA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(unfinished, "_searched", set())


@KINDS
def test_the_next_writer_in_the_folder_removes_what_a_killed_one_left_and_says_so(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    part = killed(tmp_path / "out.gguf", kind)
    size = part.stat().st_size
    with caplog.at_level(logging.INFO, "jambacli"):
        write(tmp_path / "another.txt")
    assert not part.exists()
    (said,) = caplog.messages
    assert said.startswith("removed 1 file that killed processes had left unfinished (")
    assert size > 0 or "(0 " in said


@KINDS
def test_a_living_writers_part_stays_and_becomes_its_file(tmp_path: Path, kind: str) -> None:
    process = started(tmp_path / "out.gguf", kind)
    part = one_part(tmp_path)
    write(tmp_path / "another.txt")
    remove_unfinished()
    assert remove_if_abandoned(part) is None and part.exists()
    process.kill()
    process.communicate()
    assert remove_if_abandoned(part) is not None and not part.exists()


@pytest.mark.parametrize("command", [["list"], ["cache", "clear"]])
def test_list_and_cache_clear_find_parts_of_any_folder(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "elsewhere").mkdir()
    parts = [killed(tmp_path / "elsewhere" / "out.gguf", "gguf")]
    for inside in ("converted", "models/manifests", "sessions"):
        (tmp_path / "home" / inside).mkdir(parents=True)
        parts.append(killed(tmp_path / "home" / inside / "file", "plain"))
    result = jamba(*command)
    assert (
        result.returncode == 0
        and "removed 4 files that killed processes had left unfinished (" in result.stderr.decode()
    )
    assert not [part for part in parts if part.exists()]
    assert not (tmp_path / "home" / "unfinished").exists()
    assert "removed" not in jamba("list").stderr.decode()


def test_list_leaves_a_living_writer_elsewhere_alone_and_finds_it_once_it_is_killed(tmp_path: Path) -> None:
    process = started(tmp_path / "out.gguf", "gguf")
    part = one_part(tmp_path)
    assert "removed" not in jamba("list").stderr.decode() and part.exists()
    process.kill()
    process.communicate()
    assert "removed 1 file" in jamba("list").stderr.decode() and not part.exists()


def test_a_forked_child_keeps_the_part_of_its_parent(tmp_path: Path) -> None:
    part = TemporaryFile(tmp_path / "out")
    os.close(part.open())
    read, hold = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hold)
        os.read(read, 1)
        os._exit(0)
    os.close(part._lock)  # as if this process had been killed
    part._lock = -1
    assert remove_if_abandoned(part.path) is None
    os.close(hold)
    os.waitpid(child, 0)
    assert remove_if_abandoned(part.path) == 0
    os.close(read)


def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("running", "age", "removed"), [(False, 2 * 3600, True), (False, 60, False), (True, 2 * 3600, False)]
)
def test_a_part_of_an_earlier_version_goes_only_when_it_is_old_and_its_process_has_ended(
    tmp_path: Path, running: bool, age: int, removed: bool
) -> None:
    part = tmp_path / f".out.gguf.{os.getpid() if running else gone()}.0123abcd.part"
    part.write_bytes(b"x" * 10)
    os.utime(part, (time.time() - age,) * 2)
    write(tmp_path / "another.txt")
    assert part.exists() is not removed


def test_a_new_part_without_a_lock_goes_though_its_number_is_that_of_a_running_process(tmp_path: Path) -> None:
    part = tmp_path / f".out.gguf.{os.getpid()}.0123456789abcdef.part"
    part.write_bytes(b"x" * 10)
    assert remove_if_abandoned(part) == 10


@pytest.mark.parametrize(
    "name", ["out.gguf.part", "notes.part", ".x.part", ".out.1.0123456789abcdeg.part", ".out.1.0123456789abcdef.part~"]
)
def test_other_files_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    os.utime(tmp_path / name, (0, 0))
    write(tmp_path / "another.txt")
    assert (tmp_path / name).read_bytes() == b"mine"


def test_what_looks_like_a_part_but_is_no_file_stays(tmp_path: Path) -> None:
    names = [f".out.{gone()}.0123456789abcde{digit}.part" for digit in "012"]
    (tmp_path / names[0]).mkdir()
    os.mkfifo(tmp_path / names[1])
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / names[2]).symlink_to(tmp_path / "mine")
    write(tmp_path / "another.txt")
    assert all(os.path.lexists(tmp_path / name) for name in names) and (tmp_path / "mine").exists()


def test_a_writer_whose_part_was_taken_before_its_lock_writes_under_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, taken = unfinished._locked, []

    def late(fd: int) -> bool | None:
        if not taken:
            taken.append(one_part(tmp_path))
            taken[0].unlink()
        return lock(fd)

    monkeypatch.setattr(unfinished, "_locked", late)
    write(tmp_path / "out.txt")
    assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == ["out.txt"] and taken
    assert (tmp_path / "out.txt").read_bytes() == b"new"


def test_a_damaged_record_of_a_part_is_left_out(tmp_path: Path) -> None:
    records = tmp_path / "home" / files._RECORDS
    records.mkdir(parents=True)
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    for name, content in {"a": b"\0", "b": os.fsencode(mine), "c": b"", "d": b"relative", "e": b"\xff" * 5000}.items():
        (records / name).write_bytes(content)
    (records / "folder").mkdir()
    remove_unfinished()
    assert mine.exists()


def test_writing_leaves_no_part_and_no_record(tmp_path: Path) -> None:
    with GGUFWriter(tmp_path / "out.gguf", force=True) as writer:
        writer.add("general.architecture", "jamba")
        writer.begin()
        (record,) = (tmp_path / "home" / files._RECORDS).iterdir()
        assert record.read_bytes() == os.fsencode(one_part(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["out.gguf"]


def test_the_next_large_file_anywhere_removes_what_was_left_elsewhere_and_its_record(tmp_path: Path) -> None:
    elsewhere, records = tmp_path / "elsewhere", tmp_path / "home" / files._RECORDS
    elsewhere.mkdir()
    killed = killed_part(elsewhere)
    records.mkdir(parents=True)
    (records / "0123456789abcdef").write_bytes(os.fsencode(killed))
    with atomic_write(tmp_path / "out", recorded=True) as file:
        file.write(b"new")
        assert not killed.exists()
    assert not records.exists()


def killed_part(folder: Path) -> Path:
    """A temporary file whose writer is gone."""
    path = folder / f".out.{os.getpid()}.{'0' * 16}.part"
    path.write_bytes(b"half")
    return path


def test_on_a_read_only_file_system_the_output_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refused)  # there, removing a file that does not exist fails too
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refused)
        context = atomic_write(tmp_path / "out.txt")
        with pytest.raises(JambaError, match=r"^cannot write .*out\.txt: Read-only file system"):
            context.__enter__()
