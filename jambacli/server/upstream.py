"""Another server with OpenAI's API that does the work, in place of the models of this one."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from jambacli.server.errors import ApiError
from jambacli.server.model_info import ModelInfo
from jambacli.server.request import Call
from jambacli.server.upstream_call import UpstreamCall, body_of, messages_of
from jambacli.server.upstream_client import UpstreamClient
from jambacli.server.upstream_tools import tool_fields

# Seconds for which a list of models is used again, and in which it must come.
_FRESH, _LISTING = 5.0, 10.0
# Servers whose chat templates get the field "documents", by the owner of their models.
_TAKE_DOCUMENTS = ("vllm", "jamba")


class Upstream:
    """What ``Models`` is, with the models of the server that ``client`` asks."""

    #: Whether the models here are loaded and unloaded one by one.
    several = False

    def __init__(self, client: UpstreamClient) -> None:
        self.client = client
        self._listed: tuple[float, list[dict[str, Any]]] | None = None

    async def entries(self) -> list[dict[str, Any]]:
        """Its list of models. Raises ApiError."""
        now = time.monotonic()
        if self._listed is None or now - self._listed[0] > _FRESH:
            try:
                async with asyncio.timeout(_LISTING):
                    answer = await self.client.request("GET", "/v1/models")
            except TimeoutError:
                raise ApiError(504, f"the server at {self.client.root} does not answer", kind="server_error") from None
            data = answer.get("data")
            found = (
                [m for m in data if isinstance(m, dict) and isinstance(m.get("id"), str)]
                if isinstance(data, list)
                else []
            )
            self._listed = now, found
        return self._listed[1]

    async def infos(self) -> list[ModelInfo]:
        """What is known of its models. Raises ApiError."""
        found = []
        for entry in await self.entries():
            meta = entry["meta"] if isinstance(entry.get("meta"), dict) else {}
            found.append(
                ModelInfo(
                    name=entry["id"],
                    thinks=True,  # or not: it decides
                    tools=True,
                    created=_number(entry.get("created")),
                    size=_number(meta.get("size")),
                    context=_number(entry.get("max_model_len")) or _number(meta.get("n_ctx")),
                    trained=_number(meta.get("n_ctx_train")),
                    vocabulary=_number(meta.get("n_vocab")),
                )
            )
        return found

    async def named(self, name: str | None, *, bedrock: bool = False) -> str:
        """The name that the server knows: its only model answers to all, several by their names and any id of Bedrock's.

        Raises ApiError (404, model_not_found).
        """
        names = [entry["id"] for entry in await self.entries()]
        if name in names:
            return str(name)
        if names and (len(names) == 1 or not name or (bedrock and "ai21." in name)):
            return str(names[0])
        message = f"the model {str(name)[:80]!r} does not exist; there are: {', '.join(names[:20]) or 'none'}"
        raise ApiError(404, message, kind="not_found_error", code="model_not_found", parameter="model")

    async def takes_documents(self) -> bool:
        """Whether its chats take the field "documents"; otherwise they must be part of a message."""
        owners = [str(entry.get("owned_by")).lower() for entry in await self.entries()]
        return bool(owners) and all(owner in _TAKE_DOCUMENTS for owner in owners)

    def stop_soon(self) -> None:
        """No prompt is prepared here."""

    def close(self) -> None:
        """What there is to close has ended with the event loop."""

    async def keep(self, name: str | None, seconds: float | None) -> None:
        """How long a model stays loaded is the other server's matter."""

    async def load(self, name: str | None, seconds: float | None = None) -> str:
        """The name of a model. Raises ApiError."""
        return await self.named(name)

    async def count_tokens(self, call: Call) -> int:
        """The tokens of a call's prompt, of a server that has /tokenize. Raises ApiError."""
        body: dict[str, Any] = {"model": await self.named(call.model)}
        body["messages"] = messages_of(call, with_documents=False)
        if call.tools is not None:
            body["tools"] = tool_fields(call.tools)["tools"]
        try:
            answer = await self.client.request("POST", "/tokenize", body)
        except ApiError as error:
            if error.status not in (400, 404, 405, 422):
                raise
            answer = {}
        count = answer.get("count")
        if not isinstance(count, int) and isinstance(tokens := answer.get("tokens"), list):
            count = len(tokens)
        if not isinstance(count, int):
            raise ApiError(404, "the server behind this one does not count tokens", kind="not_found_error")
        return count

    # Requests

    async def start(self, call: Call, *, bedrock: bool = False) -> UpstreamCall:
        """Send a call, and wait for the first word of its answer for a while. Raises ApiError."""
        model = await self.named(call.model, bedrock=bedrock)
        path = "/v1/chat/completions" if call.messages else "/v1/completions"
        sent = body_of(call, model, documents=await self.takes_documents())
        running = UpstreamCall(self.client, path, sent, model, max(1, len(call.prompts)) * call.choices)
        await running.open()
        return running


def _number(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1 << 62 else 0
