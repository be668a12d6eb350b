"""The files of the page: read once, compressed, named by their content, and never by a path that a client gives."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from starlette.responses import Response

from jambacli.server.errors import not_found

FOLDER = Path(__file__).parents[1] / "static"
#: The kinds of files that are served.
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
    ".md": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
}
#: What a page of this server may do: nothing from elsewhere, no scripts but its files, no HTML made of text, in no frame.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data: blob:",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
#: Headers of everything that the page's routes answer.
SAFE = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
# Smaller files do not get smaller.
_LEAST = 512


@dataclass(frozen=True)
class _File:
    data: bytes
    packed: bytes | None
    etag: str
    changed: int


class StaticFiles:
    """The files below a folder by their names. Its methods may be called from any thread."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._names = {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.suffix in TYPES and path.is_file()
        }
        self._read: dict[str, _File] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """The names of all files."""
        return list(self._names)

    def answer(self, name: str, headers: Mapping[str, str]) -> Response:
        """The answer to a request for a file. Raises ApiError when there is none of that name."""
        path = self._names.get(name)
        if path is None:
            raise not_found(f"there is no {name[:80]!r} here")
        file = self._file(name, path)
        shown = {**SAFE, "etag": file.etag, "cache-control": "no-cache", "vary": "accept, accept-encoding"}
        if file.etag in [tag.strip().removeprefix("W/") for tag in headers.get("if-none-match", "").split(",")]:
            return Response(None, 304, shown)
        data = file.data
        if file.packed is not None and "gzip" in headers.get("accept-encoding", ""):
            data, shown["content-encoding"] = file.packed, "gzip"
        return Response(data, 200, {**shown, "content-type": TYPES[path.suffix]})

    def _file(self, name: str, path: Path) -> _File:
        changed = path.stat().st_mtime_ns
        with self._lock:
            known = self._read.get(name)
            if known is None or known.changed != changed:
                data = path.read_bytes()
                packed = gzip.compress(data, 9, mtime=0) if len(data) >= _LEAST else None
                etag = f'"{sha256(data).hexdigest()[:32]}"'
                known = self._read[name] = _File(data, packed, etag, changed)
            return known
