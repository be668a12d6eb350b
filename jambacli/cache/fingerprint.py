"""Give every set of weights a name of its own, the fingerprint, so that a stored state is only used with the weights it was
computed with.

The name stands for every byte of the model's files. Reading all of them takes seconds to minutes, so it is done at once for
small files only. A large file goes by its identity (device, inode, size, times of change) at first, while a background
thread reads it; what that hash brings is that a copy, or the same file moved, gets the same name. A file is never known by a
part of its bytes alone: one that looks like a known file is read in full before it gets that file's name. One that was
changed in its place is read in the background too: it gets the old name back, from the next start on, if its bytes are the
same. While another program has a file open for writing, its identity says nothing (``file_state``) and nothing is stored.

    JAMBA_HOME/weights.json      {"version", "files": {IDENTITY: {"name", "sample", "hash", "chunks", "aliases"}}, newest last}
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jambacli.cache.file_hash import FileHash
from jambacli.cache.file_state import settled
from jambacli.errors import JambaError
from jambacli.files import atomic_write, file_identity, jamba_home, read_regular

if TYPE_CHECKING:
    from jambacli.gguf.reader import GGUFFile

logger = logging.getLogger(__name__)

#: Files up to this size are read in full when they are first seen, 0.1 s.
READ_AT_ONCE = 128 << 20
#: Copies up to this size are read in full when they are first seen; larger ones while they are in use.
READ_COPY_AT_ONCE = 8 << 30
_SAMPLE = 4096
_SAMPLES = 8
_KEPT = 200
_VERSION = 1
# How long the end of a process may wait for the hash: a share of the time it ran, and seconds.
_WAIT_SHARE, _WAIT_SECONDS = 0.1, 3.0


@dataclass
class _Known:
    """What is known of a file: its name, the hash of samples of its bytes, that of all of them or the chunks read so far."""

    name: str
    sample: str
    hash: str | None = None
    chunks: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)

    def called(self, name: str) -> bool:
        """Whether ``name`` is, or once was, the name."""
        return name == self.name or name in self.aliases


class Weights:
    """The weights in a model's files, and the name under which their states are stored."""

    def __init__(self, file: GGUFFile) -> None:
        self._paths: list[Path] = list(file.paths)
        self._started = time.monotonic()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._file = file
        # That of the bytes in use. The paths may lead to other files by now.
        self._identity = file.identity
        self._same_bytes: set[str] = {self._identity}
        known = _read_known()
        self._written_to = False
        if (entry := known.get(self._identity)) is None:
            self._written_to = not settled(file.descriptors)
            entry = _unknown() if self._written_to else self._first_seen(file, known)
            if not self._written_to:
                _remember(self._identity, entry)
        self._entry, self._name = entry, entry.name
        if entry.hash is None and not self._written_to:
            self._read_in_background()

    @property
    def name(self) -> str:
        """The fingerprint. It stays the same for these weights as long as ``weights.json`` is kept."""
        return self._name

    def in_use(self) -> bool:
        """Whether the bytes in use are still these weights: False once a file was written to in its place. One that was
        moved, deleted or replaced by another file stays in use as it was."""
        if self._written_to:
            return False
        try:
            infos = [os.fstat(fd) for fd in self._file.descriptors]
        except OSError:  # closed
            return False
        now = "|".join(map(file_identity, infos))
        if now in self._same_bytes:
            return True
        for info, opened in zip(infos, self._identity.split("|"), strict=True):
            if file_identity(info).split(":")[2:4] != opened.split(":")[2:4]:  # another size or time
                return False
        # Only the time of the last change of any kind differs: a new name, owner or link count, or an edit after which the
        # time was set back. Nobody can open a deleted file.
        if any(info.st_nlink for info in infos) and not self._still_hash_to(self._entry.hash):
            return False
        self._same_bytes.add(now)
        return True

    def _still_hash_to(self, expected: str | None) -> bool:
        """Whether the open files' bytes, all read now, have this hash."""
        paths = [Path(f"/proc/self/fd/{fd}") for fd in self._file.descriptors]
        if expected is None or not all(path.exists() for path in paths):
            return False
        with contextlib.suppress(OSError):
            hashed = FileHash(paths)
            hashed.run_parallel()
            return hashed.hexdigest() == expected
        return False

    def are(self, name: str) -> bool:
        """Whether ``name`` stands for these weights. Reads all of the files if only that can tell."""
        if name == self.name:
            return True
        known = [e for e in _read_known().values() if e.called(name) and e.hash is not None]
        # A hash is 40 digits long: the name of weights on another machine. Those of earlier versions are 24 long.
        if not known and len(name) != 40:
            return False
        full = self.full_hash()
        return full is not None and (full == name or any(e.hash == full for e in known))

    def known_names(self) -> list[str]:
        """Every name that stands for these weights, as far as it is known without reading the files."""
        return [self._name, self._entry.name, *self._entry.aliases, *([self._entry.hash] if self._entry.hash else [])]

    def were(self, name: str, path: str, when: float) -> bool:
        """Whether versions before 0.2, which read samples of a file, named these weights so at a time (seconds since 1970)
        since when the file at ``path`` has not changed."""
        if name != self._entry.sample or Path(path).absolute() != self._paths[0].absolute():
            return False
        return all(int(t) < when * 1e9 for part in self._identity.split("|") for t in part.split(":")[3:])

    def full_hash(self) -> str | None:
        """The hash of every byte, read now if it is not known; None for files that cannot be read or have changed."""
        self._stop.set()
        with self._lock, contextlib.suppress(OSError):
            if self._entry.hash is None and not self._written_to:
                hashed = FileHash(self._paths, self._entry.chunks)
                if hashed.identity == self._identity:
                    hashed.run_parallel()
                    self._finish(hashed)
        return self._entry.hash

    def _first_seen(self, file: GGUFFile, known: dict[str, _Known]) -> _Known:
        sample = _sample(file)
        alike = [e for e in known.values() if e.sample == sample and e.hash is not None]
        earlier = _earlier_name(self._identity, sample)
        may_be_copy = alike and not _edited_in_place(self._identity, known)
        full = self._read_at_once(READ_COPY_AT_ONCE if may_be_copy else READ_AT_ONCE)
        if full is not None:
            for entry in alike:
                if entry.hash == full:
                    return _Known(entry.name, sample, full)
        if earlier is not None and all(e.name != earlier for e in known.values()):
            return _Known(earlier, sample, full)
        return _Known(full or hashlib.sha256(f"{sample}|{self._identity}".encode()).hexdigest()[:32], sample, full)

    def _read_at_once(self, limit: int) -> str | None:
        """The hash of files of up to ``limit`` bytes; None for larger ones, or once the paths lead to other bytes."""
        with contextlib.suppress(OSError):
            hashed = FileHash(self._paths)
            if hashed.bytes <= limit and hashed.identity == self._identity:
                hashed.run_parallel()
                return hashed.hexdigest()
        return None

    def _read_in_background(self) -> None:
        """Read all of the files at the lowest priority; at the end of the process keep what is read."""
        with contextlib.suppress(OSError):
            hashed = FileHash(self._paths)
            if hashed.identity != self._identity or hashed.bytes > _memory() * 0.6:
                return  # other files by now; or reading it all would push the weights in use out of memory
            self._thread = threading.Thread(target=self._hash_slowly, name="jamba-weights", daemon=True)
            self._thread.start()
            atexit.register(self._end)

    def _hash_slowly(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        with self._lock, contextlib.suppress(OSError):
            hashed = FileHash(self._paths, self._entry.chunks)
            if hashed.identity != self._identity:
                return
            if hashed.run(self._stop):
                self._finish(hashed)
            elif len(hashed.chunks) > len(self._entry.chunks):
                self._entry.chunks = hashed.chunks
                _remember(self._identity, self._entry)

    def _finish(self, hashed: FileHash) -> None:
        self._entry.hash, self._entry.chunks = hashed.hexdigest(), []
        # The oldest name of these bytes, to which most stored states belong; this process keeps the name that it has used.
        names = [e.name for e in _read_known().values() if e.hash == self._entry.hash and e.name != self._name]
        if names:
            self._entry.name, self._entry.aliases = names[0], [*self._entry.aliases, self._name]
        _remember(self._identity, self._entry)

    def _end(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(min(_WAIT_SECONDS, _WAIT_SHARE * (time.monotonic() - self._started)))
            self._stop.set()
            self._thread.join(1)


def record(path: Path) -> None:
    """Read a new model's files in full, while they are still in memory, so that its first start knows every byte of them.

    Files that are large beside the machine's memory are left to their first use; nor is it an error if it cannot be done.
    """
    from jambacli.gguf.reader import GGUFFile

    with contextlib.suppress(JambaError, OSError), GGUFFile.open(path) as file:
        if sum(part.stat().st_size for part in file.paths) <= _memory() * 0.25:
            Weights(file).full_hash()


def portable_name(name: str, path: Path) -> str:
    """The name of the same weights on every machine, the hash of all their bytes. It is made now if it is not known yet and
    the file at ``path`` still has that name; else it is ``name`` itself."""
    from jambacli.gguf.reader import GGUFFile

    known = next((e.hash for e in _read_known().values() if e.called(name) and e.hash is not None), None)
    if known is not None:
        return known
    with contextlib.suppress(JambaError, OSError), GGUFFile.open(path) as file:
        weights = Weights(file)
        if weights.name == name:
            return weights.full_hash() or name
    return name


def _unknown() -> _Known:
    """A name that stands for nothing that was or will be stored."""
    return _Known(os.urandom(16).hex(), "0")


def _edited_in_place(identity: str, known: Mapping[str, _Known]) -> bool:
    """Whether a known file was the same one (device and inode) with another size or time of its last change."""

    def files(identities: str) -> list[list[str]]:
        return [part.split(":") for part in identities.split("|")]

    mine = files(identity)
    others = (files(key) for key in known)
    return any(
        [part[:2] for part in other] == [part[:2] for part in mine]
        and [part[2:4] for part in other] != [part[2:4] for part in mine]
        for other in others
    )


def _sample(file: GGUFFile) -> str:
    """24 hexadecimal digits of the header's sizes and of samples of each tensor: files that differ here are different."""
    hasher = hashlib.blake2b(digest_size=12)
    for name, info in file.tensors.items():
        hasher.update(f"{name}|{info.shape}|{info.format.name}|{info.nbytes}\n".encode())
        data = file.data(name)
        step = max((len(data) - _SAMPLE) // (_SAMPLES - 1), 1)
        for start in range(0, max(len(data) - _SAMPLE, 0) + 1, step):
            hasher.update(data[start : start + _SAMPLE].tobytes())
    for key in sorted(file.metadata):
        if key.startswith("jamba.") or key in ("general.architecture", "general.file_type"):
            hasher.update(f"{key}={file.metadata[key]}\n".encode())
    return hasher.hexdigest()


def _earlier_name(identity: str, sample: str) -> str | None:
    """The name that versions before 0.2 gave these very files, if they gave it to no other file: ``sample``, or None."""
    path = jamba_home() / "fingerprints.json"
    with contextlib.suppress(OSError):  # those versions let everybody read it
        path.chmod(0o600)
    try:
        values: Any = json.loads(read_regular(path))
        recorded = path.stat().st_mtime_ns
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None

    def unnamed(key: str) -> str:
        return "|".join(":".join(part.rsplit(":", 4)[1:]) for part in key.split("|"))

    parts = [part.rsplit(":", 1) for part in identity.split("|")]
    # Those versions did not look at the time of the last change of any kind, which an edit cannot keep.
    if any(int(changed) > recorded for _, changed in parts):
        return None
    mine = "|".join(part for part, _ in parts)
    files = {unnamed(key) for key, value in values.items() if value == sample}
    return sample if files == {mine} else None


def _read_known() -> dict[str, _Known]:
    """What is known of each file, by identity; nothing where the record is missing or damaged."""
    try:
        value: Any = json.loads(read_regular(_record()))
        if not isinstance(value, dict) or value.get("version") != _VERSION:
            return {}
        return {key: entry for key, found in value["files"].items() if (entry := _valid(found)) is not None}
    except (OSError, ValueError, KeyError, AttributeError, RecursionError):
        return {}


def _valid(value: Any) -> _Known | None:
    try:
        entry = _Known(**value)
    except TypeError:
        return None
    texts = [entry.name, entry.sample, *([] if entry.hash is None else [entry.hash])]
    if not all(isinstance(listed, list) for listed in (entry.chunks, entry.aliases)) or not all(
        isinstance(t, str) and t.isalnum() for t in [*texts, *entry.chunks, *entry.aliases]
    ):
        return None
    return entry


def _remember(identity: str, entry: _Known) -> None:
    """Record a file. Where nothing can be written, the next process finds the same name or reads the file again."""
    path = _record()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = {key: e for key, e in _read_known().items() if key != identity}
        files = [*list(known.items())[1 - _KEPT :], (identity, entry)]
        with atomic_write(path, durable=False, private=True) as out:
            out.write(json.dumps({"version": _VERSION, "files": {k: asdict(e) for k, e in files}}).encode())
    except (JambaError, OSError) as error:
        logger.debug("cannot record the fingerprint: %s", error)


def _record() -> Path:
    return jamba_home() / "weights.json"


def _memory() -> int:
    """The machine's memory in bytes; a large number where it cannot be told."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 1 << 62
