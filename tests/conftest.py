"""Fixtures shared by every test: where the third-party data lies, and a home of its own for each test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import jambacli  # noqa: F401  (before torch: it sets how torch's threads wait)
from tests.support.repository import REPO, SHARED_DATA

# Started in the background by a shell, tests would have programs that Ctrl-C does not reach.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Read when triton is first imported: without a GPU its kernels are interpreted on the CPU.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

#: Modules that take over two seconds on an idle machine: `make test-fast` leaves them out.
LONGER = (REPO / "tests" / "longer_modules.txt").read_text(encoding="utf-8").split()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="Leave out the modules that take over two seconds.")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if config.getoption("--fast") and collection_path.suffix == ".py":
        name = collection_path.relative_to(REPO / "tests").with_suffix("").as_posix()
        return True if name in LONGER else None
    return None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real Jamba tokenizer and templates; skips where it is not beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip("../shared/data (the real Jamba tokenizer and templates) is not here")
    return SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def session_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What fixtures of whole modules load is not the user's last used model either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAMBA_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's own models and sessions."""
    home = tmp_path / "jamba-home"
    monkeypatch.setenv("JAMBA_HOME", str(home))
    return home
