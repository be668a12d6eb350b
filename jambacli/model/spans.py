"""Several sequences in one step: the spans of tokens that a step appends, and how they are packed into a backend's steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch

from jambacli.errors import JambaError
from jambacli.model.state import SequenceState


@dataclass(frozen=True)
class Span:
    """Tokens to append to one sequence in a step: ``ids`` int64 [T], T >= 1, on the CPU.

    ``logits``: as for ``JambaModel.forward``. ``revocable``: ``state.retract`` may take back any of the last tokens of this
    span until the state's next pass.
    """

    state: SequenceState
    ids: torch.Tensor
    logits: Literal["last", "all", "none"] = "last"
    revocable: bool = False

    @property
    def n_logits(self) -> int:
        """The number of last tokens whose logits are wanted."""
        return {"last": 1, "all": len(self.ids), "none": 0}[self.logits]


@dataclass(frozen=True)
class SpanPiece:
    """What a backend's step takes of one span: ``ids`` int64 [T] after ``past`` tokens, logits of the last ``n_logits``.

    ``slot``: the first slot of the state's history in which conv and ssm before each token are kept; None: not kept.
    """

    state: SequenceState
    ids: torch.Tensor
    past: int
    n_logits: int
    slot: int | None = None


class StepDecoder(Protocol):
    """A backend's fast path for decode: a few tokens through all layers in one call."""

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens for which this is faster than the single operations."""

    def run(self, ids: torch.Tensor, state: SequenceState, n_logits: int) -> torch.Tensor:
        """Append the token ids int64 [T], all in the vocabulary. Returns logits float32 [n_logits, vocab]."""


@runtime_checkable
class SpanDecoder(StepDecoder, Protocol):
    """A StepDecoder that takes the tokens of several sequences in one call.

    A token's results are those of ``run`` with this token alone, to the bit, whatever else is in the call.
    """

    @property
    def max_step_tokens(self) -> int:
        """Maximum number of tokens of all sequences in one call; at least ``max_tokens``."""

    def run_spans(self, pieces: Sequence[SpanPiece]) -> list[torch.Tensor]:
        """Append the pieces, each at most ``max_tokens`` long, to distinct states of one KV type and mode.

        Returns each piece's logits, float32 [n_logits, vocab].
        """


@dataclass
class _Pending:
    """A span on its way through the steps of ``run_in_steps``."""

    index: int
    span: Span
    done: int = 0

    def piece(self, most: int) -> SpanPiece:
        """Its next piece."""
        stop = min(self.done + most, len(self.span.ids))
        before = len(self.span.ids) - stop  # tokens after it
        return SpanPiece(
            self.span.state,
            self.span.ids[self.done : stop],
            self.span.state.position + self.done,
            min(max(self.span.n_logits - before, 0), stop - self.done),
            self.done if self.span.revocable else None,
        )


def check_spans(spans: Sequence[Span], vocab_size: int) -> None:
    """JambaError for no tokens, ids outside the vocabulary or a state that occurs twice; ContextFullError for too many."""
    if any(len(span.ids) == 0 for span in spans):
        raise JambaError("there are no tokens to run")
    if len({id(span.state) for span in spans}) < len(spans):
        raise JambaError("the spans of a step belong to different sequences")
    for span in spans:
        low, high = int(span.ids.min()), int(span.ids.max())
        if low < 0 or high >= vocab_size:
            raise JambaError(f"token {low if low < 0 else high} is not in the vocabulary of {vocab_size}")
        span.state.check_room(len(span.ids))


def run_in_steps(decoder: SpanDecoder, spans: Sequence[Span]) -> list[torch.Tensor]:
    """Append checked spans in as few calls of the decoder as its limits allow. Returns each span's logits.

    A span longer than a call takes is cut: each token's results are the same. Spans of different KV types or modes go into
    different calls.
    """
    parts: list[list[torch.Tensor]] = [[] for _ in spans]
    waiting = [_Pending(i, span) for i, span in enumerate(spans)]
    while waiting:
        for step in _packed(waiting, decoder):
            for item, _ in step:
                if item.done == 0:
                    item.span.state.begin(len(item.span.ids), revocable=item.span.revocable)
            logits = decoder.run_spans([piece for _, piece in step])
            for (item, piece), rows in zip(step, logits, strict=True):
                parts[item.index].append(rows)
                item.done += len(piece.ids)
                if item.done == len(item.span.ids):
                    item.span.state.commit(item.done, revocable=item.span.revocable)
        waiting = [item for item in waiting if item.done < len(item.span.ids)]
    return [rows[0] if len(rows) == 1 else torch.cat(rows) for rows in parts]


def _packed(waiting: Sequence[_Pending], decoder: SpanDecoder) -> Iterator[list[tuple[_Pending, SpanPiece]]]:
    """The next piece of each span, in steps of one KV type and mode."""
    groups: dict[tuple[str, bool], list[_Pending]] = {}
    for item in waiting:
        groups.setdefault((item.span.state.kv_type, item.span.state.precise), []).append(item)
    for group in groups.values():
        step: list[tuple[_Pending, SpanPiece]] = []
        tokens = 0
        for item in group:
            piece = item.piece(decoder.max_tokens)
            if step and tokens + len(piece.ids) > decoder.max_step_tokens:
                yield step
                step, tokens = [], 0
            step.append((item, piece))
            tokens += len(piece.ids)
        yield step
