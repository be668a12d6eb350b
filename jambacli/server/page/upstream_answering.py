"""Replies of a server behind this one to the page's conversations."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jambacli.cache.prefix_store import text_hash
from jambacli.documents.pages import DocumentEntry
from jambacli.server.errors import ApiError
from jambacli.server.events import Answer, Running
from jambacli.server.page.ask import Ask
from jambacli.server.request import Call, Message
from jambacli.session.session_file import SavedSession

if TYPE_CHECKING:
    from jambacli.server.upstream import Upstream


class UpstreamAnswering:
    """The server behind this one answers: what it knows of earlier text is its own matter."""

    def __init__(
        self, upstream: Upstream, model: str, documents: Callable[[Any, int], Sequence[DocumentEntry]]
    ) -> None:
        """``documents``: those before a turn of the session's file, by its index."""
        self._upstream, self._model, self._documents = upstream, model, documents
        self._turns: list[dict[str, Any]] = []
        self._hashes: list[str] = []
        self._running: Any = None
        self._began = time.perf_counter()

    async def fitted(self, saved: SavedSession, ask: Ask, say: Callable[[dict[str, Any]], None]) -> Ask:
        """See Answering."""
        return ask

    async def start(self, saved: SavedSession, ask: Ask) -> Running:
        """See Answering."""
        from jambacli.documents.modes import Modes, Task

        turns = [dict(turn) for turn in saved.turns]
        entries = {i: self._documents(turn, i) for i, turn in enumerate(turns)}
        if ask.kind == "regenerate":
            while turns and turns[-1]["role"] != "user":
                turns.pop()
            if not turns:
                raise ApiError(400, "there is nothing to answer yet")
        else:
            if ask.kind == "edit" and ask.at is not None:
                del turns[ask.at :]
            if ask.entries:
                entries[len(turns)] = ask.entries
            cites = ask.citations and any(entries.get(i) for i in range(len(turns) + 1))
            turns.append({"role": "user", "content": Modes(None).instruction(Task(ask.text, cites, ask.schema))})
        messages = []
        for i, turn in enumerate(turns):
            documents = [entry.as_document() for entry in entries.get(i) or ()]
            messages.append(Message(turn["role"], turn["content"], documents=documents))
        options = replace(ask.options, schema=ask.schema) if ask.schema is not None else ask.options
        self._turns = turns
        self._hashes = [*saved.documents, *(text_hash(entry.text) for entry in ask.entries)]
        self._running = await self._upstream.start(Call(messages=messages, options=options, model=self._model))
        return self._running

    def status(self, began: float) -> dict[str, Any] | None:
        """See Answering."""
        return None

    async def end(
        self, saved: SavedSession, answer: Answer | None, said: str
    ) -> tuple[SavedSession | None, dict[str, Any]]:
        """See Answering."""
        text = answer.text if answer is not None else said
        if not text.strip():
            return None, {}
        turn = {"role": "assistant", "content": text}
        ended = replace(
            saved, updated=time.time(), turns=[*self._turns, turn], documents=self._hashes, model=self._model
        )
        if answer is None:
            return ended, {}
        if answer.thoughts:
            turn["thoughts"] = answer.thoughts
        seconds = time.perf_counter() - self._began
        stats = {
            "prompt_tokens": answer.prompt_tokens,
            "reused_tokens": answer.cached_tokens,
            "read_tokens": answer.prompt_tokens - answer.cached_tokens,
            "written_tokens": answer.generated_tokens,
            "read_seconds": None,
            "write_seconds": seconds,
            "read_rate": None,
            "write_rate": None,
            "first_token_seconds": answer.first_token or None,
        }
        return ended, stats
