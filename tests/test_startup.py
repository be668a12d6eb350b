"""Starting quicker changes nothing else: what happens where a library is damaged, a thread refused, Ctrl-C pressed."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jambacli.startup import importing, load_torch_ahead
from tests.commands.cli_runner import jamba

LIBRARIES = ("libtorch_cpu.so", "libtorch_python.so", "libtorch_global_deps.so")


def _run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *(("-c", code) if code else ()), *arguments],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture
def torch_package(tmp_path: Path) -> Path:
    """A package named torch that no one can import, with libraries that no one can load."""
    package = tmp_path / "packages" / "torch"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('this torch is damaged')\n")
    for name in LIBRARIES:
        (package / "lib" / name).write_bytes(b"\x7fELF and nothing more")
    return package


def test_garbage_is_collected_again_after_importing() -> None:
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_only_a_process_of_the_command_keeps_its_objects_for_good() -> None:
    code = (
        "import gc\nfrom jambacli import startup\n"
        "with startup.importing(): pass\nassert not gc.get_freeze_count()\n"
        "startup.own_process()\nwith startup.importing(): pass\nassert gc.get_freeze_count() > 1000"
    )
    done = _run(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="libraries are loaded ahead on Linux alone")
def test_torch_works_as_ever_after_its_library_was_loaded_ahead() -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom jambacli import startup\n"
        "os.sched_getaffinity = lambda pid: {0, 1}\n"
        "thread = startup.load_torch_ahead(lambda: __import__('colorsys'))\n"
        "if thread is None: sys.exit(77)\n"
        "thread.join()\nassert 'torch' not in sys.modules and 'colorsys' in sys.modules\n"
        "assert 'libtorch_cpu.so' in Path('/proc/self/maps').read_text()\n"
        "import torch\nassert (torch.ones(40, 40) @ torch.ones(40, 40)).sum() == 64000\n"
        "assert startup.load_torch_ahead(sys.exit) is None"
    )
    done = _run(code)
    if done.returncode == 77:
        pytest.skip("this torch brings a card's libraries")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="libraries are loaded ahead on Linux alone")
def test_a_damaged_torch_is_reported_as_if_nothing_was_loaded_ahead(torch_package: Path) -> None:
    path = os.pathsep.join([str(torch_package.parent), *sys.path])
    code = (
        "import os, sys\nos.sched_getaffinity = lambda pid: set(range(CORES))\n"
        "sys.argv = ['jamba', 'run', 'hello', '-n', '1', '--no-store']\n"
        "from jambacli.__main__ import main\nmain()"
    )
    done = [_run(code.replace("CORES", cores), PYTHONPATH=path) for cores in ("1", "2")]
    assert [d.returncode for d in done] == [1, 1]
    assert done[0].stdout == done[1].stdout == ""
    assert done[0].stderr == done[1].stderr
    assert done[0].stderr.splitlines()[-1].startswith("error: internal: ImportError: this torch is damaged")


@pytest.mark.skipif(sys.platform != "linux", reason="libraries are loaded ahead on Linux alone")
@pytest.mark.parametrize("core", ["a core alone", "a card", "no library", "no torch", "no more threads"])
def test_nothing_is_loaded_ahead_without_a_core_a_plain_torch_or_a_thread(
    torch_package: Path, monkeypatch: pytest.MonkeyPatch, core: str
) -> None:
    for name in [n for n in sys.modules if n == "torch" or n.startswith("torch.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(torch_package.parent)])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0} if core == "a core alone" else {0, 1}, raising=False)
    if core == "a card":
        (torch_package / "lib" / "libtorch_cuda.so").touch()
    elif core == "no library":
        for name in LIBRARIES:
            (torch_package / "lib" / name).unlink()
    elif core == "no torch":
        monkeypatch.setattr(sys, "path", [])
    elif core == "no more threads":

        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
    assert load_torch_ahead(lambda: None) is None


def test_ctrl_c_while_torch_is_imported_is_one_line(torch_package: Path) -> None:
    (torch_package / "__init__.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    path = os.pathsep.join([str(torch_package.parent), *sys.path])
    done = _run("", "-m", "jambacli", "-q", "run", "hello", "--no-store", PYTHONPATH=path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_the_command_that_is_called_is_the_only_one_that_is_read() -> None:
    code = (
        "import sys\nfrom jambacli import cli\nsys.argv = ['jamba', '-q', 'cache', 'stats']\n"
        "try: cli.main()\nexcept SystemExit as leaving: assert not leaving.code\n"
        "print([n for n in cli.COMMANDS if f'jambacli.commands.{n}' in sys.modules])"
    )
    assert _run(code).stdout.splitlines()[-1] == "['cache']"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help", "run"], 0, "quantize"),
        (["-q", "--help"], 0, "quantize"),
        (["--quiet", "run", "--help"], 0, "--top-p"),
        (["runn"], 2, "runn"),
        (["--no-such-option", "run"], 2, "--no-such-option"),
        ([], 2, "quantize"),
    ],
)
def test_help_and_mistakes_know_every_command(arguments: list[str], code: int, words: str) -> None:
    done = jamba(*arguments)
    assert done.returncode == code
    assert words in (done.stdout + done.stderr).decode()
