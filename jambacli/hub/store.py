"""The registry of pulled models under JAMBA_HOME/models: one manifest per name, and the files they refer to.

``manifests/NAME.json`` describes a model. ``blobs/SET/FILE`` are downloaded files; a set is named by the digests of its files,
so names with the same bytes share one set. Files elsewhere (the hub's cache, a user's path) are referred to in place.
A set that no manifest refers to is an unfinished download. ``locks/`` keeps two processes from writing one set at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
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

from jambacli.errors import JambaError
from jambacli.files import atomic_write, jamba_home, open_regular
from jambacli.hub.paths import is_safe_path

logger = logging.getLogger(__name__)

_SET = re.compile(r"(?:sha256|git|set|made)-[0-9a-f]{40,64}")
_MAX_MANIFEST = 1 << 20
# What reading a damaged manifest can raise.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
_MOST = 1 << 62
_LATEST = 253402300799  # the end of the year 9999, in seconds since 1970
# Disk space to leave free after a download, for the file system and other programs.
SPARE_DISK = 64 << 20


@dataclass(frozen=True)
class StoredFile:
    """One file of a model. ``path``: its absolute path when it is outside the store, else None."""

    name: str
    size: int
    sha256: str
    path: str | None = None


@dataclass(frozen=True)
class StoreEntry:
    """A registered model.

    ``source``: where it came from: "kind" ("hub", "ollama" or "path") and the fields of that kind. ``set_id``: its set
    below ``blobs/``, None when all its files are outside the store. ``context``: tokens. ``pulled``: seconds since 1970.
    """

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
    """The name of the set of files with these digests (``sha256:HEX`` or ``git:HEX``), in order."""
    if len(digests) == 1:
        return digests[0].replace(":", "-")
    return "set-" + hashlib.sha256("\n".join(digests).encode()).hexdigest()


class Store:
    """The registry at ``root`` (default: JAMBA_HOME/models). Reading needs no write permission and takes no lock."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or jamba_home() / "models"
        self._warned: set[Path] = set()

    def entries(self) -> list[StoreEntry]:
        """All registered models, sorted by name. A damaged manifest is skipped with a warning."""
        found = []
        for path in self._manifests():
            try:
                found.append(_read(path))
            except _DAMAGED:
                if path not in self._warned:
                    logger.warning("%s is damaged and was skipped; remove it, or pull the model again", path)
                self._warned.add(path)
        return sorted(found, key=lambda entry: entry.name)

    def get(self, name: str) -> StoreEntry | None:
        """The model registered under exactly ``name``; None when there is none or its manifest is damaged."""
        try:
            entry = _read(self._manifest(name))
        except _DAMAGED:
            return None
        return entry if entry.name == name else None

    def paths(self, entry: StoreEntry) -> list[Path]:
        """The paths of the entry's files, in order."""
        folder = self.root / "blobs" / (entry.set_id or "")
        return [Path(file.path) if file.path is not None else folder / file.name for file in entry.files]

    def is_complete(self, entry: StoreEntry) -> bool:
        """Whether every file exists and has its registered size."""
        return all(_size(path) == file.size for path, file in zip(self.paths(entry), entry.files, strict=True))

    def folder(self, set_id: str) -> Path:
        """The directory of one set's files."""
        return self.root / "blobs" / set_id

    def prepare(self) -> None:
        """Create the store's directories. Raises JambaError when they are not writable."""
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
        """Lock ``key`` against other processes. Yields False without the lock if another process holds it and ``wait`` is
        False."""
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
                logger.info("another jamba process is using these files; waiting for it")
                lock.acquire()
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield True
        finally:
            lock.release()

    def require_disk_space(self, nbytes: int, what: str) -> None:
        """Raise JambaError when ``nbytes`` more do not fit on the store's disk; ``what`` needs them."""
        from jambacli.units import format_bytes

        free = shutil.disk_usage(self.root).free
        if nbytes and nbytes + SPARE_DISK > free:
            raise JambaError(
                f"{what} needs {format_bytes(nbytes)} more, but the disk of {self.root} has {format_bytes(free)} free; "
                "make room, or set JAMBA_HOME to a larger disk"
            )

    def register(self, entry: StoreEntry) -> None:
        """Write the manifest atomically. Files that the name referred to before are removed if no other name has them."""
        if not self.is_complete(entry):
            raise JambaError(f"{entry.name}: some of its files are missing; pull it again")
        old = self.get(entry.name)
        with atomic_write(self._manifest(entry.name)) as file:
            file.write(json.dumps({"format": 1, **dataclasses.asdict(entry)}, indent=1).encode())
        if old is not None and old.set_id != entry.set_id:
            self._drop(old.set_id)

    def remove(self, name: str) -> int:
        """Unregister ``name`` and remove its files if no other name has them. Returns the number of bytes freed.

        Files outside the store are never touched. Raises JambaError when the store is not writable.
        """
        self.prepare()
        entry = self.get(name)
        try:
            self._manifest(name).unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        return self._drop(entry.set_id) if entry else 0

    def unfinished(self) -> list[tuple[str, int]]:
        """Sets that no manifest refers to, with their bytes: unfinished downloads."""
        named = {entry.set_id for entry in self.entries()}
        folders = [f for f in _listing(self.root / "blobs") if _SET.fullmatch(f.name) and f.name not in named]
        return [(folder.name, _bytes_in(folder)) for folder in folders]

    def remove_unfinished(self) -> int:
        """Remove unfinished downloads, except those in progress in other processes. Returns the number of bytes freed."""
        self.prepare()
        return sum(self._drop(name) for name, _ in self.unfinished())

    def use_times(self) -> dict[str, float]:
        """When each name (or path) was last used, in seconds since 1970."""
        times = self._usage().get("times")
        rows = times.items() if isinstance(times, dict) else ()
        return {k: float(v) for k, v in rows if isinstance(v, (int, float)) and 0 <= v < _LATEST}

    def last_used(self) -> str | None:
        """The name or absolute path that was used last."""
        last = self._usage().get("last")
        return last if isinstance(last, str) and last else None

    def remember_used(self, name: str) -> None:
        """Record that ``name`` is used now. Does nothing when the store is not writable."""
        times = {**self.use_times(), name: time.time()}
        newest = dict(sorted(times.items(), key=lambda row: -row[1])[:500])
        with contextlib.suppress(OSError, JambaError):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with atomic_write(self.root / "used.json", durable=False) as file:
                file.write(json.dumps({"last": name, "times": newest}).encode())

    def _usage(self) -> dict[str, Any]:
        try:
            with open_regular(self.root / "used.json") as file:
                stored = json.loads(file.read(_MAX_MANIFEST))
        except (OSError, ValueError, RecursionError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def _drop(self, set_id: str | None) -> int:
        """Remove a set and return its bytes; 0, and nothing is removed, when a manifest refers to it or a pull holds it."""
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


def discard(folder: Path) -> None:
    """Remove the directory of a set that is not a model."""
    shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path) -> StoreEntry:
    """Read and check a manifest: no file name in it may lead out of its set's directory.

    Raises one of ``_DAMAGED`` when it is damaged.
    """
    with open_regular(path) as file:
        stored = json.loads(file.read(_MAX_MANIFEST))
    files = tuple(StoredFile(f["name"], f["size"], f["sha256"], f["path"]) for f in stored["files"])
    entry = StoreEntry(
        str(stored["name"]),
        dict(stored["source"]),
        files,
        stored["set_id"],
        str(stored["quant"]),
        int(stored["context"]),
        int(stored["params"]),
        float(stored["pulled"]),
    )
    if not (0 <= entry.context < _MOST and 0 <= entry.params < _MOST and 0 <= entry.pulled < _LATEST):
        raise ValueError
    if not files or not entry.name.isprintable() or (entry.set_id is not None and not _SET.fullmatch(entry.set_id)):
        raise ValueError
    for f in files:
        inside = f.path is None and entry.set_id is not None
        valid = is_safe_path(f.name) if inside else isinstance(f.path, str) and os.path.isabs(f.path)  # noqa: PTH117
        if not valid or type(f.size) is not int or not 0 <= f.size < _MOST or not isinstance(f.sha256, str):
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
