"""Compares a model's next-token distribution with a reference's, over all tokens, by position and by text.

The figures and their errors are those that llama-perplexity prints for the same comparison; a standard error takes the
tokens as independent. Percentiles have the half width of the interval that holds the true one in two of three samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jambacli.errors import JambaError
from jambacli.evaluation.base_logits import BaseLogits
from jambacli.evaluation.perplexity import Window, log_softmax, scored_pieces

if TYPE_CHECKING:
    import numpy as np
    import torch

    from jambacli.api import Jamba

#: A file of log probabilities says nothing about tokens that are less probable than exp(this).
_LEAST = -16.0
#: Values of logits that are compared at a time.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class TokenFigures:
    """One figure per scored token, arrays [tokens].

    float64 ``kl``: KL(reference || model) in nats; ``nll``, ``reference_nll``: negative log likelihoods of the correct token;
    ``p_change``: how much more probable the model finds it. bool ``same``: both have the same most probable token. int64
    ``position``: of the token in its window; ``window``: number of the window.
    """

    kl: np.ndarray
    nll: np.ndarray
    reference_nll: np.ndarray
    p_change: np.ndarray
    same: np.ndarray
    position: np.ndarray
    window: np.ndarray

    def where(self, chosen: np.ndarray) -> TokenFigures:
        """The figures of the tokens that a bool array [tokens] chooses."""
        return TokenFigures(**{name: values[chosen] for name, values in vars(self).items()})


@dataclass(frozen=True)
class Divergence:
    """KL(reference || model) over the scored tokens in nats, and how often both have the same most likely token (``top1``).

    ``p99``, ``p999``: percentiles. ``rms_p`` and ``mean_p``: of the change in the correct token's probability. ``ln_ratio``:
    of the perplexities, ``ratio`` = exp of it. Names that end in ``_error`` are standard errors; NaN where there are too few
    tokens for one. ``nll`` and ``reference_nll`` are mean negative log likelihoods.
    """

    mean: float
    mean_error: float
    median: float
    p99: float
    maximum: float
    top1: float
    top1_error: float
    nll: float
    reference_nll: float
    tokens: int
    median_error: float = math.nan
    p99_error: float = math.nan
    p999: float = math.nan
    p999_error: float = math.nan
    rms_p: float = math.nan
    rms_p_error: float = math.nan
    mean_p: float = math.nan
    mean_p_error: float = math.nan
    ln_ratio: float = math.nan
    ln_ratio_error: float = math.nan
    ratio: float = math.nan
    ratio_error: float = math.nan


@dataclass(frozen=True)
class PositionRange:
    """The divergence at the tokens ``first`` to ``last`` of the windows, both counted."""

    first: int
    last: int
    divergence: Divergence


def divergence(
    model: Jamba,
    reference: Jamba,
    windows: Sequence[Window],
    kv_type: str = "f16",
    done: Callable[[int], None] | None = None,
) -> Divergence:
    """Compare ``model`` with ``reference`` on ``windows``; ``done(tokens)`` is called after each window.

    Raises JambaError if their vocabularies differ in size or logits are not finite.
    """
    return statistics(compare(model, reference, windows, kv_type, done))


def compare(
    model: Jamba,
    reference: Jamba | BaseLogits,
    windows: Sequence[Window],
    kv_type: str = "f16",
    done: Callable[[int], None] | None = None,
) -> TokenFigures:
    """The figures of every scored token of ``windows``; of a BaseLogits, these are ``reference.chunks.windows(...)``.

    Raises JambaError if the vocabularies differ in size or logits are not finite, BadFileError for a damaged file.
    """
    import numpy as np
    import torch

    ours = model.config.vocab_size
    theirs = reference.n_vocab if isinstance(reference, BaseLogits) else reference.config.vocab_size
    if ours != theirs:
        raise JambaError(f"{model.name} has {ours:,} tokens and {reference.name} {theirs:,}: they cannot be compared")
    parts: list[list[torch.Tensor]] = []
    for number, window in enumerate(windows):
        first = window.first
        for logits, expected in _pairs(model, reference, window, number, kv_type):
            targets = torch.tensor(window.ids[first : first + len(logits)])
            figures = _figures(log_softmax(logits), expected, targets, exact=not isinstance(reference, BaseLogits))
            positions = torch.arange(first, first + len(logits))
            parts.append([*figures, positions, torch.full_like(positions, number)])
            first += len(logits)
        if done is not None:
            done(len(window.ids))
    if not parts:
        raise JambaError("the text is too short: there is no token to predict")
    result = TokenFigures(*(torch.cat(values).numpy() for values in zip(*parts, strict=True)))
    if not np.isfinite(result.kl).all():
        raise JambaError(f"the logits of {model.name} or {reference.name} are not finite; the file is probably damaged")
    return result


def _pairs(
    model: Jamba, reference: Jamba | BaseLogits, window: Window, number: int, kv_type: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A window's logits float32 and the reference's log probabilities float64, both [some, n_vocab], in order."""
    pieces = None if isinstance(reference, BaseLogits) else scored_pieces(reference, window, kv_type)
    rows, first = max(1, _BLOCK // model.config.vocab_size), 0
    for logits in scored_pieces(model, window, kv_type):
        known = None if pieces is None else next(pieces)
        for start in range(0, len(logits), rows):
            part = logits[start : start + rows]
            if isinstance(reference, BaseLogits):
                expected = reference.log_probabilities(number, first + start, len(part))
            else:
                assert known is not None
                expected = log_softmax(known[start : start + rows])
            yield part, expected
        first += len(logits)


def _figures(q: torch.Tensor, p: torch.Tensor, targets: torch.Tensor, exact: bool) -> list[torch.Tensor]:
    """kl, nll, reference_nll, p_change and same of log probabilities float64 [rows, n_vocab] of the model and the reference."""
    terms = p.exp() * (p - q)
    kl = terms.sum(-1).clamp_min(0.0) if exact else terms.where(p > _LEAST, 0.0).sum(-1)
    ours, theirs = (x.gather(1, targets[:, None])[:, 0] for x in (q, p))
    return [kl, -ours, -theirs, ours.exp() - theirs.exp(), q.argmax(-1) == p.argmax(-1)]


def statistics(figures: TokenFigures) -> Divergence:
    """The figures of all tokens in one; of at least one token."""
    import numpy as np

    n = len(figures.kl)
    mean, mean_error = _mean(figures.kl)
    ordered = np.sort(figures.kl)
    top1 = float(figures.same.mean())
    square, square_error = _mean(figures.p_change**2)
    rms = math.sqrt(square)
    mean_p, mean_p_error = _mean(figures.p_change)
    ln_ratio, ln_ratio_error = _mean(figures.nll - figures.reference_nll)
    ratio = math.exp(min(ln_ratio, 700.0))
    return Divergence(
        mean=mean,
        mean_error=mean_error,
        median=float(np.quantile(ordered, 0.5)),
        median_error=_quantile_error(ordered, 0.5),
        p99=float(np.quantile(ordered, 0.99)),
        p99_error=_quantile_error(ordered, 0.99),
        p999=float(np.quantile(ordered, 0.999)),
        p999_error=_quantile_error(ordered, 0.999),
        maximum=float(ordered[-1]),
        top1=top1,
        top1_error=math.sqrt(top1 * (1 - top1) / (n - 1)) if n > 1 else math.nan,
        rms_p=rms,
        rms_p_error=square_error / (2 * rms) if rms else square_error,
        mean_p=mean_p,
        mean_p_error=mean_p_error,
        ln_ratio=ln_ratio,
        ln_ratio_error=ln_ratio_error,
        ratio=ratio,
        ratio_error=ratio * ln_ratio_error,
        nll=float(figures.nll.mean()),
        reference_nll=float(figures.reference_nll.mean()),
        tokens=n,
    )


def by_position(figures: TokenFigures, parts: int = 4) -> list[PositionRange]:
    """The divergence in equal parts of the scored positions, those without a token left out."""
    import numpy as np

    first, last = int(figures.position.min()), int(figures.position.max())
    edges = np.linspace(first, last + 1, parts + 1).round().astype(int)
    ranges = []
    for low, high in itertools.pairwise(edges):
        chosen = (figures.position >= low) & (figures.position < high)
        if chosen.any():
            ranges.append(PositionRange(int(low), int(high) - 1, statistics(figures.where(chosen))))
    return ranges


def by_text(figures: TokenFigures, windows: Sequence[int]) -> list[Divergence]:
    """The divergence of each of several texts that follow one another; ``windows``: the number of windows of each."""

    found, first = [], 0
    for count in windows:
        chosen: np.ndarray = (figures.window >= first) & (figures.window < first + count)
        found.append(statistics(figures.where(chosen)))
        first += count
    return found


def _mean(values: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error."""
    n = len(values)
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan


def _quantile_error(ordered: np.ndarray, share: float) -> float:
    """Half the distance between the values one standard deviation of the rank below and above; NaN if these do not exist."""
    n = len(ordered)
    rank, spread = share * (n - 1), math.sqrt(n * share * (1 - share))
    low, high = math.floor(rank - spread), math.ceil(rank + spread)
    return float(ordered[high] - ordered[low]) / 2 if low >= 0 and high < n else math.nan


def random_windows(vocab_size: int, tokens: int, ctx: int, seed: int = 0) -> list[Window]:
    """Windows of uniformly random ids, for models with a made-up vocabulary; all ids but the first of each are scored."""
    import torch

    ctx = min(ctx, tokens)
    if ctx < 2:
        raise JambaError("random tokens need a window of at least 2 tokens")
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocab_size, (max(1, tokens // ctx), ctx), generator=generator)
    return [Window(row.tolist(), 1) for row in ids]
