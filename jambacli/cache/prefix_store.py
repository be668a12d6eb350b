"""The prefix store on disk: blobs by content hash, prefixes by token hash, a byte budget.

    prefixes/
      lock                              shared while something is written, exclusive while something is evicted
      blobs/ab/abcdef...                keys and values of a segment, a checkpoint, or logits; named by the content's hash
      index/SPACE/POSITION-TOKENHASH    one prefix: the blobs that hold the state after exactly these tokens

A space is one model file with one KV type and mode of decode, so a state is never loaded into another model. Blobs and
prefixes are written under a temporary name and renamed. A prefix with a missing or damaged blob counts as not stored. Over
the budget the least recently used prefixes are removed first, then the blobs that no prefix refers to.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jambacli.cache.ocr_cache import OcrCache
from jambacli.cache.reply_cache import ReplyCache
from jambacli.files import jamba_home, open_regular, private_folder, read_regular, sync_directory
from jambacli.unfinished import TemporaryFile, remove_if_abandoned
from jambacli.units import parse_size

logger = logging.getLogger(__name__)

DEFAULT_BUDGET = 20 * 10**9
_VERSION = 1
_NAME = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Prefix:
    """The blobs that hold the state after ``position`` tokens: a checkpoint, the KV segments, the logits if known.

    ``segments`` cover the tokens in order, ``segment_tokens`` each. The last one may hold fewer tokens, or more than the
    prefix needs. ``chain`` is the hash of the tokens, ``documents`` the hashes of the documents among them. The field names
    are the keys of the files on disk.
    """

    position: int
    chain: str
    checkpoint: str
    segments: list[str]
    segment_tokens: int
    logits: str | None = None
    documents: list[str] = field(default_factory=list)

    @property
    def blobs(self) -> list[str]:
        """The names of all its blobs."""
        return [self.checkpoint, *self.segments, *([self.logits] if self.logits else [])]

    def to_json(self) -> dict[str, Any]:
        """The prefix as a JSON object, read back by ``from_json``."""
        return {"version": _VERSION, **asdict(self)}

    @staticmethod
    def from_json(value: Any) -> Prefix | None:
        """The prefix in a JSON object; None when the object is damaged or of another version."""
        if not isinstance(value, dict) or value.get("version") != _VERSION:
            return None
        try:
            prefix = Prefix(**{k: v for k, v in value.items() if k != "version"})
        except TypeError:
            return None
        if not (isinstance(prefix.segments, list) and isinstance(prefix.documents, list)):
            return None
        named = all(isinstance(n, str) and _NAME.fullmatch(n) for n in [prefix.chain, *prefix.blobs])
        counted = all(type(n) is int and n > 0 for n in (prefix.position, prefix.segment_tokens))
        return prefix if named and counted and all(isinstance(d, str) for d in prefix.documents) else None


def chain_hashes(space: str, tokens: Sequence[int], positions: Sequence[int]) -> dict[int, str]:
    """The hash of ``tokens[:p]`` in a space, for every p in ``positions`` that is not beyond the tokens."""
    data = np.asarray(tokens, dtype="<i4").tobytes()
    hasher = hashlib.blake2b(space.encode(), digest_size=20)
    out, at = {}, 0
    for p in sorted(set(positions)):
        if 0 <= p <= len(tokens):
            hasher.update(data[4 * at : 4 * p])
            out[p], at = hasher.copy().hexdigest(), p
    return out


def blob_name(data: bytes | bytearray | memoryview) -> str:
    """The name of a blob: the first 40 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:40]


def text_hash(text: str) -> str:
    """The hash under which the store records a document's text: 40 hexadecimal digits."""
    return blob_name(text.encode("utf-8", "surrogatepass"))


def budget_from_environment() -> int:
    """The budget in bytes: ``JAMBA_CACHE_BUDGET`` (such as 40G), by default 20 GB."""
    text = os.environ.get("JAMBA_CACHE_BUDGET")
    return parse_size(text, "JAMBA_CACHE_BUDGET") if text else DEFAULT_BUDGET


class PrefixStore:
    """Blobs and prefixes under one directory, shared by any number of processes."""

    def __init__(self, root: Path | None = None, budget: int | None = None) -> None:
        """``root``: by default ``JAMBA_HOME/prefixes``. ``budget``: maximum size of the blobs, in bytes.

        Raises JambaError when the directories cannot be created.
        """
        self.budget = budget_from_environment() if budget is None else budget
        self.root = private_folder(root or jamba_home() / "prefixes", "store", inside=("blobs", "index"))
        self._warned: set[str] = set()
        # Bytes that may be written before the blobs are counted again.
        self._slack = 0

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Prevent evictions between writes that refer to each other."""
        with self._locked(exclusive=False):
            yield

    def put_blob(self, data: bytes | memoryview, name: str, *, durable: bool = True) -> None:
        """Store bytes under their ``blob_name``; a blob that exists is only marked as used. Call it within ``writing``."""
        path = self._blob(name)
        try:
            os.utime(path)
        except FileNotFoundError:
            path.parent.mkdir(exist_ok=True, mode=0o700)
            _write(path, data, durable)
            self._slack -= len(data)

    def sync(self, names: Iterable[str]) -> None:
        """Flush the directories of these blobs, so that durably written ones survive a power cut."""
        for folder in {self._blob(name).parent for name in names}:
            sync_directory(folder)

    def has_blob(self, name: str) -> bool:
        """Whether a blob of that name exists; its content is not checked."""
        return self._blob(name).exists()

    def get_blob(self, name: str) -> bytearray | None:
        """A blob's bytes; None when it is missing or damaged. A damaged one is deleted, with one warning."""
        path = self._blob(name)
        try:
            with open_regular(path) as file:
                data = bytearray(os.fstat(file.fileno()).st_size)
                if file.readinto(data) != len(data):
                    return None
        except OSError:
            return None
        if blob_name(data) != name:
            self._drop_damaged(path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return data

    def put_prefix(self, space: str, prefix: Prefix) -> None:
        """Add a prefix to the index, after its blobs and within the same ``writing``."""
        folder = self.root / "index" / space
        folder.mkdir(exist_ok=True, mode=0o700)
        _write(folder / f"{prefix.position:08d}-{prefix.chain}", json.dumps(prefix.to_json()).encode(), durable=False)

    def find(self, space: str, tokens: Sequence[int], above: int = 0) -> Iterator[Prefix]:
        """The stored prefixes of ``tokens`` that are longer than ``above``, longest first."""
        names: dict[int, set[str]] = {}
        with contextlib.suppress(OSError), os.scandir(self.root / "index" / space) as entries:
            for entry in entries:
                position, _, chain = entry.name.partition("-")
                if position.isdigit() and above < int(position) <= len(tokens):
                    names.setdefault(int(position), set()).add(chain)
        chains = chain_hashes(space, tokens, list(names))
        for at in sorted(names, reverse=True):
            if chains[at] in names[at]:
                prefix = self._read_prefix(self.root / "index" / space / f"{at:08d}-{chains[at]}")
                if prefix is not None:
                    yield prefix

    def drop_prefix(self, space: str, prefix: Prefix) -> None:
        """Remove a prefix from the index."""
        (self.root / "index" / space / f"{prefix.position:08d}-{prefix.chain}").unlink(missing_ok=True)

    def evict(self, keep: Callable[[], set[str]] = set) -> int:
        """Delete the least recently used prefixes until the blobs fit the budget; returns the bytes freed.

        ``keep`` returns the names of blobs that something else (a session) refers to: they are deleted last.
        """
        if self._slack > 0:
            return 0
        total = self._blob_bytes()
        # Other processes write too, so count again before all of the remaining budget is used.
        self._slack = (self.budget - total) // 4
        if total <= self.budget:
            return 0
        target = self.budget - self.budget // 20  # leave some room, so that not every write evicts
        with self._locked(exclusive=True):
            blobs = self._blobs()
            total = before = sum(size for _, size, _ in blobs.values())
            prefixes = sorted(self._prefixes(), key=lambda item: item[1])
            kept = keep()
            count: dict[str, int] = {}
            for _, _, prefix in prefixes:
                for name in prefix.blobs:
                    count[name] = count.get(name, 0) + 1

            def remove(name: str) -> int:
                path, size, _ = blobs.pop(name)
                path.unlink(missing_ok=True)
                return size

            for name in [n for n in blobs if n not in count and n not in kept]:
                total -= remove(name)
            for path, _, prefix in prefixes:
                if total <= target:
                    break
                path.unlink(missing_ok=True)
                for name in set(prefix.blobs):
                    count[name] -= prefix.blobs.count(name)
                    if not count[name] and name in blobs and name not in kept:
                        total -= remove(name)
            for name in sorted(blobs, key=lambda n: blobs[n][2]):
                if total <= target:
                    break
                total -= remove(name)
            return before - total

    def stats(self) -> dict[str, Any]:
        """``path``, ``budget``, ``bytes``; counts of ``blobs``, ``prefixes``, ``models``; ``longest`` prefix in tokens."""
        blobs = self._blobs()
        prefixes = self._prefixes()
        return {
            "path": str(self.root),
            "budget": self.budget,
            "bytes": sum(size for _, size, _ in blobs.values()),
            "blobs": len(blobs),
            "prefixes": len(prefixes),
            "longest": max((p.position for _, _, p in prefixes), default=0),
            "models": len({path.parent.name for path, _, _ in prefixes}),
        }

    def clear(self, documents: str | Iterable[str] | None = None, *, older_than: float = 0.0) -> int:
        """Delete everything, or every prefix and reply made from documents of these hashes; returns the bytes freed.

        ``older_than``: only what was last used over so many seconds ago.
        """
        hashes = [documents] if isinstance(documents, str) else documents
        affected = None if hashes is None else frozenset(hashes)
        latest = time.time() - older_than if older_than else math.inf
        with self._locked(exclusive=True):
            before = self._blob_bytes()
            ReplyCache(self.root).clear(affected, latest)
            if affected is None:
                OcrCache(self.root).clear(latest)
            for path, used, prefix in self._prefixes():
                if used <= latest and (affected is None or not affected.isdisjoint(prefix.documents)):
                    path.unlink(missing_ok=True)
            named = {name for _, _, prefix in self._prefixes() for name in prefix.blobs}
            for name, (path, _, _) in self._blobs().items():
                if name not in named:
                    path.unlink(missing_ok=True)
            return before - self._blob_bytes()

    def _blob(self, name: str) -> Path:
        return self.root / "blobs" / name[:2] / name

    def _blobs(self) -> dict[str, tuple[Path, int, float]]:
        """Path, size and time of last use of every blob. Removes temporary files of killed processes."""
        found: dict[str, tuple[Path, int, float]] = {}
        for folder in (self.root / "blobs").iterdir():
            for entry in folder.iterdir():
                with contextlib.suppress(OSError):
                    info = entry.stat()
                    if entry.name.startswith("."):
                        remove_if_abandoned(entry)
                    else:
                        found[entry.name] = (entry, info.st_size, info.st_mtime)
        return found

    def _blob_bytes(self) -> int:
        return sum(size for _, size, _ in self._blobs().values())

    def _prefixes(self) -> list[tuple[Path, float, Prefix]]:
        found = []
        for folder in (self.root / "index").iterdir():
            for path in folder.iterdir():
                if path.name.startswith("."):
                    remove_if_abandoned(path)
                    continue
                with contextlib.suppress(OSError):
                    used = path.stat().st_mtime
                    prefix = self._read_prefix(path)
                    if prefix is not None:
                        found.append((path, used, prefix))
        return found

    def _read_prefix(self, path: Path) -> Prefix | None:
        try:
            prefix = Prefix.from_json(json.loads(read_regular(path)))
        except OSError:
            return None
        except (ValueError, RecursionError):
            prefix = None
        if prefix is None or path.name != f"{prefix.position:08d}-{prefix.chain}":
            self._drop_damaged(path)
            return None
        return prefix

    def touch(self, space: str, prefix: Prefix) -> None:
        """Mark a prefix as just used."""
        with contextlib.suppress(OSError):
            os.utime(self.root / "index" / space / f"{prefix.position:08d}-{prefix.chain}")

    def _drop_damaged(self, path: Path) -> None:
        if path.name not in self._warned:
            self._warned.add(path.name)
            logger.warning("%s was damaged; it has been deleted and its content will be computed again", path)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, exclusive: bool) -> Iterator[None]:
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with contextlib.suppress(ImportError):  # no fcntl on this platform: there is no locking
                import fcntl

                fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield
        finally:
            os.close(fd)


def _write(path: Path, data: bytes | memoryview, durable: bool) -> None:
    """Write under a temporary name and rename; a killed process leaves the old file, the new one, or a temporary one.

    ``files.atomic_write`` is for a user's files: it flushes the directory and searches it, too slow for every blob.
    """
    part = TemporaryFile(path, search=False)
    try:
        with os.fdopen(part.open(0o600), "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        part.rename()
    finally:
        part.remove()
