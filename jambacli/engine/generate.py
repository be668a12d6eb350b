"""The decode loop: draw a token, append it, until something ends the reply."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from jambacli.engine.drafted_steps import DraftedSteps
from jambacli.engine.sampling import Logits, Sampler
from jambacli.engine.sequence import TokenSequence
from jambacli.errors import JambaError
from jambacli.interrupts import Stop, interrupts_held
from jambacli.text.markup import CITATIONS, CITATIONS_END
from jambacli.text.streaming import StopMatcher, StreamDecoder
from jambacli.text.tokenizer import Tokenizer

Finish = Literal["stop", "length", "context", "interrupted"]


class Thought(str):
    """A piece of what the model thinks before it answers."""

    __slots__ = ()


@dataclass
class Generated:
    """What a generation produced: ``ids`` without the stop token, the visible ``text``, and why it ended.

    ``thinking``: whether the text being generated is a thought; set it when the prompt has opened one.
    """

    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: Finish = "interrupted"
    thinking: bool = False


class Reply:
    """One reply as its tokens are drawn: its text, its thoughts, and what ends it. Knows nothing of models and states.

    ``ended``: whether no more tokens are to be drawn; ``result.finish`` then says why. ``partial``: whether a stop string began
    within a token, so that the end of the text is in none of the result's ids.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_tokens: int | None = None,
        stops: Sequence[str] = (),
        stop_ids: frozenset[int] = frozenset(),
        thought_marks: tuple[int | None, int | None] = (None, None),
        result: Generated | None = None,
        markup: Mapping[int, str] | None = None,
    ) -> None:
        """``result`` is kept up to date; it may hold the beginning of the reply. Text between the ``thought_marks`` (begin,
        end) comes as ``Thought`` and is not searched for stop strings. ``markup``: tokens that are shown as these texts."""
        self.result = result if result is not None else Generated()
        self.ended = self.partial = False
        self._tokenizer, self._max_tokens, self._stop_ids = tokenizer, max_tokens, stop_ids
        self._begin, self._end = thought_marks
        # The markup of citations is part of the text; all other markup is left out.
        shown = {tokenizer.marker_id(CITATIONS), tokenizer.marker_id(CITATIONS_END)}
        marked = {token: text.encode() for token, text in (markup or {}).items()}
        self._stream = StreamDecoder(lambda t, _: marked.get(t) or tokenizer.token_bytes(t, t in shown))
        self._matcher = StopMatcher(stops)
        self._after_thought, self._visible = False, len(self.result.text)

    @property
    def stop_text(self) -> str | None:
        """The stop string that ended the reply, None if it ended otherwise."""
        return self._matcher.stopped

    def wants(self, held: int, ctx: int) -> bool:
        """Whether another token is to be drawn, when the sequence holds ``held`` tokens in a context of ``ctx``.

        If not, the reply has ended.
        """
        if not self.ended:
            self._end_at_limit()
        if not self.ended and held >= ctx:
            self._finish("context")
        return not self.ended

    def push(self, token: int) -> str:
        """Add a drawn token; returns the text that can be shown now, "" for none. Only while the reply has not ended."""
        result = self.result
        if token in self._stop_ids:
            self._finish("stop")
            return ""
        result.ids.append(token)
        piece = ""
        if token in (self._begin, self._end):
            result.thinking, self._after_thought = token == self._begin, token == self._end
        elif result.thinking:
            piece = Thought(self._stream.push(token))
        else:
            said = self._stream.push(token)
            if self._after_thought:  # the template writes the line breaks between thoughts and answer
                said = said.lstrip("\n")
                self._after_thought = not said
            self._visible += len(said)
            piece = self._matcher.push(said)
            result.text += piece
        if self._matcher.stopped is not None:
            settled, unsaid = self._settled()
            del result.ids[settled:]  # a stop string was not shown
            self.partial = unsaid < 0
            self._finish("stop")
        else:
            self._end_at_limit()
        return piece

    def flush(self) -> str:
        """The text that was held back because a stop string or a character might have begun; call it once, at the end."""
        if self._matcher.stopped is not None:
            return ""
        piece = self._matcher.push(self._stream.flush()) + self._matcher.flush()
        self.result.text += piece
        return piece

    @property
    def settled(self) -> int:
        """How many of the reply's tokens are there to stay: a stop string can remove the others."""
        return self._settled()[0]

    def _settled(self) -> tuple[int, int]:
        """``settled``, and how many characters less than all the other tokens have are not shown, at most 0."""
        at, unsaid = len(self.result.ids), 0 if self.ended else self._visible - len(self.result.text)
        while at and unsaid > 0:
            at -= 1
            unsaid -= len(self._tokenizer.decode([self.result.ids[at]]))
        return at, unsaid

    @property
    def left(self) -> int:
        """How many more tokens may be drawn."""
        return sys.maxsize if self._max_tokens is None else self._max_tokens - len(self.result.ids)

    def _end_at_limit(self) -> None:
        if self._max_tokens is not None and len(self.result.ids) >= self._max_tokens:
            self._finish("length")

    def _finish(self, why: Finish) -> None:
        self.ended, self.result.finish = True, why


def draw(sampler: Sampler, logits: Logits) -> int:
    """The next token for ``logits``. Raises JambaError when they are not finite."""
    # The maximum of values with a NaN among them is NaN. Logits on a GPU are not checked; the prompt's were.
    if isinstance(logits, np.ndarray) and not math.isfinite(logits.max()):
        raise JambaError("the model computes NaN or infinity: its file is damaged or invalid")
    return sampler.sample(logits)


def generate(
    sequence: TokenSequence,
    sampler: Sampler,
    tokenizer: Tokenizer,
    *,
    max_tokens: int | None = None,
    stops: Sequence[str] = (),
    stop_ids: frozenset[int] = frozenset(),
    thought_marks: tuple[int | None, int | None] = (None, None),
    result: Generated,
    lookup: bool = False,
    markup: Mapping[int, str] | None = None,
    stop: Stop | None = None,
) -> Iterator[str]:
    """Yield text as tokens are drawn after ``sequence``, until a stop token, a stop string, ``max_tokens`` or the context.

    ``sequence.logits`` must be known. ``result`` is kept up to date, so that a caller that closes the iterator early still
    has the reply so far. The last token drawn may not have been fed to the model yet. The other arguments are those of
    ``Reply``. ``lookup``: whether to compute several tokens in a step where earlier text says what probably comes next; the
    reply is the same. ``stop``: looked at between tokens; once it is asked, no more is drawn and ``result.finish`` stays
    "interrupted". A Ctrl-C takes effect between tokens too. Raises JambaError when logits are not finite.
    """
    stop = stop or Stop()
    reply = Reply(
        tokenizer,
        max_tokens=max_tokens,
        stops=stops,
        stop_ids=stop_ids,
        thought_marks=thought_marks,
        result=result,
        markup=markup,
    )
    logits = sequence.logits
    assert logits is not None
    drafted = DraftedSteps(sequence, sampler, stop_ids) if lookup else None
    token: int | None = None
    while not (stop.asked or reply.ended):
        with interrupts_held():
            if token is not None:
                logits = sequence.step(token) if drafted is None else drafted.step(token, reply.left)
            if not reply.wants(len(sequence.tokens), sequence.ctx):
                break
            token = draw(sampler, logits)
            piece = reply.push(token)
        if piece:
            yield piece
    if piece := reply.flush():
        yield piece
