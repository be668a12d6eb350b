"""Two linear probes that a model is trained with and exported without: which document a token stands in, or was taken from.

A document's number stands before its text, and a citation comes after an answer: each has to be carried along by a state.
The loss on the citation alone, one number in an answer, does not teach that (docs/demo_model.md); asked at every
token, it is learnt. The first probe reads what goes into the last attention layer, at the tokens of documents; the second
the final hidden states, at the tokens of answers. Knows nothing of the model beyond those two, nor of text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: A document's number is up to three digits, each a class; a shorter one ends with NONE.
DIGITS, NONE = 3, 10


def digits_of(home: str) -> tuple[int, ...]:
    """The classes of a document's number, -1 for no document."""
    return tuple((int(home[i]) if i < len(home) else NONE) if home else -1 for i in range(DIGITS))


class Probe(nn.Module):
    """Which document: from states [batch, tokens, hidden] in it, and from those of answers about it."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.inside, self.answer = (nn.Linear(hidden, DIGITS * (NONE + 1)) for _ in range(2))

    def forward(self, before: Tensor, after: Tensor, homes: Tensor, answers: Tensor) -> tuple[Tensor, list[float]]:
        """The two mean cross entropies, added, and the shares of tokens whose whole number is the likeliest.

        ``before`` and ``after``: [batch, tokens, hidden]; ``homes``: int64 [batch, tokens, DIGITS], -1 where there is no
        document; ``answers``: bool [batch, tokens], where a token belongs to an answer. A share is NaN where nothing was asked.
        """
        known = homes[..., 0] >= 0
        total, shares = torch.zeros((), device=before.device), []
        for probe, states, where in ((self.inside, before, known & ~answers), (self.answer, after, known & answers)):
            if not where.any():
                shares.append(float("nan"))
                continue
            guesses = probe(F.rms_norm(states[where].float(), states.shape[-1:])).unflatten(-1, (DIGITS, NONE + 1))
            wanted = homes[where]
            total = total + F.cross_entropy(guesses.flatten(0, 1), wanted.flatten())
            shares.append(float((guesses.argmax(-1) == wanted).all(-1).float().mean()))
        return total, shares


def homes_tensor(rows: Sequence[Sequence[str]], tokens: int) -> Tensor:
    """int64 [rows, tokens, DIGITS] of rows of document numbers, cut or filled up with none."""
    classes = {home: digits_of(home) for row in rows for home in set(row)} | {"": digits_of("")}
    return torch.tensor([[classes[h] for h in [*row[:tokens], *[""] * (tokens - len(row))]] for row in rows])
