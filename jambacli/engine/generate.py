"""The decode loop: draw a token, append it, until something ends the reply."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from jambacli.engine.sampling import Sampler
from jambacli.engine.sequence import TokenSequence
from jambacli.errors import JambaError
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
) -> Iterator[str]:
    """Yield text as tokens are drawn after ``sequence``, until a stop token, a stop string, ``max_tokens`` or the context.

    ``sequence.logits`` must be known. ``result`` is kept up to date, so that a caller that closes the iterator early still
    has the reply so far. The last token drawn may not have been fed to the model yet. Text between the ``thought_marks``
    (begin, end) comes as ``Thought`` and is not searched for stop strings. Raises JambaError when logits are not finite.
    """
    # The markup of citations is part of the text; all other markup is left out.
    shown = {tokenizer.marker_id(CITATIONS), tokenizer.marker_id(CITATIONS_END)}
    stream, matcher = StreamDecoder(lambda t, _: tokenizer.token_bytes(t, t in shown)), StopMatcher(stops)
    begin, end = thought_marks
    after_thought, visible = False, len(result.text)
    logits = sequence.logits
    assert logits is not None
    while True:
        if max_tokens is not None and len(result.ids) >= max_tokens:
            result.finish = "length"
            break
        if len(sequence.tokens) >= sequence.ctx:
            result.finish = "context"
            break
        # The maximum of values with a NaN among them is NaN. Logits on a GPU are not checked; the prompt's were.
        if isinstance(logits, np.ndarray) and not math.isfinite(logits.max()):
            raise JambaError("the model computes NaN or infinity: its file is damaged or invalid")
        token = sampler.sample(logits)
        if token in stop_ids:
            result.finish = "stop"
            break
        result.ids.append(token)
        if token in (begin, end):
            result.thinking, after_thought = token == begin, token == end
        elif result.thinking:
            if thought := stream.push(token):
                yield Thought(thought)
        else:
            said = stream.push(token)
            if after_thought:  # the template writes the line breaks between thoughts and answer
                said = said.lstrip("\n")
                after_thought = not said
            visible += len(said)
            piece = matcher.push(said)
            result.text += piece
            if piece:
                yield piece
        if matcher.stopped is not None:
            result.finish = "stop"
            _drop_unsaid(result, tokenizer, visible - len(result.text))
            return
        if max_tokens is None or len(result.ids) < max_tokens:
            logits = sequence.step(token)
    piece = matcher.push(stream.flush()) + matcher.flush()
    result.text += piece
    if piece:
        yield piece


def _drop_unsaid(result: Generated, tokenizer: Tokenizer, unsaid: int) -> None:
    """Remove the last tokens of the reply, ``unsaid`` characters of a stop string, which were not shown."""
    while result.ids and unsaid > 0:
        unsaid -= len(tokenizer.decode([result.ids.pop()]))
