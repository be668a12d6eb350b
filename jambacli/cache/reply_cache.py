"""Replies stored between runs (such as a part's summary), by a hash of everything they depend on.

    prefixes/notes/KEY.json   {"text", "documents": hashes of the texts it was made from, ...}

A reply repeats the text of the user's documents: only the user can read the files, and clearing the store deletes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jambacli.files import atomic_write, read_regular

#: Maximum number of stored replies; the oldest are deleted first.
_MAX_REPLIES = 4096


class ReplyCache:
    """The replies stored in a prefix store's directory."""

    def __init__(self, store: Path) -> None:
        """``store``: the prefix store's root."""
        self.folder = store / "notes"

    def get(self, key: str) -> dict[str, Any] | None:
        """The entry of that key: "text", "documents" and what ``put`` added; None when missing or damaged."""
        try:
            value = json.loads(read_regular(self.folder / f"{key}.json"))
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            return None
        with contextlib.suppress(OSError):
            os.utime(self.folder / f"{key}.json")
        return value

    def put(self, key: str, text: str, documents: Sequence[str], **more: Any) -> None:
        """Store a reply and the hashes of its documents; ``more`` is added to its entry. OSErrors are ignored."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with atomic_write(self.folder / f"{key}.json", durable=False, private=True) as file:
                file.write(json.dumps({**more, "text": text, "documents": list(documents)}).encode())
            files = [p for p in self.folder.glob("*.json") if not p.name.startswith(".")]
            for path in sorted(files, key=lambda p: p.stat().st_mtime)[: max(0, len(files) - _MAX_REPLIES)]:
                path.unlink(missing_ok=True)

    def clear(self, documents: Iterable[str] | None = None, latest: float = math.inf) -> None:
        """Delete every reply, or those made from any of the documents with these hashes; of these, the ones last used by the
        time ``latest``, in seconds since 1970."""
        affected = None if documents is None else set(documents)
        for path in self.folder.glob("*.json") if self.folder.is_dir() else ():
            if last_used(path) > latest:
                continue
            entry = self.get(path.stem) if affected is not None else None
            if affected is None or entry is None or affected & set(entry.get("documents", ())):
                path.unlink(missing_ok=True)


def last_used(path: Path) -> float:
    """When a stored file was last used, in seconds since 1970; 0 for one that is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def reply_key(*parts: Any) -> str:
    """The key of a reply: a hash of everything it depends on, given as values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:40]
