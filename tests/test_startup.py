"""Starting quicker changes nothing else: garbage is still collected, errors and Ctrl-C are one line, help is whole."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jambacli.startup import importing
from tests.support.cli_runner import jamba


def _run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *(("-c", code) if code else ()), *arguments],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture
def torch_package(tmp_path: Path) -> Path:
    """A package named torch that no one can import."""
    package = tmp_path / "packages" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('this torch is damaged')\n")
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


def test_a_torch_that_cannot_be_imported_is_one_line(torch_package: Path) -> None:
    path = os.pathsep.join([str(torch_package.parent), *sys.path])
    done = _run("", "-m", "jambacli", "-q", "run", "hello", "--no-store", PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: internal: ImportError: this torch is damaged")
    assert done.stderr.count("\n") == 1


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


_IN_A_FINALIZER = """
import os, signal, sys, time, weakref
from jambacli.startup import own_process, signals_raise
own_process()
signals_raise()
class Thing:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        for _ in range(1000): pass
try:
    Thing()
    time.sleep(60)
    print("lost")
except BaseException as error:
    print(type(error).__name__, getattr(error, "code", ""))
"""


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize(("name", "raised"), [("SIGTERM", "SystemExit 143"), ("SIGINT", "KeyboardInterrupt")])
def test_a_signal_within_a_finalizer_is_not_lost(name: str, raised: str) -> None:
    done = _run(_IN_A_FINALIZER.replace("{name}", name))
    assert done.stdout.strip() == raised and done.stderr == ""
