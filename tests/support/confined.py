"""Reads documents in the sandbox and watches it: time, memory, sockets, files outside, processes and files left behind."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from jambacli.documents.extract.sandbox import OcrRequest, Sandbox
from jambacli.documents.load import read_file
from jambacli.errors import JambaError

SECRET = "canary-7731"
#: Run by Python before anything else in the worker: a socket ends it, and what it does outside its folder is written down.
_GUARD = """
import ctypes, os, platform, struct, sys

_log = os.open(os.environ["GUARD_LOG"], os.O_WRONLY | os.O_APPEND)
_home = os.path.realpath(os.environ["TMPDIR"])
_CHANGES = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.chmod", "os.truncate")


def _note(*what):
    os.write(_log, (" ".join(map(str, what)) + "\\n").encode("utf-8", "replace"))


def _inside(path):
    path = os.path.realpath(os.fsdecode(path))
    return path == _home or path.startswith(_home + os.sep)


def _hook(event, values):
    if event.startswith("socket.") and event != "socket.gethostname":
        _note(event)
    elif event == "subprocess.Popen" and os.path.basename(os.fsdecode(values[0])) != "tesseract":
        _note(event, values[0])
    elif event in ("os.system", "os.exec", "os.posix_spawn", "ctypes.dlopen/remote"):
        _note(event, values)
    elif event in _CHANGES and (not isinstance(values[-1], int) or values[-1] < 0) and not _inside(values[0]):
        _note(event, values[0])
    elif event == "open" and isinstance(values[0], (str, bytes, os.PathLike)):
        writes = (values[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        path = os.fsdecode(values[0])
        if (writes and path != os.devnull and not _inside(path)) or path.endswith(("secret.txt", "/etc/passwd")):
            _note(event, path)


def _no_sockets():
    machines = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
    found = machines.get(platform.machine())
    if sys.platform != "linux" or found is None:
        return
    # Any socket but one of this machine's own (AF_UNIX), with which the C library asks for users' names.
    one = lambda code, yes, no, value: struct.pack("HBBI", code, yes, no, value)
    rules = one(0x20, 0, 0, 4) + one(0x15, 0, 5, found[0]) + one(0x20, 0, 0, 0) + one(0x15, 0, 3, found[1])
    rules += one(0x20, 0, 0, 16) + one(0x15, 1, 0, 1) + one(0x06, 0, 0, 0x80000000) + one(0x06, 0, 0, 0x7FFF0000)
    held = ctypes.create_string_buffer(rules)
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rules) // 8, ctypes.addressof(held)))
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(38, 1, 0, 0, 0) == 0 and library.prctl(22, 2, program, 0, 0) == 0:
        os.environ["GUARD_SOCKETS"] = "forbidden"


_no_sockets()
sys.addaudithook(_hook)
"""


@dataclass
class Outcome:
    """What came of one file. Times in seconds, memory in bytes. ``noted``: forbidden things that were done."""

    text: str = ""
    error: str = ""
    remarks: tuple[str, ...] = ()
    processor: float = 0.0
    wall: float = 0.0
    worker: int = 0
    parent: int = 0
    noted: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


class Confined:
    """A sandbox below ``folder``."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.outside, self.files, self._home = folder / "outside", folder / "files", folder / "home"
        guard = folder / "guard"
        for path in (self.outside, self.files, self._home, guard):
            path.mkdir()
        (self.outside / "secret.txt").write_text(SECRET)
        (guard / "sitecustomize.py").write_text(_GUARD)
        self._log = folder / "log"
        self._log.touch()
        self.environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(guard), os.environ.get("PYTHONPATH")])),
            "GUARD_LOG": str(self._log),
            "TMPDIR": str(self._home),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self._folder, self._seconds = folder, seconds
        self.sandbox = Sandbox(seconds, ocr=OcrRequest("eng", seconds=seconds))

    def read(self, data: bytes, name: str) -> Outcome:
        """Read a file of these bytes, and look at what it did."""
        path = self.files / name
        path.write_bytes(data)
        del data
        before, began = self._tree(), time.monotonic()
        pid = self._start()
        spent = _processor(pid)
        _forget_peak(pid)
        _forget_peak(os.getpid())
        held = _memory(os.getpid(), "VmRSS")
        found = Outcome()
        try:
            document = read_file(path, self.sandbox, name=name)
            found.text, found.remarks = document.text, document.remarks
            del document
        except JambaError as error:
            found.error = str(error)
        found.wall = time.monotonic() - began
        found.parent = max(0, _memory(os.getpid(), "VmHWM") - held)
        found.processor, found.worker = _processor(pid) - spent, _memory(pid, "VmHWM")
        found.left = [f"a process: {child}" for child in _children(pid)]
        found.noted = self._log.read_text(errors="replace").splitlines()
        self._log.write_text("")
        path.unlink()
        before.discard(path)
        found.left += [str(each) for each in self._tree() ^ before]
        return found

    def close(self) -> list[str]:
        """End the process; what is left of it."""
        process = self.sandbox._process
        self.sandbox.close()
        left = [str(each) for each in self._home.iterdir()]
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 0)
                left.append("a process")
        return left

    def _start(self) -> int:
        """The worker, started with the guard if it does not run."""
        with pytest.MonkeyPatch.context() as patch:
            for key, value in self.environment.items():
                patch.setenv(key, value)
            import tempfile

            patch.setattr(tempfile, "tempdir", str(self._home))
            return self.sandbox._running().pid

    def _tree(self) -> set[Path]:
        """Everything below and beside the folder, but for the worker's own folder itself."""
        own = Path(self.sandbox._folder) if self.sandbox._folder else None
        found = {path for path in self._folder.rglob("*") if path != own}
        return found | set(self._folder.parent.iterdir())


def _children(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []


def _memory(pid: int, key: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) << 10
    return 0


def _forget_peak(pid: int) -> None:
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def _processor(pid: int) -> float:
    """Seconds of processor time of a process and its children that ended."""
    if sys.platform != "linux":
        return 0.0
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def confined(folder: Path, seconds: float) -> Iterator[Confined]:
    """One for a module of tests, closed at its end."""
    one = Confined(folder, seconds)
    try:
        yield one
    finally:
        one.close()
