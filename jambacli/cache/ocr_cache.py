"""Text of recognized pages, stored between runs, by the content of their file and how they were recognized.

    prefixes/ocr/FILEHASH~LANGUAGES~VERSION.jsonl    a line a page: {"page", "text", "sure"}

It repeats the text of the user's documents: only the user can read the files, and clearing the store deletes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from jambacli.files import read_regular

#: Maximum number of stored files; the oldest are deleted first.
_MAX_FILES = 4096
# Raised when pages are rendered or read in another way.
_REVISION = "1"


@dataclass(frozen=True)
class Recognized:
    """A page's text, and how sure the program is of it, 0 to 100."""

    text: str
    sure: float


@dataclass(frozen=True)
class OcrVariant:
    """How pages are recognized: ``languages`` such as "deu+eng", by which ``version`` of the program."""

    languages: str
    version: str

    @property
    def name(self) -> str:
        """The variant as part of a file's name."""
        return f"{self.languages.replace('/', '.')}~{re.sub(r'[^0-9A-Za-z._-]', '', self.version)}-{_REVISION}"


class OcrCache:
    """The recognized pages stored in a prefix store's directory."""

    def __init__(self, store: Path) -> None:
        """``store``: the prefix store's root."""
        self.folder = store / "ocr"

    def pages(self, digest: str, variant: str) -> dict[int, Recognized]:
        """The stored pages of a file by their number, for a variant's name. Damaged lines count as not stored."""
        found = {}
        path = self._path(digest, variant)
        try:
            lines = read_regular(path).decode("utf-8").split("\n")
        except (OSError, ValueError):
            return {}
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError, OverflowError):
                value = json.loads(line)
                found[int(value["page"])] = Recognized(str(value["text"]), float(value["sure"]))
        with contextlib.suppress(OSError):
            os.utime(path)
        return found

    def add(self, digest: str, variant: str, page: int, found: Recognized) -> None:
        """Store a page. OSErrors are ignored."""
        line = json.dumps({"page": page, "text": found.text, "sure": round(found.sure, 1)})
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = self._path(digest, variant)
            fresh = not path.exists()
            # Whole lines are appended: another process may store pages of the same file, or this one may be killed.
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(handle, b"\n" + line.encode() + b"\n")
            finally:
                os.close(handle)
            if fresh:
                self._evict()

    def variants(self) -> list[str]:
        """The names of all variants that pages of any file are stored of."""
        return sorted({path.stem.split("~", 1)[1] for path in self._files() if "~" in path.stem})

    def forget(self, digest: str, variant: str) -> None:
        """Delete the stored pages of one file."""
        with contextlib.suppress(OSError):
            self._path(digest, variant).unlink(missing_ok=True)

    def clear(self, latest: float = math.inf) -> None:
        """Delete every page, or those of files last used by the time ``latest``, in seconds since 1970."""
        for path in self._files():
            with contextlib.suppress(OSError):
                if path.stat().st_mtime <= latest:
                    path.unlink(missing_ok=True)

    def _path(self, digest: str, variant: str) -> Path:
        return self.folder / f"{digest}~{variant}.jsonl"

    def _files(self) -> list[Path]:
        return list(self.folder.glob("*.jsonl")) if self.folder.is_dir() else []

    def _evict(self) -> None:
        files = sorted(self._files(), key=lambda path: path.stat().st_mtime)
        for path in files[: max(0, len(files) - _MAX_FILES)]:
            path.unlink(missing_ok=True)


def file_digest(path: str | Path) -> str:
    """The hash of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:40]
