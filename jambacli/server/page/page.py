"""The page of a server: its documents, its conversations, and what it says of itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from jambacli import __version__
from jambacli.server.page.conversations import Conversations
from jambacli.server.page.document import LibraryDocument
from jambacli.server.page.extraction import Extraction
from jambacli.server.page.library import MAX_DOCUMENT, Library
from jambacli.server.page.measure import Measure
from jambacli.server.page.presets import presets
from jambacli.server.page.static_files import StaticFiles

if TYPE_CHECKING:
    from jambacli.server.models import Models
    from jambacli.server.upstream import Upstream

#: What does not work in front of another server.
_MISSING = (
    "tokens are counted there: whether a document fits the context is known when it answers",
    "nothing that was read there is kept by this server",
    "the terminal cannot go on with these conversations",
)


class Page:
    """What the routes of the page need."""

    def __init__(self, *, keep: bool = True, library: Library | None = None) -> None:
        """``keep``: documents and conversations outlast the server."""
        self.keep = keep
        self.library = library or Library(keep=keep)
        self.files = StaticFiles()

    def open(self, models: Models | Upstream, system: str | None = None) -> None:
        """Serve these models. ``system``: the system message of conversations that are begun without one."""
        self.models = models
        self.measure = Measure(models, self.library, system)
        self.extraction = Extraction(self.library, self.measure.count)
        self.conversations = Conversations(models, self.library, self.extraction, keep=self.keep, system=system)

    def about(self, document: LibraryDocument) -> dict[str, Any]:
        """A document as the page has it. May be called from any thread."""
        state = self.extraction.progress(document)
        progress = None
        if state is not None:
            progress = {"done": state.done, "total": state.total, "unit": state.unit, "left_s": state.left_s}
        return {
            "id": document.id,
            "name": document.name,
            "kind": document.kind,
            "bytes": document.size,
            "created": document.created,
            "state": document.state,
            "message": document.message,
            "progress": progress if document.state == "extracting" else None,
            "remarks": document.remarks,
            "unit": document.unit,
            "pages": document.parts,
            "pictures": document.kind == "pdf",
            **self.measure.about(document),
        }

    async def state(self) -> dict[str, Any]:
        """GET /v1/page/state."""
        from jambacli.server.models import Models

        here = isinstance(self.models, Models)
        infos = await self.models.infos()
        loaded = [info for info in infos if info.status == "loaded"] or infos
        upstream = None if here else self.models.client.root  # type: ignore[union-attr]
        return {
            "version": __version__,
            "model": loaded[0].name if loaded else None,
            "context": (loaded[0].context or None) if loaded else None,
            "models": [
                {
                    "name": info.name,
                    "loaded": not here or info.status == "loaded",
                    "context": info.context or None,
                    "thinks": info.thinks,
                }
                for info in infos
            ],
            "presets": list(presets()),
            "limits": {"max_file_bytes": MAX_DOCUMENT, "library_bytes": self.library.budget, "max_text": 4_000_000},
            "kept": self.keep,
            "upstream": upstream,
            "missing": [] if here else list(_MISSING),
        }

    def stop(self) -> None:
        """Let the browsers go: their connections would keep the server from stopping."""
        self.conversations.stop_watching()

    def close(self) -> None:
        """Remove what is not to be kept, after the event loop has ended."""
        self.library.close()

    async def started(self) -> None:
        """Go on with what an earlier process had not finished."""
        documents = await asyncio.to_thread(self.library.all)
        if any(document.state == "extracting" for document in documents):
            self.extraction.resume()
