"""Pulling a model without questions, and looking at what the store holds afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jambacli.hub.pull import PullOptions, pull
from jambacli.hub.store import Store, StoreEntry


def get(name: str, /, **options: Any) -> StoreEntry:
    """Pull ``name``, whether it fits or not."""
    return pull(name, PullOptions(**options), lambda fit: None)


def file_of(entry: StoreEntry) -> bytes:
    """The bytes of the entry's first file."""
    return Store().paths(entry)[0].read_bytes()


def tree(root: Path) -> set[str]:
    """The regular files below ``root``, without locks."""
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and "locks" not in p.parts}
