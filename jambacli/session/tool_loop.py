"""A reply with tools: the model calls functions, their results become messages, and it answers again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jambacli.engine.generate import Thought
from jambacli.session.functions import failure
from jambacli.text.tools import ToolUse

if TYPE_CHECKING:
    from jambacli.session.functions import Tool
    from jambacli.session.reply_tools import ReplyTools
    from jambacli.text.tool_calls import ToolCall

#: Rounds of calls before the model must answer, if not said otherwise.
ROUNDS = 8


@dataclass(frozen=True)
class ToolOptions:
    """How a session uses tools.

    ``rounds``: how often the model may call before it must answer. ``approve``: asked before each call; what it refuses is not
    run, and the model is told so. None: every call is run.
    """

    tools: Mapping[str, Tool]
    use: ToolUse
    rounds: int = ROUNDS
    approve: Callable[[ToolCall], bool] | None = None

    def after_calls(self, rounds: int) -> ToolUse:
        """The tools of the reply after ``rounds`` rounds of calls: the model need not call again, and at last may not."""
        last = rounds >= self.rounds
        return replace(self.use, choice="none" if last or self.use.choice == "none" else "auto", names=None, one=False)

    def results(self, calls: list[ToolCall]) -> Iterator[str]:
        """Run the calls one after another."""
        for call in calls:
            tool = self.tools.get(call.name)
            if tool is None:
                yield failure(f"there is no tool {call.name!r}; the tools are {', '.join(self.tools)}")
            elif self.approve is not None and not self.approve(call):
                yield failure("the user did not allow this call")
            else:
                yield tool.run(call.arguments)


def reply_with_tools(
    options: ToolOptions,
    answer: Callable[[ToolUse, list[str]], tuple[Iterator[str], ReplyTools | None]],
    finished: Callable[[], bool],
    first: tuple[Iterator[str], ReplyTools | None],
) -> Iterator[str]:
    """Yield the texts of ``first``, run its calls, and yield the next reply, until one has no calls.

    ``answer`` begins the reply after these results, with these tools. ``finished``: whether the model ended the last reply
    itself. A model whose reply was cut off within a call has not called.
    """
    pieces, reply_tools = first
    rounds = 0
    while True:
        with contextlib.closing(pieces):  # type: ignore[type-var]
            calls = yield from _texts(pieces, reply_tools, finished)
        if not calls:
            return
        rounds += 1
        results = list(options.results(calls))
        pieces, reply_tools = answer(options.after_calls(rounds), results)


def _texts(
    pieces: Iterator[str], reply_tools: ReplyTools | None, finished: Callable[[], bool]
) -> Generator[str, None, list[ToolCall]]:
    """Yield a reply's texts without its calls; returns the calls."""
    if reply_tools is None:
        yield from pieces
        return []
    scanner = reply_tools.scanner()
    for piece in pieces:
        if isinstance(piece, Thought):
            yield piece
            continue
        yield from (part for part in scanner.push(piece) if isinstance(part, str))
    whole = finished()
    yield from (part for part in scanner.end(truncated=not whole) if isinstance(part, str))
    return scanner.calls if whole and not scanner.broken else []
