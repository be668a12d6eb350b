"""Which relative paths from listings and manifests are safe to write below a directory of the store."""

from __future__ import annotations


def is_safe_path(text: str) -> bool:
    """Whether ``text`` is a plain relative path: no parent directories, no drive, no control characters."""
    return (
        0 < len(text) <= 500
        and text.isprintable()
        and not any(c in text for c in '\\:*?"<>|')
        and all(part.strip(". ") and len(part.encode("utf-8", "replace")) <= 240 for part in text.split("/"))
    )
