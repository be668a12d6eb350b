"""What every route needs: the models or the server behind this one, limits, and how a call starts."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request

from jambacli.engine.options import GenerationOptions
from jambacli.server.documents import DocumentReader
from jambacli.server.errors import ApiError
from jambacli.server.files import FileStore
from jambacli.server.http import BodyRoom, parse_json, read_bytes
from jambacli.server.request import Message

if TYPE_CHECKING:
    from jambacli.server.events import Running
    from jambacli.server.models import Models
    from jambacli.server.request import Call
    from jambacli.server.upstream import Upstream

T = TypeVar("T")

#: The largest body, in bytes.
MAX_BODY = 32 << 20
# How many of those may arrive at once.
_MOST_BODIES = 16


@dataclass
class Server:
    """What a route needs. ``models``: who answers; ``defaults``: the options of a reply that a body does not set; ``system``:
    the system message of a chat that has none."""

    models: Models | Upstream
    defaults: GenerationOptions = field(default_factory=GenerationOptions)
    max_body: int = MAX_BODY
    files: FileStore = field(default_factory=FileStore)
    system: str | None = None
    _room: BodyRoom = field(default_factory=lambda: BodyRoom(_MOST_BODIES * MAX_BODY))

    def __post_init__(self) -> None:
        self.documents = DocumentReader(self.files)

    async def body(self, request: Request) -> dict[str, Any]:
        """The request's body as a JSON object. Raises ApiError."""
        data = await read_bytes(request.receive, self.max_body, self._room)
        # A large one is parsed beside the loop, which must go on answering others.
        return parse_json(data) if len(data) < 1 << 16 else await asyncio.to_thread(parse_json, data)

    async def start(self, request: Request, call: Call, *, bedrock: bool = False) -> Running:
        """Start a call, unless its client goes away before. Raises ApiError. ``bedrock``: see ``Models.find``."""
        return await self.unless_gone(request, self._started(call, bedrock))

    async def unless_gone(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, which is cancelled when the request's client goes away. Raises ApiError then."""
        starting = asyncio.ensure_future(work)
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

    async def _started(self, call: Call, bedrock: bool) -> Running:
        if self.system and call.messages and all(m.role != "system" for m in call.messages):
            call = replace(call, messages=[Message("system", self.system), *call.messages])
        return await self.models.start(await self.documents.attach(call), bedrock=bedrock)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
