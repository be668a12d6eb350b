"""Runs extraction in a separate process, with limits on time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jambacli.documents.extract.pieces import DocumentPart
from jambacli.errors import BadFileError, JambaError
from jambacli.progress import Progress, no_progress

# A page that takes longer than this counts as stuck.
PAGE_SECONDS = 40.0
# The process is replaced after this many files, which returns memory that libraries leak.
_FILES = 100
_GROUPS = hasattr(os, "killpg")
_ROOT = str(Path(__file__).resolve().parents[3])


@dataclass
class Extracted:
    """The text of a file: ``pieces`` in order, numbered by ``unit`` ("page", "line", "sheet" ...), and remarks on it."""

    unit: str
    pieces: list[DocumentPart]
    remarks: tuple[str, ...] = ()


#: The most for the recognition of one page.
OCR_SECONDS = 180.0


@dataclass(frozen=True)
class OcrRequest:
    """Whether and how pages that are pictures are recognized; see ``ocr.Ocr``."""

    choice: str = "off"
    store: str | None = None
    stored: str = ""
    forget: bool = False
    seconds: float = OCR_SECONDS


class Sandbox:
    """One worker process, started on first use and replaced when it fails. Close it, or use it in a with block."""

    def __init__(
        self,
        page_seconds: float = PAGE_SECONDS,
        *,
        ocr: OcrRequest | None = None,
        progress: Progress = no_progress,
        on_piece: Callable[[DocumentPart], None] | None = None,
        on_count: Callable[[int], None] | None = None,
    ) -> None:
        """``ocr``: by default no page is recognized. ``progress``: of the recognition of a document's pages. ``on_piece``:
        called with each piece as it comes. ``on_count``: called with the number of a file's pages where it is known before
        they are read."""
        self.page_seconds, self.ocr, self.progress = page_seconds, ocr or OcrRequest(), progress
        self._on_piece, self._on_count = on_piece, on_count
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._served = 0
        self._folder = ""

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def extract(self, kind: str, path: str, name: str) -> Extracted:
        """The text of a file of ``kind``, one of ``formats.FORMATS``.

        Raises JambaError, naming ``name``, for any problem with the file, even when the process crashes or hangs on it.
        """
        self._ask({"kind": kind, "path": path, "name": name, "ocr": asdict(self.ocr)})
        unit = "page"
        pieces: list[DocumentPart] = []
        with contextlib.ExitStack() as stack:
            return self._collected(name, pieces, unit, stack)

    def picture(self, path: str, name: str, page: int, scale: float, out: Path) -> tuple[int, int]:
        """Draw a page (from 1) of a PDF as a PNG into the file ``out``; returns its width and height in pixels.

        See ``pdf_picture.page_picture``. Raises JambaError, naming ``name``, for any problem with the file.
        """
        self._ask({"path": path, "name": name, "picture": {"page": page, "scale": scale, "out": str(out)}})
        width, height = self._found(name)
        return int(width), int(height)

    def find(self, path: str, name: str, page: int, quote: str) -> list[list[float]]:
        """The boxes of a quote on a page of a PDF; see ``pdf_picture.page_boxes``. Raises JambaError, naming ``name``."""
        self._ask({"path": path, "name": name, "find": {"page": page, "quote": quote}})
        return [list(map(float, box)) for box in self._found(name)]

    def _found(self, name: str) -> Any:
        answer = self._next(name, [])
        if "error" in answer:
            raise JambaError(answer["error"])
        return answer["found"]

    def _ask(self, request: dict[str, Any]) -> None:
        process = self._running()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the process died, which reading its answer will report
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        self._served += 1

    def _collected(self, name: str, pieces: list[DocumentPart], unit: str, stack: contextlib.ExitStack) -> Extracted:
        advance: Callable[[int], None] = lambda n: None  # noqa: E731
        while True:
            answer = self._next(name, pieces)
            if "error" in answer:
                raise JambaError(answer["error"])
            if "done" in answer:
                return Extracted(unit, pieces, tuple(answer["remarks"]))
            if "recognizing" in answer:
                stack.close()  # of an attachment before
                advance = stack.enter_context(self.progress(f"Recognizing {name}", answer["recognizing"], "pages"))
            elif "recognized" in answer:
                if answer["recognized"]:
                    advance(answer["recognized"])
            elif "count" in answer:
                if self._on_count is not None:
                    self._on_count(answer["count"])
            elif "unit" in answer:
                unit = answer["unit"]
            else:
                pieces.append(DocumentPart(answer["text"], answer["first"], answer["last"], answer["label"]))
                if self._on_piece is not None:
                    self._on_piece(pieces[-1])

    def close(self) -> None:
        """End the process and its children."""
        if self._process is not None:
            if _GROUPS:
                with contextlib.suppress(OSError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._process = None
            shutil.rmtree(self._folder, ignore_errors=True)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._served >= _FILES:
            self.close()
        if self._process is None:
            self._served = 0
            answers: queue.Queue[str | None] = queue.Queue()
            self._answers = answers
            # Files within files are unpacked here, so that nothing is left behind when the process is killed.
            self._folder = tempfile.mkdtemp(prefix="jamba-")
            temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), self._folder)
            paths = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
            process = subprocess.Popen(
                # -P: do not import a json.py from the user's directory.
                [sys.executable, "-P", "-m", "jambacli.documents.extract.worker"],
                env={**os.environ, **temporary, "PYTHONPATH": paths},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                errors="surrogatepass",
                process_group=0 if _GROUPS else None,  # so that the programs that it runs end with it
            )
            self._process = process

            def collect() -> None:
                assert process.stdout is not None
                with contextlib.suppress(ValueError, OSError):
                    for line in process.stdout:
                        answers.put(line)
                answers.put(None)

            threading.Thread(target=collect, name="jamba-extract", daemon=True).start()
        return self._process

    def _next(self, name: str, pieces: list[DocumentPart]) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=self.page_seconds)
        except queue.Empty:
            self.close()
            raise BadFileError(
                name,
                f"reading made no progress for {self.page_seconds:.0f} s after {len(pieces):,} pages; "
                "the file is damaged: repair it (qpdf IN OUT) or export it again",
            ) from None
        if line is None:
            self.close()
            raise BadFileError(
                name,
                f"crashed the reader after {len(pieces):,} pages; the file is damaged: repair it or export it again",
            )
        return json.loads(line)
