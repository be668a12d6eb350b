"""Perplexity of a model on a text, with its standard error.

A text is cut into windows that each start from an empty state. In a continuous text the first half of a window is context
only, as in llama.cpp's perplexity tool; separate documents are scored whole, one window per document.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jambacli.errors import JambaError

if TYPE_CHECKING:
    import torch

    from jambacli.api import Jamba
    from jambacli.text.tokenizer import Tokenizer

#: Separates the documents of a text.
DOCUMENT_BREAK = "\f"
_PIECE = 512


@dataclass(frozen=True)
class Window:
    """Token ids that start from an empty state; the predictions of ``ids[first:]`` are scored."""

    ids: list[int]
    first: int


@dataclass(frozen=True)
class Perplexity:
    """``value`` = exp(``nll``) with its standard error ``error``, over ``tokens`` scored tokens in ``windows`` windows.

    ``nll`` is the mean negative log likelihood in nats, ``nll_error`` its standard error (deviation / sqrt(tokens)).
    """

    value: float
    error: float
    nll: float
    nll_error: float
    tokens: int
    windows: int


def cut(tokenizer: Tokenizer, text: str, ctx: int, max_tokens: int | None = None) -> list[Window]:
    """Windows of at most ``ctx`` tokens, bos first: one per document of a text with DOCUMENT_BREAKs, else consecutive.

    ``max_tokens``: use at most this many tokens of the text. Raises JambaError if no token would be scored.
    """
    for option, size in (("ctx", ctx), ("tokens", max_tokens)):
        if size is not None and size < 4:
            raise JambaError("leaves nothing to score; give at least 4", field=option, value=size)
    start = [tokenizer.bos_id] if tokenizer.bos_id is not None and tokenizer.add_bos else []
    if DOCUMENT_BREAK in text:
        documents = [start + tokenizer.encode(part.strip("\n")) for part in text.split(DOCUMENT_BREAK) if part.strip()]
        windows, left = [], max_tokens
        for document in documents:
            ids = document[: ctx if left is None else min(ctx, left)]
            left = None if left is None else left - len(ids)
            windows += [Window(ids, 1)] if len(ids) > 1 else []
    else:
        ids, room = tokenizer.encode(text), ctx - len(start)
        if max_tokens is not None:
            ids = ids[: max_tokens // ctx * room + max(0, max_tokens % ctx - len(start))]
        parts = [start + ids[i : i + room] for i in range(0, len(ids), room)]
        whole = [part for part in parts if len(part) == ctx]
        windows = [Window(part, ctx // 2) for part in whole] if whole else [Window(parts[0], 1)] if ids else []
    if not any(len(w.ids) > w.first for w in windows):
        raise JambaError("the text is too short: there is no token to predict")
    return windows


def perplexity(
    model: Jamba, windows: Sequence[Window], kv_type: str = "f16", done: Callable[[int], None] | None = None
) -> Perplexity:
    """Perplexity of ``model`` over ``windows``; ``done(tokens)`` is called after each.

    Raises JambaError for logits that are not finite.
    """
    import torch

    losses: list[torch.Tensor] = []
    for window, logits in scored(model, windows, kv_type):
        targets = torch.tensor(window.ids[window.first :])[:, None]
        losses.append(-log_softmax(logits).gather(1, targets)[:, 0])
        if done is not None:
            done(len(window.ids))
    each = torch.cat(losses)
    mean = float(each.mean())
    if not math.isfinite(mean):
        raise JambaError(f"the logits of {model.name} are not finite; the file is probably damaged")
    error = float(each.std(unbiased=True)) / math.sqrt(len(each)) if len(each) > 1 else math.nan
    return Perplexity(math.exp(mean), math.exp(mean) * error, mean, error, len(each), len(windows))


def scored(model: Jamba, windows: Sequence[Window], kv_type: str) -> Iterator[tuple[Window, torch.Tensor]]:
    """Each window with the logits float32 [scored tokens, n_vocab] that predict its scored tokens."""
    import torch

    for window in windows:
        yield window, torch.cat(list(scored_pieces(model, window, kv_type)))


def scored_pieces(model: Jamba, window: Window, kv_type: str) -> Iterator[torch.Tensor]:
    """The logits that predict a window's scored tokens: float32 [at most 512, n_vocab] on the CPU, in order.

    They have the bits of ``Jamba.logits``; those of the other tokens are not kept, and where possible not computed.
    """
    import torch

    ids = torch.as_tensor(window.ids[:-1], dtype=torch.int64)
    state, skip = model.model.new_state(len(ids), kv_type), window.first - 1
    for part in ids.split(_PIECE):
        logits = model.model.forward(part, state, logits="all" if skip < len(part) else "none")
        if logits is not None:
            yield logits[skip:].cpu()
        skip = max(0, skip - len(part))


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Log probabilities in float64: for probabilities near 1 a float32 logarithm has few digits."""
    return logits.double().log_softmax(-1)
