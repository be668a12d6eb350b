"""The tokens of documents: how many they are, how many of them are in the store, and how long the others take to read."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from jambacli.cache.prefix_store import PrefixStore
from jambacli.engine.prefix_cache import spaces_of
from jambacli.errors import JambaError
from jambacli.files import atomic_write
from jambacli.server.errors import ApiError
from jambacli.server.page.document import DocumentText, LibraryDocument
from jambacli.server.page.library import Library
from jambacli.session.conversation import Conversation

if TYPE_CHECKING:
    from jambacli.server.models import Models
    from jambacli.server.upstream import Upstream
    from jambacli.server.worker import Worker

logger = logging.getLogger(__name__)

#: Tokens that a question and its reply take besides the documents.
REPLY_ROOM = 512
# Characters of a token, where no tokenizer is here.
_CHARACTERS = 4


class Measure:
    """Measures documents by the first model that is loaded."""

    def __init__(self, models: Models | Upstream, library: Library, system: str | None = None) -> None:
        """``system``: the system message with which conversations begin."""
        self._models, self._library, self._system = models, library, system
        self._stored: dict[str, tuple[int, int]] = {}

    @property
    def worker(self) -> Worker | None:
        """The worker of the first model that is loaded."""
        from jambacli.server.models import Models

        if not isinstance(self._models, Models):
            return None
        return next((m.worker for m in self._models.known() if m.worker is not None and not m.leaving), None)

    async def count(self, document: LibraryDocument, text: DocumentText) -> None:
        """Count the tokens of a document, and keep them to find stored prefixes."""
        worker = self.worker
        if worker is None or worker.model.template is None or worker.model.name in document.tokens:
            return
        try:
            ids = await worker.prepare(functools.partial(_document_ids, worker.model, text, self._system))
            document.tokens[worker.model.name] = len(ids)
            await asyncio.to_thread(self._keep, document, ids)
        except (JambaError, ApiError) as error:
            logger.info("the tokens of %s are not known: %s", document.id, error)

    def _keep(self, document: LibraryDocument, ids: list[int]) -> None:
        with contextlib.suppress(JambaError), atomic_write(self._library.ids_path(document), private=True) as file:
            file.write(np.asarray(ids, dtype="<i4").tobytes())

    def about(self, document: LibraryDocument) -> dict[str, Any]:
        """What is known of a document's tokens, as the page has it. May be called from any thread."""
        worker = self.worker
        if worker is None:
            estimate = document.characters // _CHARACTERS if document.state == "ready" else None
            return {
                "tokens": None,
                "tokens_about": estimate,
                "read": {"tokens_stored": 0},
                "fits": None,
                "estimate_s": None,
            }
        tokens = document.tokens.get(worker.model.name)
        if tokens is None:
            return {"tokens": None, "read": {"tokens_stored": 0}, "fits": None, "estimate_s": None}
        stored = self._known(document, worker)
        rate = reading_rate(worker)
        room = worker.ctx - min(REPLY_ROOM, worker.ctx // 4)
        return {
            "tokens": tokens,
            "read": {"tokens_stored": stored},
            "fits": tokens <= room,
            "estimate_s": round((tokens - stored) / rate, 1) if rate else None,
        }

    def _known(self, document: LibraryDocument, worker: Worker) -> int:
        """How many of the document's first tokens are in the store."""
        if not worker.stores:
            return 0
        try:
            store = PrefixStore()
            space = spaces_of(worker.model.fingerprint, worker.kv_type, worker.model.model.precise)[0]
            changed = (store.root / "index" / space).stat().st_mtime_ns
            known = self._stored.get(document.id)
            if known is None or known[0] != changed:
                ids = np.fromfile(self._library.ids_path(document), dtype="<i4").tolist()
                found = next(store.find(space, ids), None)
                known = self._stored[document.id] = changed, found.position if found is not None else 0
            return known[1]
        except (JambaError, OSError, ValueError):
            return 0


def _document_ids(model: Any, text: DocumentText, system: str | None) -> list[int]:
    """The tokens with which a conversation about a document alone begins."""
    conversation = Conversation(model.template, model.tokenizer, system)
    conversation.add_user("?", [entry.as_document() for entry in text.entries])
    rendered = conversation.render()
    return rendered.ids[: rendered.documents_end or len(rendered.ids)]


def reading_rate(worker: Worker) -> float | None:
    """Tokens that are read a second, as measured so far; None before anything was read."""
    read = worker.counts["prompt_tokens"] - worker.counts["cached_tokens"]
    seconds = worker.seconds["prefill"]
    return read / seconds if read > 0 and seconds > 0 else None
