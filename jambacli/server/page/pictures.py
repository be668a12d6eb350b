"""Pages of PDFs as pictures, and where words stand on them: drawn in the reader's process, cached by content."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
import time
from pathlib import Path

from jambacli.documents.extract.sandbox import Sandbox
from jambacli.errors import JambaError
from jambacli.files import private_folder
from jambacli.server.errors import as_api_error

#: The range of scales.
LEAST, MOST = 0.2, 4.0
# Bytes of all pictures; seconds for one; seconds after which an idle process ends.
_BUDGET, _SECONDS, _IDLE = 256 << 20, 20.0, 60.0
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Pictures:
    """Draws pages, one at a time. Its methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        """``folder``: where the pictures are kept."""
        self._folder = folder
        self._lock = threading.Lock()
        self._sandbox: Sandbox | None = None
        self._timer: threading.Timer | None = None

    def picture(self, content: Path, digest: str, name: str, page: int, scale: float) -> bytes:
        """A page (from 1) of a PDF as a PNG. ``scale``: see ``pdf_picture.page_picture``, rounded to steps of a fifth. Raises
        ApiError."""
        steps = round(min(MOST, max(LEAST, scale)) * 5)
        kept = self._of(digest) / f"{page}-{steps}.png"
        with contextlib.suppress(OSError):
            data = kept.read_bytes()
            os.utime(kept)
            return data
        with self._lock:
            part = kept.with_suffix(".part")
            try:
                private_folder(kept.parent, "keep pictures")
                self._opened().picture(str(content), name, page, steps / 5, part)
                part.replace(kept)
                data = kept.read_bytes()
            except (JambaError, OSError) as error:
                raise as_api_error(error if isinstance(error, JambaError) else JambaError(str(error)), 400) from error
            finally:
                part.unlink(missing_ok=True)
            self._make_room()
        return data

    def boxes(self, content: Path, name: str, page: int, quote: str) -> list[list[float]]:
        """The boxes of a quote on a page; see ``pdf_picture.page_boxes``. Raises ApiError."""
        with self._lock:
            try:
                return self._opened().find(str(content), name, page, quote)
            except JambaError as error:
                raise as_api_error(error, 400) from error

    def delete(self, digest: str) -> None:
        """Remove the pictures of a content."""
        shutil.rmtree(self._of(digest), ignore_errors=True)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._close()

    def _of(self, digest: str) -> Path:
        assert _DIGEST.fullmatch(digest)
        return self._folder / digest

    def _opened(self) -> Sandbox:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(_IDLE, self.close)
        self._timer.daemon = True
        self._timer.start()
        if self._sandbox is None:
            self._sandbox = Sandbox(_SECONDS)
        return self._sandbox

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None

    def _make_room(self) -> None:
        """Remove the pictures that were looked at longest ago until all fit the budget."""
        found = []
        for path in self._folder.glob("*/*"):
            with contextlib.suppress(OSError):
                info = path.stat()
                if path.suffix == ".part" and info.st_mtime < time.time() - 3600:
                    path.unlink()
                else:
                    found.append((info.st_mtime, info.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found, key=lambda one: one[0]):
            if total <= _BUDGET:
                break
            path.unlink(missing_ok=True)
            total -= size
