"""What lies where on this machine, and how large it is: the user's own, and what can be pulled or computed again."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from jambacli.files import config_home, data_home, jamba_home
from jambacli.session.session_folder import history_place, sessions_folder


@dataclass(frozen=True, kw_only=True)
class StoredPlace:
    """One kind of files. ``yours``: made by the user, and never deleted as a part of a cache. ``size``: in bytes on this
    disk, ``files``: how many."""

    name: str
    path: Path
    size: int
    files: int
    yours: bool = False


def stored_places() -> list[StoredPlace]:
    """Everything that the program keeps, also what is empty. Raises JambaError for a user without a home directory."""
    home, data, config = jamba_home(), data_home(), config_home()
    sessions, history = sessions_folder(), history_place()
    prefixes = home / "prefixes"

    def place(name: str, path: Path, counted: tuple[int, int], yours: bool = False) -> StoredPlace:
        return StoredPlace(name=name, path=path, size=counted[0], files=counted[1], yours=yours)

    def unfinished(path: Path) -> bool:
        return path.name.endswith(".part")

    models = home / "models"
    known = [
        place("sessions", sessions, _size([sessions], lambda p: p.suffix == ".json"), True),
        place("history", history, _size([history]), True),
        place("presets", data / "presets", _size([data / "presets"]), True),
        place("config", config, _size([config / "config.toml", home / "aliases.json"]), True),
        place("files", home / "files", _size([home / "files"]), True),
        place("models", models, _size([models], lambda p: not unfinished(p))),
        place("unfinished", models, _size([models], unfinished)),
        place("converted", home / "converted", _size([home / "converted"])),
        place("prefixes", prefixes, _size([prefixes / "blobs", prefixes / "index"])),
        place("replies", prefixes / "notes", _size([prefixes / "notes"])),
        place("ocr", prefixes / "ocr", _size([prefixes / "ocr"])),
    ]
    beside = ["files", "models", "converted", "prefixes", "sessions", "presets", "config.toml", "aliases.json"]
    rest = [home / name for name in _names(home) if name not in beside]
    return [*known, place("other", home, _size(rest))]


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - only the names
    except OSError:
        return []


def _size(paths: Iterable[Path], wanted: Callable[[Path], bool] = lambda path: True) -> tuple[int, int]:
    """Bytes and number of the wanted regular files in ``paths``, files or folders; links are not followed, and a file with
    several names counts once."""
    total = count = 0
    seen: set[tuple[int, int]] = set()

    def add(path: Path) -> None:
        nonlocal total, count
        with contextlib.suppress(OSError):
            info = path.lstat()
            if stat.S_ISREG(info.st_mode) and wanted(path) and (info.st_dev, info.st_ino) not in seen:
                seen.add((info.st_dev, info.st_ino))
                total, count = total + info.st_size, count + 1

    for path in paths:
        if path.is_dir() and not path.is_symlink():
            for root, _, names in os.walk(path):
                for name in names:
                    add(Path(root, name))
        else:
            add(path)
    return total, count
