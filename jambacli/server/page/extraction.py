"""Reads the texts of documents beside all else, two at a time, and counts their tokens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from jambacli.documents.extract.pieces import DocumentPart
from jambacli.documents.extract.sandbox import Sandbox
from jambacli.documents.load import Document, read_file
from jambacli.documents.ocr import ocr_request
from jambacli.errors import JambaError
from jambacli.server.errors import ApiError
from jambacli.server.page.document import DocumentText, LibraryDocument
from jambacli.server.page.library import Library

logger = logging.getLogger(__name__)

_AT_ONCE = 2


@dataclass
class Extracting:
    """How far a document is: ``done`` of ``total`` parts (None: not known) called ``unit``; ``began``: when the first of
    these was begun."""

    done: int = 0
    total: int | None = None
    unit: str = "pages"
    cancelled: bool = False
    began: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float | None:
        """The seconds until it is read, None while that is not known."""
        if not self.total or not self.done:
            return None
        return (self.total - self.done) * (time.monotonic() - self.began) / self.done

    def counted(self, count: int) -> None:
        """The number of pages is known."""
        self.total, self.began = count, time.monotonic()

    def progress(
        self, title: str, total: int | None, unit: str = "pages"
    ) -> AbstractContextManager[Callable[[int], None]]:
        """A Progress: of the recognition of scanned pages."""
        return self._recognizing(total)

    @contextlib.contextmanager
    def _recognizing(self, total: int | None) -> Iterator[Callable[[int], None]]:
        before = self.done, self.total, self.unit, self.began
        self.done, self.total, self.unit, self.began = 0, total, "scanned pages", time.monotonic()

        def advance(n: int) -> None:
            self.done += n

        yield advance
        self.done, self.total, self.unit, self.began = before

    def piece(self, part: DocumentPart) -> None:
        """A part has come."""
        if self.unit == "pages":  # empty pages are pieces too, with their numbers
            self.done = min(self.done + 1, self.total or self.done + 1)
        if self.cancelled:
            raise JambaError("it was removed")


class Extraction:
    """The documents that are being read. For the thread of the event loop."""

    def __init__(self, library: Library, measured: Callable[[LibraryDocument, DocumentText], Awaitable[None]]) -> None:
        """``measured``: called with each document that has been read."""
        self._library, self._measured = library, measured
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._states: dict[str, Extracting] = {}
        self._gate: asyncio.Semaphore | None = None

    def begin(self, document: LibraryDocument) -> None:
        """Read a document, unless that is being done."""
        if document.id not in self._tasks:
            self._states[document.id] = Extracting()
            task = asyncio.ensure_future(self._run(document))
            self._tasks[document.id] = task
            task.add_done_callback(lambda _: self._ended(document.id))

    def resume(self) -> None:
        """Go on with what an earlier process had not finished."""
        for document in self._library.all():
            if document.state == "extracting":
                self.begin(document)

    def progress(self, document: LibraryDocument) -> Extracting | None:
        """How far a document is, None if it is not being read."""
        return self._states.get(document.id)

    async def finished(self, document: LibraryDocument) -> None:
        """Wait until a document has been read, or refused."""
        if document.state == "extracting":
            self.begin(document)
        task = self._tasks.get(document.id)
        if task is not None:
            await asyncio.shield(task)

    def cancel(self, document: LibraryDocument) -> None:
        """Stop reading a document as soon as a part of it comes."""
        state = self._states.get(document.id)
        if state is not None:
            state.cancelled = True

    def _ended(self, name: str) -> None:
        self._tasks.pop(name, None)
        self._states.pop(name, None)

    async def _run(self, document: LibraryDocument) -> None:
        self._gate = self._gate or asyncio.Semaphore(_AT_ONCE)
        async with self._gate:
            state = self._states[document.id]
            if state.cancelled:
                return
            text = await asyncio.to_thread(self._read, document, state)
            if text is not None:
                await self._measured(document, text)
                document.state = "ready"
            with contextlib.suppress(ApiError):
                await asyncio.to_thread(self._library.save, document)

    def _read(self, document: LibraryDocument, state: Extracting) -> DocumentText | None:
        library = self._library
        try:
            request = ocr_request("auto", store=library.keep)
            with Sandbox(ocr=request, progress=state.progress, on_piece=state.piece, on_count=state.counted) as sandbox:
                kind, read = _read_content(library, document, sandbox)
            text = DocumentText.of(read)
            library.keep_text(document, text)
        except Exception as error:
            if not isinstance(error, JambaError | ApiError):
                logger.warning("%s could not be read: %s: %s", document.id, type(error).__name__, error)
            document.state, document.message = "refused", _line(error, document)
            return None
        document.kind, document.unit, document.parts = kind, read.unit, len(read.parts)
        document.characters = sum(len(part.text) for part in read.parts)
        document.remarks = [remark.removeprefix(f"{document.title}: ") for remark in read.remarks][:20]
        return text


def _read_content(library: Library, document: LibraryDocument, sandbox: Sandbox) -> tuple[str, Document]:
    from jambacli.documents.extract.kinds import HEAD, kind_of

    path = library.content(document)
    with path.open("rb") as file:
        kind = kind_of(file.read(HEAD), document.title, path=path)
    return kind, read_file(path, sandbox, name=document.title)


def _line(error: Exception, document: LibraryDocument) -> str:
    """Why a document is refused, in one line."""
    text = error.message if isinstance(error, ApiError) else str(error)
    if not isinstance(error, JambaError | ApiError):
        text = f"{document.title} cannot be read ({type(error).__name__})"
    return " ".join(text.split())[:500]
