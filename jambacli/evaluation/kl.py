"""Compares a model's next-token distribution with a reference's: Kullback-Leibler divergence and top-token agreement."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jambacli.errors import JambaError
from jambacli.evaluation.perplexity import Window, log_softmax, scored

if TYPE_CHECKING:
    from jambacli.api import Jamba


@dataclass(frozen=True)
class Divergence:
    """KL(reference || model) over the scored tokens in nats, and how often both have the same most likely token (``top1``).

    ``mean_error`` and ``top1_error`` are standard errors; ``nll`` and ``reference_nll`` are mean negative log likelihoods.
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
    import torch

    ours, theirs = model.config.vocab_size, reference.config.vocab_size
    if ours != theirs:
        raise JambaError(f"{model.name} has {ours:,} tokens and {reference.name} {theirs:,}: they cannot be compared")
    divergences, same, losses, reference_losses = [], [], [], []
    pairs = zip(scored(model, windows, kv_type), scored(reference, windows, kv_type), strict=True)
    for (window, logits), (_, expected) in pairs:
        p, q = log_softmax(expected), log_softmax(logits)
        divergences.append((p.exp() * (p - q)).sum(-1).clamp_min(0.0))
        same.append(p.argmax(-1) == q.argmax(-1))
        targets = torch.tensor(window.ids[window.first :])[:, None]
        losses.append(-q.gather(1, targets)[:, 0])
        reference_losses.append(-p.gather(1, targets)[:, 0])
        if done is not None:
            done(len(window.ids))
    each, agree = torch.cat(divergences), torch.cat(same).double()
    if not bool(each.isfinite().all()):
        raise JambaError(f"the logits of {model.name} or {reference.name} are not finite; the file is probably damaged")
    n = len(each)
    top1 = float(agree.mean())
    return Divergence(
        mean=float(each.mean()),
        mean_error=float(each.std(unbiased=True)) / math.sqrt(n) if n > 1 else math.nan,
        median=float(each.median()),
        p99=float(each.quantile(0.99)) if n < 1 << 24 else math.nan,
        maximum=float(each.max()),
        top1=top1,
        top1_error=math.sqrt(top1 * (1 - top1) / n),
        nll=float(torch.cat(losses).mean()),
        reference_nll=float(torch.cat(reference_losses).mean()),
        tokens=n,
    )


def random_windows(vocab_size: int, tokens: int, ctx: int, seed: int = 0) -> list[Window]:
    """Windows of uniformly random ids, for models with a made-up vocabulary; all ids but the first of each are scored."""
    import torch

    ctx = min(ctx, tokens)
    if ctx < 2:
        raise JambaError("random tokens need a window of at least 2 tokens")
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocab_size, (max(1, tokens // ctx), ctx), generator=generator)
    return [Window(row.tolist(), 1) for row in ids]
