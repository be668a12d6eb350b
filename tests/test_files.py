"""Outputs land where they were meant to, whole, and nothing that is no file is ever replaced by one."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from jambacli.errors import JambaError
from jambacli.files import atomic_write
from jambacli.gguf.writer import GGUFWriter

Write = Callable[[Path], None]


def write_text(path: Path) -> None:
    with atomic_write(path) as file:
        file.write(b"new")


def write_gguf(path: Path) -> None:
    with GGUFWriter(path, force=True) as writer:
        writer.add("general.architecture", "jamba")


WRITERS = pytest.mark.parametrize("write", [write_text, write_gguf])


@WRITERS
def test_a_pipe_stays_a_pipe_even_by_force(tmp_path: Path, write: Write) -> None:
    # A device would do as well, but a test that fails must not cost the machine its /dev/null.
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(JambaError, match="pipe: it is a device or a pipe; give the name of a file"):
        write(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


@WRITERS
@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_leads_to_the_new_file(tmp_path: Path, write: Write, there: bool) -> None:
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / "model.gguf", tmp_path / "link.gguf"
    if there:
        target.write_bytes(b"old")
    link.symlink_to(target)
    write(link)
    assert link.is_symlink() and not target.is_symlink()
    assert target.read_bytes() not in (b"", b"old")
    assert len(list(tmp_path.rglob("*"))) == 3  # the folder, the file, the link: no temporary file stays


@WRITERS
@pytest.mark.parametrize("name", ["n" * 255, "é" * 127])
def test_a_name_as_long_as_a_name_may_be_is_written(tmp_path: Path, write: Write, name: str) -> None:
    write(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]
