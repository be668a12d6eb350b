"""What an answer is made of: the events of a call that is being answered."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jambacli.server.found_calls import CallDelta

if TYPE_CHECKING:
    from jambacli.engine.logprobs import TokenLogprob
    from jambacli.text.tool_calls import ToolCall


@dataclass(frozen=True)
class Piece:
    """Text of the reply ``index``, to be shown or, if a ``thought``, apart from it.

    ``logprobs``: the tokens up to the end of this text that no piece before had, if the call asks for them. ``prompt``: this
    is the prompt, which is repeated.
    """

    index: int
    text: str
    thought: bool
    logprobs: Sequence[TokenLogprob] = ()
    prompt: bool = False


@dataclass(frozen=True)
class Waiting:
    """Nothing has come for a while. ``total`` tokens of prompts, of which ``known`` were known and ``read`` are in the state;
    ``position``: how many requests are before this one in the queue, None when it is being worked on."""

    total: int
    known: int
    read: int
    position: int | None
    seconds: float


@dataclass(frozen=True)
class Answer:
    """The whole reply ``index``.

    ``finish``: "stop", "length" or "tool_calls"; ``calls``: the complete calls. ``stop_text``: the stop string that ended it.
    Numbers of tokens: of the prompt, those of it that were not read again, those generated, and those of them that are
    thoughts. ``first_token``: seconds until it.
    ``logprobs``, ``prompt_logprobs``: see Call; the first ``unseen`` tokens of the prompt are not in the text.
    """

    index: int
    text: str
    thoughts: str
    finish: str
    stop_text: str | None
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    thought_tokens: int
    prefill_seconds: float
    decode_seconds: float
    prefilled_tokens: int
    first_token: float
    logprobs: Sequence[TokenLogprob] = ()
    prompt_logprobs: Sequence[TokenLogprob] = ()
    unseen: int = 0
    calls: Sequence[ToolCall] = ()


Event = Piece | CallDelta | Waiting | Answer


class Running:
    """A call that is being answered: by the engine, by a model that is still being loaded, or by another server.

    ``model``: the name of the one that answers; ``replies``: how many there will be; ``prompt_tokens``: of the first prompt, 0
    if they are not known; ``finished``: the replies that have ended; ``began``: in the time of ``perf_counter``.
    """

    def __init__(self, model: str = "", replies: int = 1) -> None:
        self.model, self.replies, self.prompt_tokens = model, replies, 0
        self.finished: list[Answer] = []
        #: By reply, how many tokens of a prompt that is repeated are not in its text.
        self.unseen: dict[int, int] = {}
        self.began = time.perf_counter()

    @property
    def tokenizer(self) -> Any:
        """The Tokenizer of the model, None where it is not known."""
        return None

    def cancel(self) -> None:
        """End what has not ended."""
        raise NotImplementedError

    def events(self) -> AsyncGenerator[Event, None]:
        """Pieces of text as they come, ``Waiting`` in silence, and an ``Answer`` at the end of each reply.

        Raises ApiError when a reply fails. Leaving it early cancels the call.
        """
        raise NotImplementedError
