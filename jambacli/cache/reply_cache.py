"""Small texts kept between runs beside the stored prefixes (a pass's summary), by key; knows nothing of what they say.

prefixes/notes/KEY.json   {"text", "documents": hashes of the texts it was made from, ...}

They hold what people's documents say, so they are the user's alone and go when the store is cleared.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jambacli.files import atomic_write

_MOST = 4096


class Notes:
    """Notes under the folder of a prefix store."""

    def __init__(self, store: Path) -> None:
        """``store``: the prefix store's root."""
        self.folder = store / "notes"

    def get(self, key: str) -> dict[str, Any] | None:
        """The note of that key, None where there is none (or it is damaged)."""
        try:
            value = json.loads((self.folder / f"{key}.json").read_bytes())
        except (OSError, ValueError):
            return None
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            return None
        with contextlib.suppress(OSError):
            os.utime(self.folder / f"{key}.json")
        return value

    def put(self, key: str, text: str, documents: Sequence[str], **more: Any) -> None:
        """Keep a text; the oldest notes go when there are more than a few thousand. An unwritable folder is no error."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with atomic_write(self.folder / f"{key}.json", durable=False) as file:
                file.write(json.dumps({**more, "text": text, "documents": list(documents)}).encode())
            files = [p for p in self.folder.glob("*.json") if not p.name.startswith(".")]
            for path in sorted(files, key=lambda p: p.stat().st_mtime)[: max(0, len(files) - _MOST)]:
                path.unlink(missing_ok=True)

    def clear(self, documents: Iterable[str] | None = None) -> None:
        """Forget every note, or those made from any of these documents."""
        wanted = None if documents is None else set(documents)
        for path in self.folder.glob("*.json") if self.folder.is_dir() else ():
            note = self.get(path.stem) if wanted is not None else None
            if wanted is None or note is None or wanted & set(note.get("documents", ())):
                path.unlink(missing_ok=True)


def note_key(*parts: Any) -> str:
    """A key for what the parts (anything JSON can hold) lead to."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:40]
