"""The steps of a BatchEngine: a token for every reply in one pass, and a chunk of reading. Knows nothing of who joins."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from jambacli.engine.batch_slots import Slot, Slots
from jambacli.engine.drafted_steps import DraftedSteps
from jambacli.engine.generate import draw
from jambacli.engine.lookup import Prediction, StepCosts, draft_lengths

if TYPE_CHECKING:
    import torch

    from jambacli.model.jamba import JambaModel

logger = logging.getLogger(__name__)

# Reading may wait while one of so many slots have no reply to generate.
_IDLE_SHARE = 4
# Which logits of a pass are computed.
_Wanted: TypeAlias = Literal["last", "all", "none"]


@dataclass(frozen=True)
class Pass:
    """Tokens to append to a slot's sequence; see ``Span``."""

    slot: Slot
    ids: torch.Tensor
    logits: _Wanted
    revocable: bool = False


class BatchSteps:
    """Computes what the requests in the slots need next. An error of one request ends that request alone."""

    def __init__(self, model: JambaModel, slots: Slots, release: Callable[[Slot, Exception | None], None]) -> None:
        """``release``: ends a slot's request, with its error or None."""
        self._model, self._slots, self._release = model, slots, release
        self._shortest_first = False
        # All sequences are of one model, so they share what steps cost.
        self._costs = StepCosts()

    def decode(self) -> None:
        """Draw tokens for every reply in progress, and append the last of each in one pass, with drafts of what may follow."""
        import torch

        drawn: list[tuple[Slot, int]] = []
        predicted: list[Prediction] = []
        for slot in self._slots:
            token, prediction = self._draw_new(slot)
            if token is not None:
                drawn.append((slot, token))
                predicted.append(prediction)
        if not drawn:
            return
        began = time.perf_counter()
        lengths = draft_lengths([p.chances for p in predicted], self._costs)
        drafts = [p.tokens[:n] for p, n in zip(predicted, lengths, strict=True)]
        passes = [
            Pass(slot, torch.tensor([token, *draft]), "all", revocable=bool(draft))
            for (slot, token), draft in zip(drawn, drafts, strict=True)
        ]
        states = [slot.sequence.state for slot, _ in drawn]
        moves = [state.moves for state in states]
        outcomes = self._forward(passes)
        if moves == [state.moves for state in states]:  # else memory was allocated
            self._costs.record(len(drawn) + sum(lengths), time.perf_counter() - began)
        for (slot, token), draft, outcome in zip(drawn, drafts, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._release(slot, outcome)
            else:
                assert outcome is not None
                slot.sequence.stepped(token, outcome, began, draft)

    def _draw_new(self, slot: Slot) -> tuple[int | None, Prediction]:
        """Draw tokens until one is not in the state yet, and what may follow it; None when there is no further token."""
        nothing = Prediction([], [])
        if not slot.answering:
            return None, nothing
        job, sequence = slot.job, slot.sequence
        assert job is not None
        while (token := self._draw(slot)) is not None:
            if slot.drafted is None and self._drafts(slot):
                slot.drafted = DraftedSteps(sequence, job.sampler, job.stop_ids)
            prediction = nothing if slot.drafted is None else slot.drafted.push(token, job.reply.left)
            if not sequence.expects(token):
                return token, prediction
            sequence.step(token)  # a draft predicted it: it is in the state already
        return None, nothing

    def _drafts(self, slot: Slot) -> bool:
        """Whether the slot's reply is drafted from earlier text."""
        assert slot.job is not None
        chosen = slot.job.request.lookup
        return slot.sequence.fast_steps if chosen is None else chosen

    def _draw(self, slot: Slot) -> int | None:
        """The next token of the slot's reply, None when the reply has ended with it or before it."""
        job, sequence = slot.job, slot.sequence
        assert job is not None
        reply = job.reply
        try:
            if reply.wants(len(sequence.tokens), sequence.ctx):
                assert sequence.logits is not None
                token = draw(job.sampler, sequence.logits)
                if job.first_token_seconds is None:
                    job.first_token_seconds = time.perf_counter() - job.submitted
                job.push(token, sequence.logits)
                if not reply.ended:
                    return token
            job.finish()
            if job.request.constraint is not None:
                most = job.request.max_tokens
                at_context = most is None or len(job.ids) + most > sequence.ctx
                job.request.constraint.check_finished(len(job.result.ids), at_context=at_context)
        except Exception as error:
            self._release(slot, error)
        else:
            self._release(slot, None)
        return None

    def more_to_read_later(self, parallel: int) -> bool:
        """Whether reading had better wait for more prompts: those in the slots are less than a chunk, and most of the
        ``parallel`` slots are busy with replies."""
        replies = sum(slot.answering for slot in self._slots)
        if parallel - replies > parallel // _IDLE_SHARE:
            return False
        left = sum(slot.next_stop() - len(slot.sequence.tokens) for slot in self._slots if slot.reading)
        return left < self._model.prefill_chunk

    def read(self) -> None:
        """Read prompts, as many passes as fit into one chunk, at least one; short ones of several prompts run together."""
        import torch

        left = chunk = self._model.prefill_chunk
        while left > 0:
            chosen: list[tuple[Slot, int]] = []
            for slot in self._reading_order():
                stop = slot.next_stop()
                size = stop - len(slot.sequence.tokens)
                if size > left and (left < chunk or chosen):
                    break
                left -= size
                chosen.append((slot, stop))
            if not chosen:
                return
            self._shortest_first = not self._shortest_first
            began = time.perf_counter()
            passes = [
                Pass(
                    slot,
                    torch.from_numpy(slot.array[len(slot.sequence.tokens) : stop]),
                    _wanted(slot, stop),
                )
                for slot, stop in chosen
            ]
            for (slot, stop), outcome in zip(chosen, self._forward(passes), strict=True):
                self._was_read(slot, stop, outcome, began)

    def _was_read(self, slot: Slot, stop: int, outcome: torch.Tensor | Exception | None, began: float) -> None:
        """Record that a pass has read the slot's prompt up to ``stop``, or its error."""
        job, sequence = slot.job, slot.sequence
        assert job is not None
        size = stop - len(sequence.tokens)
        try:
            if isinstance(outcome, Exception):
                raise outcome
            if job.request.prompt_logprobs and outcome is not None:
                job.score_prompt(len(sequence.tokens), outcome)
                # A copy of the last row alone, which does not keep the others.
                outcome = outcome[-1:].clone() if stop == len(job.ids) else None
            sequence.prefilled(job.ids, stop, slot.boundaries, outcome, began)
        except Exception as error:
            self._release(slot, error)
            return
        job.tokens_read = stop
        if stop == len(job.ids):
            job.phase = "answering"
        self.report(slot, job.on_read, size)

    def _reading_order(self) -> list[Slot]:
        """The slots that read, by turns the oldest request first and the one with the least left first, so that neither a
        long prompt nor many short ones keep others waiting."""
        reading = [(slot, slot.job) for slot in self._slots if slot.job is not None and slot.reading]
        if self._shortest_first:
            reading.sort(key=lambda pair: len(pair[1].ids) - pair[1].tokens_read)
        else:
            reading.sort(key=lambda pair: pair[1].submitted)
        return [slot for slot, _ in reading]

    def _forward(self, passes: Sequence[Pass]) -> list[torch.Tensor | Exception | None]:
        """Append tokens to the slots' sequences in one pass: their logits, or the error of each one that failed."""
        from jambacli.model.spans import Span

        if not passes:
            return []
        spans = [Span(p.slot.sequence.state, p.ids, p.logits, p.revocable) for p in passes]
        try:
            return list(self._model.forward_spans(spans))
        except Exception as error:
            if len(passes) == 1:
                return [error]
            logger.debug("a pass over several sequences failed, so each goes on by itself: %s", error)
        outcomes: list[torch.Tensor | Exception | None] = []
        for one in passes:
            try:
                if not one.slot.sequence.consistent:
                    self._replay(one.slot)
                outcomes += self._forward([one])
            except Exception as error:
                outcomes.append(error)
        return outcomes

    def _replay(self, slot: Slot) -> None:
        """Compute the tokens after the last checkpoint again, in the same passes, after one that failed in the middle."""
        import torch

        job, sequence = slot.job, slot.sequence
        assert job is not None
        tokens = list(sequence.tokens)
        sequence.rewind(len(tokens))
        prompt = torch.from_numpy(job.array)
        while (at := len(sequence.tokens)) < min(len(tokens), len(job.ids)):
            stop, began = slot.next_stop(), time.perf_counter()
            last = stop == len(job.ids)
            logits = sequence.model.forward(prompt[at:stop], sequence.state, logits="last" if last else "none")
            sequence.prefilled(job.ids, stop, slot.boundaries, logits, began)
        for token in tokens[len(sequence.tokens) :]:
            sequence.step(token)

    def report(self, slot: Slot, callback: Callable[[int], None] | None, value: int) -> None:
        """Call a callback; its error ends the request."""
        if callback is None or not value:
            return
        try:
            callback(value)
        except Exception as error:
            self._release(slot, error)


def _wanted(slot: Slot, stop: int) -> _Wanted:
    """The logits that a pass over the slot's prompt up to ``stop`` needs."""
    assert slot.job is not None
    if slot.job.request.prompt_logprobs:
        return "all"
    return "last" if stop == len(slot.array) else "none"
