"""AMX is used only where a child process has computed with it: children that crash, are wrong, hang or succeed."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jambacli.kernels import cpu
from jambacli.kernels.cpu import amx_check
from jambacli.kernels.cpu.library import built_library
from quant.native.shared_library import SharedLibrary
from tests.support.isa_levels import runnable_levels

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="AMX is used on Linux only")

NAMES = ("scalar", "avx2", "avxvnni", "avx512", "vnni", "bf16", "amx", "neon", "i8mm")


class Functions:
    """What every library exports, of a processor with AMX."""

    def __init__(self, path: Path, isa: str = "amx") -> None:
        self._name = str(path)
        self.level = NAMES.index(isa)
        self.native_isa_name = self.Function(lambda i: NAMES[i].encode() if i < len(NAMES) else None)
        self.native_status_text = self.Function(lambda _: None)

    class Function:
        def __init__(self, call: object) -> None:
            self.call = call

        def __call__(self, *arguments: object) -> object:
            return self.call(*arguments)  # type: ignore[operator]

    def native_isa(self) -> int:
        return self.level

    def native_best_isa(self) -> int:
        return NAMES.index("amx")

    def native_set_isa(self, index: int) -> int:
        self.level = index if 0 <= index <= NAMES.index("amx") else NAMES.index("amx")
        return self.level


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library's file, with a folder of its own to remember in."""
    monkeypatch.setenv("JAMBA_HOME", str(tmp_path / "home"))
    path = tmp_path / "_kernels.so"
    path.write_bytes(b"a library")
    return path


def child(monkeypatch: pytest.MonkeyPatch, code: str) -> list[int]:
    """Put a child that runs ``code`` in place of the real one; returns a list that gets an entry for each one started."""
    started: list[int] = []

    def command(_: Path) -> list[str]:
        started.append(1)
        return [sys.executable, "-c", f"import os, signal, sys, time; {code}"]

    monkeypatch.setattr(amx_check, "_command", command)
    return started


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("os.kill(os.getpid(), signal.SIGILL)", "was stopped by SIGILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was stopped by SIGSEGV"),
        ("sys.exit(3)", "was wrong"),
        ("signal.setitimer(signal.ITIMER_REAL, 0.1); time.sleep(600)", "took more than 5 s"),
    ],
)
def test_a_failure_stops_at_the_level_below_and_is_found_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: str, problem: str
) -> None:
    started = child(monkeypatch, code)
    for _ in range(2):  # two processes
        lib = SharedLibrary(Functions(path))  # type: ignore[arg-type]
        amx_check.limit(lib)
        assert (lib.isa, lib.best_isa) == ("bf16", "bf16")
        assert [lib.set_isa(name) for name in ("amx", "vnni", "bf16", None)] == ["bf16", "vnni", "bf16", "bf16"]
    assert len(started) == 1
    assert warnings(caplog) == [f"this processor's AMX is not used, since a test product {problem}; using bf16"]


def test_a_child_that_succeeds_is_asked_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started = child(monkeypatch, "sys.exit('JAMBA_CPU_ISA' in os.environ)")
    monkeypatch.setenv("JAMBA_CPU_ISA", "bf16")
    for _ in range(2):
        lib = SharedLibrary(Functions(path, "bf16"))  # type: ignore[arg-type]
        amx_check.limit(lib)
        assert (lib.isa, lib.best_isa) == ("bf16", "amx")
        assert lib.set_isa(None) == "bf16"
    assert len(started) == 1
    assert not warnings(caplog)


def test_another_library_or_a_damaged_file_is_checked_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = child(monkeypatch, "sys.exit(0)")
    amx_check.limit(SharedLibrary(Functions(path)))  # type: ignore[arg-type]
    os.utime(path, ns=(1, 1))
    amx_check.limit(SharedLibrary(Functions(path)))  # type: ignore[arg-type]
    assert len(started) == 2
    file = Path(os.environ["JAMBA_HOME"]) / amx_check.FILE
    assert len(json.loads(file.read_text())) == 2
    file.write_text("[1,")
    amx_check.limit(SharedLibrary(Functions(path)))  # type: ignore[arg-type]
    assert len(started) == 3


@pytest.mark.parametrize("code", ["time.sleep(600)", "sys.exit(1)"])
def test_a_child_that_did_not_try_is_not_remembered(path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(amx_check, "_CHILD_SECONDS", 1)
    started = child(monkeypatch, code)
    for _ in range(2):
        lib = SharedLibrary(Functions(path))  # type: ignore[arg-type]
        amx_check.limit(lib)
        assert lib.isa == "bf16"
    assert len(started) == 2


def test_a_folder_that_cannot_be_written_does_not_matter(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("a file")
    child(monkeypatch, "sys.exit(3)")
    lib = SharedLibrary(Functions(path))  # type: ignore[arg-type]
    amx_check.limit(lib)
    assert lib.isa == "bf16"


@pytest.mark.parametrize("level", runnable_levels(cpu.library()))
def test_products_of_small_integers_are_exact_at_every_level(level: str) -> None:
    lib = built_library()
    lib.set_isa(level)
    try:
        assert amx_check.products_are_right(lib.functions)
    finally:
        lib.set_isa(None)


@pytest.mark.skipif(not cpu.available(), reason="the C++ kernels were not built")
def test_one_wrong_value_is_noticed() -> None:
    product = built_library().functions.prefill_linear

    def wrong(*arguments: ctypes.c_void_p) -> int:
        status = product(*arguments)
        ctypes.cast(arguments[3], ctypes.POINTER(ctypes.c_float))[7] += 1
        return int(status)

    assert not amx_check.products_are_right(SimpleNamespace(prefill_linear=wrong))  # type: ignore[arg-type]


@pytest.mark.skipif(not cpu.available(), reason="the C++ kernels were not built")
def test_the_real_child_computes_with_this_library() -> None:
    library = Path(built_library().functions._name)
    done = subprocess.run(amx_check._command(library), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(amx_check._command(library.with_name("none.so")), capture_output=True, check=False)
    assert done.returncode == 1


def test_only_a_processor_with_amx_is_checked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[SharedLibrary] = []
    monkeypatch.setattr(amx_check, "limit", checked.append)
    lib = SharedLibrary(Functions(path))  # type: ignore[arg-type]
    monkeypatch.setattr(sys.modules[built_library.__module__], "_load", lambda *_: lib)
    cpu.library.__wrapped__()
    assert checked == [lib]
    monkeypatch.setattr(lib.functions, "native_best_isa", lambda: NAMES.index("vnni"))
    cpu.library.__wrapped__()
    assert len(checked) == 1
