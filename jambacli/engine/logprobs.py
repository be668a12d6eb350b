"""Log-probabilities of tokens: those of the model, before temperature, penalties, biases and constraints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jambacli.errors import JambaError

if TYPE_CHECKING:
    import torch

#: Prompt tokens of one pass whose logits are all computed: so many rows of the vocabulary are in memory at a time.
SCORED_CHUNK = 512
# Rows that are worked on in float64 at a time.
_ROWS = 64


@dataclass(frozen=True)
class TokenLogprob:
    """A token and the logarithm of its probability, None for the first token of a prompt, which nothing predicts.

    ``top``: the most probable tokens in its place with theirs, most probable first. ``thought``: it is not part of the text.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()
    thought: bool = False


def token_logprobs(logits: torch.Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """The log-probabilities of ``tokens``, each predicted by a row of ``logits`` float32 [>= len(tokens), vocab], with the
    ``top`` most probable ones beside each. Computed in float64. Raises JambaError when logits are not finite."""
    import torch

    found: list[TokenLogprob] = []
    for at in range(0, len(tokens), _ROWS):
        part = tokens[at : at + _ROWS]
        rows = logits[at : at + len(part)].double()
        total = rows.logsumexp(-1, keepdim=True)
        if not bool(torch.isfinite(total).all()):
            raise JambaError("the model computes NaN or infinity: its file is damaged or invalid")
        chosen = (rows.gather(1, torch.tensor(part, device=rows.device)[:, None]) - total)[:, 0].tolist()
        values, ids = (rows - total).topk(min(top, rows.shape[1]), dim=-1)
        for token, logprob, best, names in zip(part, chosen, values.tolist(), ids.tolist(), strict=True):
            found.append(TokenLogprob(token, logprob, tuple(zip(names, best, strict=True))))
    return found
