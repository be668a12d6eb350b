"""What every route needs: the worker, the model's name, limits, and how a call starts."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from jambacli.engine.options import GenerationOptions
from jambacli.server.documents import DocumentReader
from jambacli.server.errors import ApiError
from jambacli.server.files import FileStore
from jambacli.server.http import parse_json, read_bytes

if TYPE_CHECKING:
    from jambacli.server.request import Call
    from jambacli.server.worker import Running, Worker

logger = logging.getLogger(__name__)

#: The largest body, in bytes.
MAX_BODY = 32 << 20


@dataclass
class Server:
    """What a route needs. ``name``: the model's in answers; ``defaults``: the options of a reply that a body does not set."""

    worker: Worker
    name: str
    defaults: GenerationOptions = field(default_factory=GenerationOptions)
    max_body: int = MAX_BODY
    files: FileStore = field(default_factory=FileStore)
    _other_names: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.documents = DocumentReader(self.files)

    async def body(self, request: Request) -> dict[str, Any]:
        """The request's body as a JSON object. Raises ApiError."""
        data = await read_bytes(request.receive, self.max_body)
        # A large one is parsed beside the loop, which must go on answering others.
        return parse_json(data) if len(data) < 1 << 16 else await asyncio.to_thread(parse_json, data)

    async def start(self, request: Request, call: Call) -> Running:
        """Start a call, unless its client goes away before. Raises ApiError."""
        self.note_name(call.model)
        starting = asyncio.ensure_future(self._started(call))
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait((starting, gone), return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                raise ApiError(400, "the client went away")
            return starting.result()
        finally:
            gone.cancel()
            if not starting.done():
                starting.cancel()

    async def _started(self, call: Call) -> Running:
        return await self.worker.start(await self.documents.attach(call))

    def note_name(self, name: str | None) -> None:
        """Log once for every other name by which the model is called: there is one model, and it answers to any."""
        if name and name != self.name and name not in self._other_names and len(self._other_names) < 64:
            self._other_names.add(name)
            logger.info("a client asks for %s: %s answers", name[:80], self.name)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
