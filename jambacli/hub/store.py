"""The models on this disk: a manifest a name under JAMBA_HOME/models, the files each refers to; knows nothing of networks.

``manifests/NAME.json`` says what a name is; ``blobs/SET/FILE`` are downloaded files, a SET named by what its files hold,
so that two names of the same bytes share them; files that lie elsewhere (the hub's cache, a path) are only referred to.
A set that no manifest names is an unfinished download. ``locks/`` keeps two processes from writing one set at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jambacli import ui
from jambacli.errors import JambaError
from jambacli.files import atomic_write, jamba_home
from jambacli.hub.paths import sound_path

_SET = re.compile(r"(?:sha256|git|set|made)-[0-9a-f]{40,64}")
_MAX_MANIFEST = 1 << 20
# Kept free beside a download: the file system's own needs, and other programs'.
SPARE_DISK = 64 << 20


@dataclass(frozen=True)
class StoredFile:
    """One file of a model: ``path`` is where it lies if that is outside the store, else None."""

    name: str
    size: int
    sha256: str
    path: str | None = None


@dataclass(frozen=True)
class Entry:
    """A model under one name. ``source`` says where it came from ("kind" hub, ollama, path or made, and its parts)."""

    name: str
    source: dict[str, Any]
    files: tuple[StoredFile, ...]
    set_id: str | None
    quant: str
    context: int
    params: int
    pulled: float

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)


def set_id(digests: Sequence[str]) -> str:
    """The directory name of files with these digests (``sha256:HEX`` or ``git:HEX``), in order."""
    if len(digests) == 1:
        return digests[0].replace(":", "-")
    return "set-" + hashlib.sha256("\n".join(digests).encode()).hexdigest()


class Store:
    """The registry under ``root`` (default: JAMBA_HOME/models). Reading needs no write permission and takes no lock."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or jamba_home() / "models"

    def entries(self) -> list[Entry]:
        """Every registered model, by name; a damaged manifest is left out with a warning."""
        found = []
        for path in self._manifests():
            try:
                found.append(_read(path))
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                ui.warn(f"{path} is damaged and left out; remove it, or pull the model again")
        return sorted(found, key=lambda entry: entry.name)

    def get(self, name: str) -> Entry | None:
        """The model registered under exactly ``name``, None where there is none or its manifest is damaged."""
        try:
            entry = _read(self._manifest(name))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return entry if entry.name == name else None

    def paths(self, entry: Entry) -> list[Path]:
        """Where the entry's files lie, in order."""
        home = self.root / "blobs" / (entry.set_id or "")
        return [Path(file.path) if file.path is not None else home / file.name for file in entry.files]

    def complete(self, entry: Entry) -> bool:
        """Whether every file is there with its size."""
        return all(_size(path) == file.size for path, file in zip(self.paths(entry), entry.files, strict=True))

    def folder(self, set_id: str) -> Path:
        """The directory of one set's files."""
        return self.root / "blobs" / set_id

    def prepare(self) -> None:
        """Make the store's directories; JambaError where it cannot be written to."""
        try:
            for name in ("manifests", "blobs", "locks"):
                (self.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in ("manifests", "blobs", "locks"):
                with tempfile.TemporaryFile(dir=self.root / name):
                    pass
        except OSError as error:
            raise self._unwritable(error) from error

    @contextlib.contextmanager
    def lock(self, key: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold ``key`` against other processes; yields False at once if it is held and ``wait`` is False."""
        from filelock import FileLock, Timeout

        name = key if _SET.fullmatch(key) else hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
        lock = FileLock(self.root / "locks" / f"{name}.lock")
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if not wait:
                    yield False
                    return
                ui.note("another jamba is at these files; waiting for it")
                lock.acquire()
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield True
        finally:
            lock.release()

    def need_disk(self, nbytes: int, what: str) -> None:
        """JambaError when ``nbytes`` more do not fit on the store's disk."""
        from jambacli.units import format_bytes

        free = shutil.disk_usage(self.root).free
        if nbytes and nbytes + SPARE_DISK > free:
            raise JambaError(
                f"{what} needs {format_bytes(nbytes)} more, but the disk of {self.root} has {format_bytes(free)} free; "
                "make room, or set JAMBA_HOME to a larger disk"
            )

    def register(self, entry: Entry) -> None:
        """Write the manifest, in one step; what the name meant before goes, if nothing else refers to it."""
        if not self.complete(entry):
            raise JambaError(f"{entry.name}: its files are not all there; pull it again")
        old = self.get(entry.name)
        with atomic_write(self._manifest(entry.name)) as file:
            file.write(json.dumps({"format": 1, **dataclasses.asdict(entry)}, indent=1).encode())
        if old is not None and old.set_id != entry.set_id:
            self._drop(old.set_id)

    def remove(self, name: str) -> int:
        """Forget ``name``; its files go with the last name that has them. Returns the bytes that came free.

        Files outside the store are never touched. JambaError where the store cannot be written to.
        """
        self.prepare()
        entry = self.get(name)
        try:
            self._manifest(name).unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        return self._drop(entry.set_id) if entry else 0

    def unfinished(self) -> list[tuple[str, int]]:
        """Sets that no manifest names, with their bytes: downloads that were broken off."""
        named = {entry.set_id for entry in self.entries()}
        folders = [f for f in _listing(self.root / "blobs") if _SET.fullmatch(f.name) and f.name not in named]
        return [(folder.name, _bytes_in(folder)) for folder in folders]

    def remove_unfinished(self) -> int:
        """Remove what ``unfinished`` lists, but for what another process is at; returns the bytes that came free."""
        self.prepare()
        return sum(self._drop(name) for name, _ in self.unfinished())

    def used(self) -> dict[str, float]:
        """When each name (or path) was last used, in seconds since 1970."""
        times = self._usage().get("times")
        rows = times.items() if isinstance(times, dict) else ()
        return {k: float(v) for k, v in rows if isinstance(v, (int, float))}

    def last_used(self) -> str | None:
        """The name or absolute path that was used last."""
        last = self._usage().get("last")
        return last if isinstance(last, str) and last else None

    def remember_used(self, name: str) -> None:
        """Note that ``name`` is used now; silently nothing where the store cannot be written to."""
        times = {**self.used(), name: time.time()}
        newest = dict(sorted(times.items(), key=lambda row: -row[1])[:500])
        with contextlib.suppress(OSError, JambaError):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with atomic_write(self.root / "used.json", durable=False) as file:
                file.write(json.dumps({"last": name, "times": newest}).encode())

    def _usage(self) -> dict[str, Any]:
        try:
            with (self.root / "used.json").open("rb") as file:
                stored = json.loads(file.read(_MAX_MANIFEST))
        except (OSError, ValueError, RecursionError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def _drop(self, set_id: str | None) -> int:
        """Remove a set that no manifest names any more; 0 when one does, or when a pull is at it."""
        if set_id is None:
            return 0
        with self.lock(set_id, wait=False) as held:
            folder = self.folder(set_id)
            if not held or any(entry.set_id == set_id for entry in self.entries()) or not folder.is_dir():
                return 0
            freed = _bytes_in(folder)
            shutil.rmtree(folder, ignore_errors=True)
            return freed - (_bytes_in(folder) if folder.exists() else 0)

    def _manifest(self, name: str) -> Path:
        quoted = urllib.parse.quote(name, safe="").replace(".", "%2E")
        if len(quoted) > 180:
            quoted = f"{quoted[:120]}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()}"
        return self.root / "manifests" / f"{quoted}.json"

    def _manifests(self) -> list[Path]:
        return [p for p in _listing(self.root / "manifests") if p.suffix == ".json" and not p.name.startswith(".")]

    def _unwritable(self, error: OSError) -> JambaError:
        return JambaError(
            f"cannot write to the model store {self.root}: {error.strerror or error}; "
            "set JAMBA_HOME to a folder that can be written to"
        )


def _read(path: Path) -> Entry:
    """A manifest, checked: nothing in it may point out of its set's directory. ValueError and kin where it is unsound."""
    with path.open("rb") as file:
        stored = json.loads(file.read(_MAX_MANIFEST))
    files = tuple(StoredFile(f["name"], f["size"], f["sha256"], f["path"]) for f in stored["files"])
    entry = Entry(
        str(stored["name"]),
        dict(stored["source"]),
        files,
        stored["set_id"],
        str(stored["quant"]),
        int(stored["context"]),
        int(stored["params"]),
        float(stored["pulled"]),
    )
    if not files or not entry.name.isprintable() or (entry.set_id is not None and not _SET.fullmatch(entry.set_id)):
        raise ValueError
    for f in files:
        inside = f.path is None and entry.set_id is not None
        sound = sound_path(f.name) if inside else isinstance(f.path, str) and os.path.isabs(f.path)  # noqa: PTH117
        if not sound or not isinstance(f.size, int) or f.size < 0:
            raise ValueError
    return entry


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _bytes_in(folder: Path) -> int:
    return sum(max(0, _size(path)) for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
