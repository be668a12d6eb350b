"""Full disks, folders that cannot be written, exhausted descriptors and wrong clocks: one line each, or a warning and the
command goes on; nothing is lost and nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jambacli.session import session_file
from tests.support.checkpoints import make_checkpoint
from tests.support.cli_runner import Done, jamba
from tests.support.limits import limited
from tests.support.repository import REPO
from tests.support.small_models import small_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
_SHORT = ("--max-tokens", "3", "--temp", "0")


class Files:
    """What the commands read."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint = make_checkpoint(folder / "checkpoint")
        self.model = small_file(folder, "f32")
        self.document = folder / "report.txt"
        self.document.write_text("Leila Haddad counted 42 herons at the lake.\n" * 3)
        body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "temperature": 0}
        line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
        self.requests = folder / "in.jsonl"
        self.requests.write_text(json.dumps(line) + "\n")

    def command(self, name: str, out: Path) -> tuple[list[str], bytes | None]:
        """A command line and its input. ``out``: the folder of its output."""
        model = str(self.model)
        return {
            "run": (["run", model, "Hello", *_SHORT], None),
            "chat": (["chat", model, *_SHORT], b"Hello\nMore\n"),
            "session": (["chat", model, "--session", "kept", *_SHORT], b"Hello\nMore\n"),
            "ask": (["ask", str(self.document), "How many herons?", "-m", model, *_SHORT], None),
            "batch": (["batch", str(self.requests), "-m", model, "-o", str(out / "out.jsonl")], None),
            "convert": (["convert", str(self.checkpoint), "-o", str(out / "c.gguf")], None),
            "quantize": (["quantize", model, str(out / "q.gguf"), "--type", "q4_k_m"], None),
        }[name]


NAMES = ("run", "chat", "session", "ask", "batch", "convert", "quantize")
ANSWERING = ("run", "chat", "session", "ask", "batch")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("misfortunes"))


def checked(done: Done, folder: Path) -> list[str]:
    """The lines of a command that went on with a warning or failed with one error line."""
    lines = done.stderr.decode().splitlines()
    assert done.returncode in (0, 1), lines
    assert not [line for line in lines if "internal" in line or "Traceback" in line], lines
    assert len([line for line in lines if line.startswith("error:")]) == (done.returncode == 1), lines
    assert not list(folder.rglob(".*.part")), "something was left behind"
    return lines


@pytest.mark.parametrize("name", NAMES)
def test_no_room_on_the_disk(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A limit of the sizes of files, which a write meets as it meets the end of a disk."""
    monkeypatch.setenv("JAMBA_HOME", str(tmp_path / "home"))
    arguments, given = files.command(name, tmp_path)
    with limited(resource.RLIMIT_FSIZE, 6000):
        done = jamba(*arguments, stdin=given)
    lines = checked(done, tmp_path)
    assert done.returncode == (name not in ANSWERING)
    assert any("File too large" in line for line in lines) or name == "batch"
    if name == "session":  # its state found no room, what was said did
        assert [turn["content"] for turn in session_file.read("kept").turns][::2] == ["Hello", "More"]


@pytest.mark.parametrize("name", NAMES)
def test_a_home_that_cannot_be_written(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    home = tmp_path / "home"
    home.write_text("no folder")
    monkeypatch.setenv("JAMBA_HOME", str(home))
    arguments, given = files.command(name, tmp_path)
    lines = checked(done := jamba(*arguments, stdin=given), tmp_path)
    assert done.returncode == (name == "session")
    warned = [line for line in lines if "set JAMBA_HOME to a folder that can be written to" in line]
    assert len(warned) == (name in ANSWERING), lines


@pytest.mark.parametrize("name", NAMES)
def test_few_descriptors(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("JAMBA_HOME", str(tmp_path / "home"))
    arguments, given = files.command(name, tmp_path)
    assert jamba(*arguments, stdin=given).returncode == 0  # everything is imported
    used = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    free = [n for n in range(used + 1) if not Path(f"/proc/self/fd/{n}").exists()]
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in free]
    try:
        for more in range(3, 15, 2):
            shutil.rmtree(tmp_path, ignore_errors=True)
            tmp_path.mkdir()
            with limited(resource.RLIMIT_NOFILE, used + 1 + more):
                done = jamba(*arguments, stdin=given)
            checked(done, tmp_path)
        assert done.returncode == 0
    finally:
        for descriptor in taken:
            os.close(descriptor)


@pytest.mark.parametrize("now", [1.0, 4_294_967_300.0])
@pytest.mark.parametrize("name", ["session", "ask", "batch", "quantize"])
def test_a_clock_in_1970_or_2106(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, now: float
) -> None:
    monkeypatch.setenv("JAMBA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(time, "time_ns", lambda: int(now * 1e9))
    arguments, given = files.command(name, tmp_path)
    checked(done := jamba(*arguments, stdin=given), tmp_path)
    assert done.returncode == 0
    if name == "session":
        checked(again := jamba(*arguments, stdin=b"Third\n"), tmp_path)
        assert again.returncode == 0
        assert len(session_file.read("kept").turns) == 6
    assert jamba("list").returncode == jamba("sessions", "list").returncode == 0


def _in_process(arguments: list[str], given: bytes | None, home: Path, **more: str) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "jambacli", *arguments],
        input=given or b"",
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(REPO), "JAMBA_HOME": str(home), **more},
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("now", ["@1970-01-02 00:00:00", "@2106-02-07 06:28:20"])
def test_a_process_with_another_clock(files: Files, tmp_path: Path, now: str) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("libfaketime is not installed")
    for name in NAMES:
        arguments, given = files.command(name, tmp_path)
        clock = {"LD_PRELOAD": str(library), "FAKETIME": now}  # monotonic too: else libfaketime breaks sleep
        checked(done := _in_process(arguments, given, tmp_path / "home", **clock), tmp_path)
        assert done.returncode == 0, (name, done.stderr)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[..., None]]:
    """A file system of that size; yields what mounts it again with other options."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting needs root")
    folder.mkdir()

    def mount(*options: str) -> None:
        if subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False).returncode:
            pytest.skip("nothing can be mounted here")

    mount("-t", "tmpfs", "-o", f"size={size}", "none")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["16k", "300k", "8m"])
def test_a_small_disk(files: Files, tmp_path: Path, size: str) -> None:
    with small_disk(tmp_path / "disk", size):
        for name in NAMES:
            arguments, given = files.command(name, tmp_path / "disk")
            checked(done := _in_process(arguments, given, tmp_path / "disk" / "home"), tmp_path)
            if name in ("session", "batch") and size == "16k" and done.returncode:  # what cannot be kept is not said
                assert b"No space left on device" in done.stderr and b"cannot read or write" not in done.stderr
            else:
                assert done.returncode == (name in ("convert", "quantize") and size != "8m"), (name, done.stderr)
            for path in (tmp_path / "disk").glob("*.gguf"):
                path.unlink()


@pytest.mark.slow
def test_a_disk_that_became_read_only(files: Files, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "50m") as mount:
        arguments, given = files.command("session", tmp_path / "disk")
        assert _in_process(arguments, given, tmp_path / "disk" / "home").returncode == 0
        mount("-o", "remount,ro")
        for name in NAMES:
            arguments, given = files.command(name, tmp_path / "disk")
            checked(done := _in_process(arguments, given, tmp_path / "disk" / "home"), tmp_path)
            assert done.returncode == (name not in ("run", "chat", "ask")), done.stderr
