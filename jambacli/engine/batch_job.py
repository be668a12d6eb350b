"""A request to a BatchEngine, and the job that it becomes there. Computes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np

from jambacli.engine.counters import Counters
from jambacli.engine.generate import Generated, Reply, Thought
from jambacli.engine.logprobs import TokenLogprob, token_logprobs
from jambacli.engine.prefixes import next_stop
from jambacli.engine.sampling import Constraint, Logits, Sampler, Sampling

if TYPE_CHECKING:
    import torch

    from jambacli.model.lora import AdapterSet

Phase = Literal["waiting", "reading", "answering", "done"]


class ReplyConstraint(Constraint, Protocol):
    """A constraint of one reply; see ``constraints.grammar``. ``whole``: it decides all of the reply, so that stop strings do
    not apply."""

    whole: bool

    def begin(self, budget: int, thinking: bool = False, said: Sequence[int] = ()) -> None:
        """Start a reply of at most ``budget`` tokens. Raises JambaError when nothing valid fits into them."""

    def check_finished(self, tokens: int, *, at_context: bool = False) -> None:
        """Raise JambaError for a reply of ``tokens`` tokens that is not complete. ``at_context``: also for one that was cut
        short to fit."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to generate: a prompt as token ids, and how to continue it.

    ``boundaries``: positions in the prompt at which other prompts may diverge; checkpoints are taken there. ``stop_ids``: the
    tokens that end a reply, None for the model's. ``thought_marks``, ``thinking``, ``stops``: see ``generate``.
    ``constraint``: of this reply alone, not begun yet. ``reserve``: tokens of a reply that must fit besides the prompt.
    ``drop_space``: leave out a space at the beginning of the text, which chat templates write in history but not in a
    generation prompt. ``documents``: hashes of the documents in the prompt, for the store (see ``PrefixCache.documents``).
    ``lookup``: whether to draft from earlier text, see GenerationOptions. ``markup``: tokens that are shown as these texts.
    ``logprobs``: report the log-probability of every token of the reply, with so many alternatives; None: do not.
    ``prompt_logprobs``: also those of the prompt, which is then read from its beginning in a state of its own that is not kept.
    ``adapters``: the LoRA adapters to apply, None for the model's.
    """

    ids: Sequence[int]
    boundaries: Sequence[int] = ()
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stops: Sequence[str] = ()
    stop_ids: frozenset[int] | None = None
    thought_marks: tuple[int | None, int | None] = (None, None)
    thinking: bool = False
    constraint: ReplyConstraint | None = None
    reserve: int = 0
    drop_space: bool = False
    documents: Sequence[str] = ()
    lookup: bool | None = None
    markup: Mapping[int, str] = field(default_factory=dict)
    logprobs: int | None = None
    prompt_logprobs: bool = False
    adapters: AdapterSet | None = None

    @property
    def constrained(self) -> bool:
        """Whether a constraint decides all of the reply."""
        return self.constraint is not None and self.constraint.whole


#: Takes the next tokens of a prompt (True) or of a reply with their log-probabilities.
OnLogprobs: TypeAlias = Callable[[Sequence[TokenLogprob], bool], None]


class Job:
    """A request in an engine. Its fields change while the engine steps; read them from any thread.

    ``phase``; ``result``: the reply so far; ``counters``: what it cost; ``error``: why it failed, None if it did not;
    ``tokens_read`` of the prompt's tokens are in the state; ``first_token_seconds``: from ``submit`` to the first token, None
    before. ``wait_stored``: once the job has ended, waits until what it left is in the store; None without one.
    """

    def __init__(
        self,
        request: Request,
        reply: Reply,
        sampler: Sampler,
        on_text: Callable[[str], None] | None,
        on_read: Callable[[int], None] | None,
        on_end: Callable[[Job], None] | None,
        on_logprobs: OnLogprobs | None = None,
    ) -> None:
        self.request = request
        self.phase: Phase = "waiting"
        self.error: Exception | None = None
        self.tokens_read = 0
        self.counters = Counters()
        self.first_token_seconds: float | None = None
        self.cancelled = False
        self.wait_stored: Callable[[], None] | None = None
        self._space = request.drop_space
        #: See ``Request.adapters``; the engine puts the model's in the place of None.
        self.adapters: AdapterSet | None = request.adapters
        self.ids = list(request.ids)
        self.reply, self.sampler = reply, sampler
        self.on_text, self.on_read, self.on_end, self.on_logprobs = on_text, on_read, on_end, on_logprobs
        # Log-probabilities that were not passed on, and how many were.
        self._scores: list[TokenLogprob] = []
        self._scored = 0
        self.submitted = time.perf_counter()
        # Where reading it from the beginning stops, and the same prompt for quick comparisons.
        self.boundaries = sorted(set(request.boundaries) | {len(self.ids)})
        self.stops: list[int] = []
        self.stop_ids: frozenset[int] = frozenset()
        self.array = np.asarray(self.ids, dtype=np.int64)

    @property
    def result(self) -> Generated:
        """The reply so far."""
        return self.reply.result

    @property
    def text(self) -> str:
        """The text of the reply so far, without thoughts."""
        text = self.result.text
        return text[1:] if self.request.drop_space and text.startswith(" ") else text

    def push(self, token: int, logits: Logits) -> None:
        """Add a token, drawn from ``logits``, to the reply, and pass on the text that it completes; before that, the
        log-probabilities of the tokens that are certain to stay in the reply."""
        thinking = self.result.thinking
        piece = self.reply.push(token)
        if self.request.logprobs is not None and token not in self.stop_ids:
            import torch

            row = torch.from_numpy(np.asarray(logits, dtype=np.float32))[None]
            (score,) = token_logprobs(row, [token], self.request.logprobs)
            # The marks around a thought belong to it.
            self._scores.append(replace(score, thought=thinking or self.result.thinking))
            self._pass_scores(self.reply.settled)
        self.say(piece)

    def finish(self) -> None:
        """Pass on what was held back, at the end of the reply."""
        piece = self.reply.flush()
        self._pass_scores(len(self.result.ids))
        self.say(piece)

    def _pass_scores(self, until: int) -> None:
        """Pass on the log-probabilities of the reply's tokens up to the position ``until``."""
        count = max(0, until - self._scored)
        if self._scores and count and self.on_logprobs is not None:
            self.on_logprobs(self._scores[:count], False)
            del self._scores[:count]
            self._scored = until

    def score_prompt(self, at: int, logits: torch.Tensor) -> None:
        """Pass on the log-probabilities of the prompt's tokens that ``logits`` float32 [T, vocab] predict: those after the
        tokens from position ``at``. Raises JambaError when they are not finite."""
        if self.on_logprobs is None:
            return
        first = [TokenLogprob(self.ids[0], None)] if at == 0 else []
        predicted = self.ids[at + 1 : at + 1 + len(logits)]
        self.on_logprobs([*first, *token_logprobs(logits, predicted, self.request.logprobs or 0)], True)

    def say(self, piece: str) -> None:
        """Pass a piece of text on."""
        if self._space and not isinstance(piece, Thought) and piece:
            self._space = False
            piece = piece[1:] if piece.startswith(" ") else piece
        if piece and self.on_text is not None:
            self.on_text(piece)

    def cancel(self) -> None:
        """End the job at the engine's next step, as ``interrupted``; what was read stays usable for other requests."""
        self.cancelled = True


def reading_stops(at: int, end: int, boundaries: Sequence[int], chunk: int) -> list[int]:
    """Where the passes of a prefill from ``at`` to ``end`` stop; ``boundaries`` ascend."""
    stops: list[int] = []
    while at < end:
        at = next_stop(at, end, boundaries, chunk)
        stops.append(at)
    return stops
