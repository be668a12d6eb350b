"""Sessions of earlier versions leave the cache: nothing is lost or overwritten, wherever the move is interrupted."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jambacli.files import data_home, jamba_home, state_home
from jambacli.session import moved_sessions, session_file
from jambacli.session.lock_file import lock_file
from tests.support.repository import REPO

NAMES = ["a", "b", "c", "שיחה"]


class Places:
    """The old folder with sessions and a history, and the new places."""

    def __init__(self, root: Path) -> None:
        self.old, self.new, self.history = (
            root / "cache" / "sessions",
            root / "data" / "sessions",
            root / "state" / "history",
        )
        self.old.mkdir(parents=True)
        self.new.mkdir(parents=True)
        for i, name in enumerate(NAMES):
            self.write(self.old, name, f"text of {name}")
            os.utime(self.old / f"{name}.json", (1000 + i, 1000 + i))
            (self.old / f"{name}.lock").touch()
        (self.old / ".history").write_text("# then\n+old\n")

    @staticmethod
    def write(folder: Path, name: str, text: str) -> None:
        part = folder / f".{name[:9]}.part"
        part.write_text(text)
        part.replace(folder / f"{name}.json")  # as the program writes: the old bytes stay under another link

    def move(self) -> None:
        """Move as a new process does."""
        moved_sessions._done.clear()
        moved_sessions.move_once(self.old, self.new, self.history)

    def texts(self, folder: Path | None = None) -> dict[str, str]:
        return {p.stem: p.read_text() for p in (folder or self.new).glob("*.json") if not p.name.startswith(".")}


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


EXPECTED = {name: f"text of {name}" for name in NAMES}


@pytest.fixture(params=["one file system", "two file systems"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "two file systems":

        def refused(*_: object, **__: object) -> None:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", refused)
    return str(request.param)


def test_all_is_moved_once_and_said_once(places: Places, system: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "jambacli"):
        places.move()
        places.move()
    assert places.texts() == EXPECTED and places.history.read_text() == "# then\n+old\n"
    assert [int((places.new / f"{n}.json").stat().st_mtime) for n in NAMES] == [1000, 1001, 1002, 1003]
    assert not places.old.exists()
    (record,) = caplog.records
    assert record.getMessage() == (
        f"moved 4 sessions and the history of chats from the cache, {places.old}, to {places.new}"
    )
    assert {p.suffix for p in places.new.iterdir()} == {".json", ".lock"}  # no temporary file
    assert places.history.parent.stat().st_mode & 0o777 == 0o700


def test_a_session_in_both_places_is_kept_under_both(places: Places, caplog: pytest.LogCaptureFixture) -> None:
    places.write(places.new, "a", "another a")
    places.write(places.new, "b", "text of b")  # the same: an earlier move got this far
    places.history.parent.mkdir()
    places.history.write_text("# now\n+new\n")
    places.move()
    assert places.texts() == {**EXPECTED, "a": "another a", "a-2": "text of a"}
    assert places.history.read_text() == "# then\n+old\n# now\n+new\n"
    assert "there are two sessions named 'a': the one from" in caplog.text


def test_a_long_name_stays_a_valid_one(places: Places) -> None:
    for name in ("x" * 64, "\U00020000" * 50):
        places.write(places.old, name, "old")
        places.write(places.new, name, "new")
    places.move()
    for name in places.texts():
        assert session_file.check_name(name) == name
    assert sorted(places.texts().values()).count("old") == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this platform")
def test_a_kill_at_any_moment_loses_nothing(places: Places, system: str) -> None:
    calls = ["link", "unlink", "rename", "replace", "fsync", "open", "rmdir"]

    def killed_after(steps: int) -> bool:
        """Move in a process that is killed before its call to the system of that number; whether it was."""
        child = os.fork()
        if child:
            return os.waitpid(child, 0)[1] != 0
        left = steps

        def counted(call: Callable[..., object]) -> Callable[..., object]:
            def wrapped(*values: object, **named: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(1)
                return call(*values, **named)

            return wrapped

        for name in calls:
            setattr(os, name, counted(getattr(os, name)))
        try:
            places.move()
        finally:
            os._exit(0)

    steps = 0
    while killed_after(steps % 17):  # from the start, again and again: each kill leaves another half
        here, there = places.texts(places.old), places.texts()
        assert {**here, **there} == EXPECTED
        assert all(here.get(name, text) == text for name, text in there.items())
        if not places.old.exists():
            break
        steps += 1
        assert steps < 200
    places.move()
    assert places.texts() == EXPECTED and "+old" in places.history.read_text() and not places.old.exists()
    assert steps > 5  # else this shows nothing


def test_an_old_place_that_cannot_be_written_to_is_copied_once(
    places: Places, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unlink = Path.unlink

    def refused(path: Path, missing_ok: bool = False) -> None:
        if path.is_relative_to(places.old):
            raise PermissionError(errno.EROFS, "Read-only file system", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refused)
    with caplog.at_level(logging.INFO, "jambacli"):
        places.move()
    assert places.texts() == EXPECTED and "the old files cannot be removed and stay" in caplog.text
    caplog.clear()
    (places.new / "a.json").unlink()  # the user removes one and goes on with another
    places.write(places.new, "b", "longer text of b")
    with caplog.at_level(logging.INFO, "jambacli"):
        places.move()
    assert places.texts() == {**{n: t for n, t in EXPECTED.items() if n != "a"}, "b": "longer text of b"}
    assert places.history.read_text() == "# then\n+old\n" and not caplog.records
    places.write(places.old, "c", "an earlier version went on with c")
    places.move()
    assert places.texts()["c-2"] == "an earlier version went on with c"


def test_a_session_that_is_open_in_an_earlier_version_is_moved_later(
    places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    code = "import sys, pathlib; from jambacli.session.lock_file import lock_file as f; "
    code += f"l = f(pathlib.Path({str(places.old / 'b.lock')!r})); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdin is not None
        other.stdout.readline()
        with caplog.at_level(logging.INFO, "jambacli"):
            places.move()
        assert sorted(places.texts()) == sorted(set(NAMES) - {"b"}) and sorted(places.texts(places.old)) == ["b"]
        assert f"'b' is open in an earlier version of this program ({other.pid})" in caplog.text
        other.stdin.close()
    places.move()
    assert places.texts() == EXPECTED


def test_a_name_that_a_chat_is_about_to_use_is_left_to_it(places: Places) -> None:
    with lock_file(places.new / "a.lock"):
        places.move()
        places.write(places.new, "a", "the new chat")
    assert places.texts() == {**EXPECTED, "a": "the new chat", "a-2": "text of a"}


def test_links_stay_links(places: Places, tmp_path: Path) -> None:
    places.write(tmp_path, "real", "linked text")
    (places.old / "link.json").symlink_to(Path("..") / ".." / "real.json")
    places.move()
    moved = places.new / "link.json"
    assert moved.is_symlink() and moved.read_text() == "linked text" and not places.old.exists()
    elsewhere, again = tmp_path / "elsewhere", tmp_path / "again"
    elsewhere.mkdir()
    places.old.symlink_to(elsewhere)
    moved_sessions.keep_link(places.old, again)
    assert again.resolve() == elsewhere and not places.old.is_symlink()


def test_what_is_no_session_stays(places: Places) -> None:
    os.mkfifo(places.old / "pipe.json")
    (places.old / "note.txt").write_text("mine")
    places.move()
    assert sorted(p.name for p in places.old.iterdir()) == ["note.txt", "pipe.json"] and places.texts() == EXPECTED


def test_the_home_of_everything_stays_one_folder(own_home: Path) -> None:
    assert data_home() == state_home() == jamba_home() == own_home
    assert session_file.sessions_folder() == own_home / "sessions"
    assert session_file.history_path() == own_home / "sessions" / ".history"


def _environment(home: Path) -> dict[str, str]:
    left = {k: v for k, v in os.environ.items() if k != "JAMBA_HOME" and not k.startswith("XDG_")}
    return {**left, "HOME": str(home), "PYTHONPATH": str(REPO)}


@pytest.mark.skipif(sys.platform != "linux", reason="the folders are those of Linux")
def test_two_processes_at_once_find_what_an_earlier_version_saved(tmp_path: Path) -> None:
    old = tmp_path / ".cache" / "jamba" / "sessions"
    old.mkdir(parents=True)
    for i in range(200):
        saved = session_file.SavedSession(f"s{i}", "small", "/m", "f" * 24, "f16", 512, 1, 1)
        (old / f"s{i}.json").write_bytes(session_file.to_json(saved))
    command = [sys.executable, "-m", "jambacli", "sessions", "list", "--json"]
    started = [
        subprocess.Popen(command, env=_environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    told = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    for out, _ in told:
        assert len(json.loads(out)) == 200
    said = b"".join(err for _, err in told).decode().splitlines()
    new = tmp_path / ".local" / "share" / "jamba" / "sessions"
    assert said == [f"moved 200 sessions from the cache, {old}, to {new}"]
    assert len(list(new.glob("*.json"))) == 200 and not old.exists()
