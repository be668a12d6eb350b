"""How far a model's next-token distribution is from a reference's: Kullback-Leibler divergence, agreement on the likeliest.

Knows nothing of files, names or how results are shown.
"""

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
    """KL(reference || model) over the scored tokens, in nats, and how often both find the same token likeliest.

    ``mean_error`` and ``top1_error`` are standard errors; ``nll`` and ``reference_nll`` the mean negative log likelihoods.
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
    """Compare ``model`` with ``reference`` on the same windows. JambaError where their vocabularies differ in size."""
    import torch

    ours, theirs = model.config.vocab_size, reference.config.vocab_size
    if ours != theirs:
        raise JambaError(f"{model.name} has {ours:,} tokens and {reference.name} {theirs:,}: they cannot be compared")
    divergences, same, losses, wanted_losses = [], [], [], []
    pairs = zip(scored(model, windows, kv_type), scored(reference, windows, kv_type), strict=True)
    for (window, logits), (_, expected) in pairs:
        p, q = log_softmax(expected), log_softmax(logits)
        divergences.append((p.exp() * (p - q)).sum(-1).clamp_min(0.0))
        same.append(p.argmax(-1) == q.argmax(-1))
        wanted = torch.tensor(window.ids[window.first :])[:, None]
        losses.append(-q.gather(1, wanted)[:, 0])
        wanted_losses.append(-p.gather(1, wanted)[:, 0])
        if done is not None:
            done(len(window.ids))
    each, agree = torch.cat(divergences), torch.cat(same).double()
    if not bool(each.isfinite().all()):
        raise JambaError(
            f"{model.name} or {reference.name} gives logits that are no numbers; the file is damaged or unsound"
        )
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
        reference_nll=float(torch.cat(wanted_losses).mean()),
        tokens=n,
    )


def random_windows(vocab_size: int, tokens: int, ctx: int, seed: int = 0) -> list[Window]:
    """Windows of uniformly random ids (for models whose vocabulary is made up); all but the first of each count."""
    import torch

    ctx = min(ctx, tokens)
    if ctx < 2:
        raise JambaError("random tokens need a window of at least 2")
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocab_size, (max(1, tokens // ctx), ctx), generator=generator)
    return [Window(row.tolist(), 1) for row in ids]
