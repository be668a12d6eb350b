"""A chat with one model: messages in, text out, the state kept between turns; knows nothing of terminals.

Every turn is the same operation: render the whole conversation, keep the longest prefix the sequence already holds, read
the rest, generate. An edit, a regeneration or a branch only changes what is rendered.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jambacli.engine.conversation import THINK, Conversation, Rendered
from jambacli.engine.generate import Generated, generate
from jambacli.engine.sampling import Sampler, Sampling
from jambacli.engine.sequence import Counters, Reading, TokenSequence, silent
from jambacli.errors import UsageError

if TYPE_CHECKING:
    from jambacli.engine.api import Jamba
    from jambacli.model.state import SequenceState


@dataclass
class Stats:
    """One reply in figures; seconds and tokens. ``first_token_seconds`` counts from the call to the first text."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    prefilled_tokens: int = 0
    prefill_seconds: float = 0.0
    generated_tokens: int = 0
    decode_seconds: float = 0.0
    decoded_tokens: int = 0
    first_token_seconds: float = 0.0
    finish: str = ""


class Session:
    """One conversation in one state. ``send`` talks through the chat template, ``complete`` continues raw text."""

    def __init__(
        self,
        model: Jamba,
        *,
        ctx: int | None = None,
        kv_type: str = "f16",
        system: str | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        """``ctx``: the most tokens the session may hold, the model's own context length by default (memory grows with
        use). Raises UsageError for a context the model was not made for."""
        limit = model.config.context_length
        if ctx is not None and ctx > limit > 0:
            raise UsageError(f"--ctx {ctx:,} is more than the {limit:,} tokens {model.name} was made for")
        self.model = model
        self.sampling = sampling or model.sampling
        self.sequence = TokenSequence(model.model, ctx or limit, kv_type)
        self.stats = Stats()
        self._system = system
        self._conversation: Conversation | None = None

    @property
    def state(self) -> SequenceState:
        """The model state behind the session: ``snapshot()`` and ``restore()`` go back and forth in it."""
        return self.sequence.state

    @property
    def conversation(self) -> Conversation:
        """The turns so far. Raises UsageError for a model without a chat template."""
        if self._conversation is None:
            template = self.model.template
            if template is None:
                raise UsageError(f"{self.model.name} has no chat template; use plain completion (--raw)")
            self._conversation = Conversation(template, self.model.tokenizer, self._system)
        return self._conversation

    def send(
        self,
        text: str,
        *,
        documents: Sequence[Mapping[str, Any]] | None = None,
        knobs: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        reading: Reading = silent,
        **sampling: Any,
    ) -> Iterator[str]:
        """Say ``text`` and yield the reply as it comes. ``documents``: mappings with "text" and perhaps "title".

        Keyword arguments of Sampling (``temperature=0`` ...) override the session's. The reply so far is kept when the
        iterator is closed early.
        """
        self.conversation.add_user(text, documents, knobs)
        try:
            rendered = self.conversation.render()
        except BaseException:
            self.conversation.turns.pop()
            raise
        return self._reply(rendered, max_tokens, stop, reading, self.sampling.with_given(**sampling))

    def complete(
        self,
        text: str,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        reading: Reading = silent,
        **sampling: Any,
    ) -> Iterator[str]:
        """Continue ``text`` without a template and yield what follows."""
        tokenizer = self.model.tokenizer
        ids = tokenizer.encode(text, markers="all")
        if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids.insert(0, tokenizer.bos_id)
        rendered = Rendered(ids, [len(ids)])
        return self._generate(rendered, max_tokens, stop, reading, self.sampling.with_given(**sampling), Generated())

    def _reply(
        self,
        rendered: Rendered,
        max_tokens: int | None,
        stop: Sequence[str],
        reading: Reading,
        sampling: Sampling,
    ) -> Iterator[str]:
        result = Generated()
        first = True
        think = self.model.tokenizer.marker_id(THINK)
        thinking = think is not None and think in rendered.ids[-4:]
        try:
            for piece in self._generate(rendered, max_tokens, stop, reading, sampling, result):
                # The template writes a space after the assistant's header in history but not when generating.
                shown = piece[1:] if first and piece.startswith(" ") else piece
                first = False
                if shown:
                    yield shown
        finally:
            self.conversation.add_assistant(result.ids, thinking)

    def _generate(
        self,
        rendered: Rendered,
        max_tokens: int | None,
        stop: Sequence[str],
        reading: Reading,
        sampling: Sampling,
        result: Generated,
    ) -> Iterator[str]:
        began = time.perf_counter()
        sequence = self.sequence
        sequence.counters = Counters()
        self.stats = Stats(prompt_tokens=len(rendered.ids))
        tokenizer = self.model.tokenizer
        try:
            sequence.advance(rendered.ids, rendered.boundaries, reading)
            sampler = Sampler(sampling, rendered.ids)
            pieces = generate(
                sequence,
                sampler,
                tokenizer,
                max_tokens=max_tokens,
                stops=stop,
                stop_ids=tokenizer.stop_ids,
                markers=False,
                result=result,
            )
            for piece in pieces:
                if not self.stats.first_token_seconds:
                    self.stats.first_token_seconds = time.perf_counter() - began
                yield piece
            sequence.checkpoint()
        finally:
            c = sequence.counters
            self.stats = replace(
                self.stats,
                reused_tokens=c.reused,
                prefilled_tokens=c.prefilled,
                prefill_seconds=c.prefill_seconds,
                generated_tokens=len(result.ids),
                decoded_tokens=c.decoded,
                decode_seconds=c.decode_seconds,
                finish=result.finish,
            )
