"""The files that clients have uploaded: on the disk, for this user alone, within a budget. Their names are never paths."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from jambacli.errors import JambaError
from jambacli.files import atomic_write, jamba_home, private_folder
from jambacli.server.errors import ApiError

logger = logging.getLogger(__name__)

#: The largest file, and all of them together, in bytes; how many there may be.
MAX_FILE, FILES_BUDGET, MOST_FILES = 512 << 20, 4 << 30, 4096
# The longest name that is kept; a partial upload is removed after so many seconds.
_NAME, _STALE = 120, 86_400
_ID = re.compile(r"file-[0-9a-f]{32}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def clean_name(name: str | None, default: str = "document") -> str:
    """What a client calls a file, as one line of printable text: its last component, at most 120 characters with the ending."""
    text = re.split(r"[/\\]", name or "")[-1]
    text = " ".join(_UNPRINTABLE.sub(" ", text).split())
    if text in ("", ".", ".."):
        return default
    if len(text) > _NAME:
        stem, dot, ending = text.rpartition(".")
        short = f"{stem[: _NAME - len(ending) - 1]}.{ending}"
        text = short if dot and stem and len(ending) < 16 else text[:_NAME]
    return text


@dataclass(frozen=True)
class StoredFile:
    """A file that was uploaded. ``created``: seconds since 1970. ``digest``: the SHA-256 of its content, in hex."""

    id: str
    name: str
    size: int
    created: float
    purpose: str
    digest: str


class FileStore:
    """Files in one directory: for each its content and a JSON object about it, found again after a restart."""

    def __init__(
        self,
        *,
        keep: bool = True,
        root: Path | None = None,
        budget: int = FILES_BUDGET,
        largest: int = MAX_FILE,
        most: int = MOST_FILES,
    ) -> None:
        """``keep``: on the disk beyond the end of this process. ``root``: by default below ``jamba_home``. ``budget``: bytes of
        all files, of which the oldest go first; ``largest``: bytes of one; ``most``: how many there may be."""
        self._keep, self._root, self._budget, self.largest, self._most = keep, root, budget, largest, most
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()

    def folder(self) -> Path:
        """The directory, which is made when it is first needed. Raises JambaError when it cannot be."""
        with self._lock:
            if self._root is None and not self._keep:
                self._temporary = tempfile.TemporaryDirectory(prefix="jamba-files-")
                self._root = Path(self._temporary.name)
            root = private_folder(self._root or jamba_home() / "files", "keep files")
            if self._root is None:
                self._root = root
                self._remove_stale(root)
            return root

    def receive(self) -> Upload:
        """A new file, to be written piece by piece."""
        return Upload(self)

    def get(self, name: str) -> StoredFile:
        """The file of that id. Raises ApiError when there is none."""
        if _ID.fullmatch(name):
            with contextlib.suppress(OSError, ValueError, TypeError):
                return StoredFile(**json.loads((self.folder() / f"{name}.json").read_text(encoding="utf-8")))
        raise ApiError(404, f"there is no file {name[:80]!r}", code="file_not_found", parameter="file_id")

    def path(self, file: StoredFile) -> Path:
        """Where its content is."""
        return self.folder() / f"{file.id}.data"

    def all(self) -> list[StoredFile]:
        """Every file, the newest first."""
        found = []
        for path in self.folder().glob("file-*.json"):
            with contextlib.suppress(ApiError):  # removed meanwhile, or not ours
                found.append(self.get(path.stem))
        return sorted(found, key=lambda file: (-file.created, file.id))

    def delete(self, file: StoredFile) -> None:
        """Remove it."""
        for path in (self.folder() / f"{file.id}.json", self.path(file)):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def close(self) -> None:
        """Remove what is not to be kept."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def add(self, part: Path, name: str, purpose: str, size: int, digest: str) -> StoredFile:
        """Take over a file that has been written wholly; the oldest ones go if there is no room. Raises ApiError."""
        file = StoredFile(f"file-{secrets.token_hex(16)}", name, size, time.time(), purpose, digest)
        try:
            part.replace(self.path(file))
            with atomic_write(self.folder() / f"{file.id}.json", private=True) as out:
                out.write(json.dumps(asdict(file)).encode())
        except (OSError, JambaError) as error:
            self.delete(file)
            raise not_stored(error) from error
        files = self.all()
        total, count = sum(one.size for one in files), len(files)
        for oldest in reversed(files):
            if (total <= self._budget and count <= self._most) or oldest.id == file.id:
                break
            why = f"{self._budget >> 20:,} MB" if total > self._budget else f"{self._most:,} of them"
            logger.info("the file %s was removed: there is room for %s", oldest.id, why)
            self.delete(oldest)
            total, count = total - oldest.size, count - 1
        return file

    def _remove_stale(self, root: Path) -> None:
        """Remove what interrupted uploads left behind."""
        for path in (*root.glob("*.part"), *root.glob(".*.part"), *root.glob("file-*.data")):
            with contextlib.suppress(OSError):
                old = path.stat().st_mtime < time.time() - _STALE
                if old and not path.with_suffix(".json").exists():
                    path.unlink()


class Upload:
    """A file while it arrives. Use it in a with block, at the end of which an unfinished one is removed."""

    def __init__(self, store: FileStore) -> None:
        self._store = store
        try:
            handle, name = tempfile.mkstemp(suffix=".part", dir=store.folder())  # for this user alone
        except OSError as error:
            raise not_stored(error) from error
        self._path, self._file = Path(name), os.fdopen(handle, "wb")
        self._hash, self.size = sha256(), 0

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self._path.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Append to it. Raises ApiError when it is too large or the disk is full."""
        self.size += len(data)
        if self.size > self._store.largest:
            limit = self._store.largest
            raise ApiError(413, f"the file is larger than {limit:,} bytes", code="file_too_large", parameter="file")
        self._hash.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise not_stored(error) from error

    def finish(self, name: str | None, purpose: str) -> StoredFile:
        """Keep it. Raises ApiError."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise not_stored(error) from error
        return self._store.add(self._path, clean_name(name), purpose, self.size, self._hash.hexdigest())


def not_stored(error: Exception) -> ApiError:
    """The error of a file that could not be written."""
    reason: Any = getattr(error, "strerror", None) or error
    return ApiError(507, f"the file cannot be stored: {reason}", kind="server_error", code="not_stored")
