"""The calls of tools in one reply as it is generated, with an id for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jambacli.server.tools import call_id
from jambacli.text.tool_calls import CallPiece, ToolCall, ToolCallScanner

if TYPE_CHECKING:
    from jambacli.engine.batch_job import Job


@dataclass(frozen=True)
class CallDelta:
    """A piece of call number ``call`` in the reply ``index``: its ``id``, its ``name``, once, or more of its arguments."""

    index: int
    call: int
    id: str
    name: str | None
    arguments: str


class FoundCalls:
    """Finds the calls in the text of the reply ``index``."""

    def __init__(self, index: int, scanner: ToolCallScanner) -> None:
        self._index, self._scanner = index, scanner
        self._ids: list[str] = []

    def push(self, text: str) -> list[str | CallDelta]:
        """What more text adds: text to show and pieces of calls."""
        return self._parts(self._scanner.push(text))

    def end(self, job: Job) -> list[str | CallDelta]:
        """What is left at the end of the reply."""
        truncated = job.result.finish != "stop" or job.reply.stop_text is not None
        return self._parts(self._scanner.end(truncated))

    @property
    def enough(self) -> bool:
        """Whether nothing more is wanted of the reply."""
        return self._scanner.enough

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The complete calls."""
        found = zip(self._scanner.calls, self._scanner.places, strict=True)
        return tuple(replace(call, id=self._ids[place]) for call, place in found)

    @property
    def begun(self) -> bool:
        """Whether a call has begun, complete or not."""
        return bool(self._ids)

    @property
    def whole(self) -> bool:
        """Whether there are calls, all of them complete."""
        return bool(self._scanner.calls) and not self._scanner.broken

    def _parts(self, parts: Sequence[str | CallPiece]) -> list[str | CallDelta]:
        return [part if isinstance(part, str) else self._delta(part) for part in parts]

    def _delta(self, part: CallPiece) -> CallDelta:
        if part.name is not None:
            self._ids.append(call_id())
        return CallDelta(self._index, part.index, self._ids[part.index], part.name, part.arguments)
