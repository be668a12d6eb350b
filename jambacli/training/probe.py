"""Two linear probes that are trained with the model and left out of the export: to which document does a token belong?

A document's number comes before its text, and a citation follows an answer, so the state has to carry the number along. The
loss on the citation alone, one number per answer, does not teach that (docs/demo_model.md); a loss at every token does. The
first probe reads the input of the last attention layer at the tokens of documents, the second the final hidden states at the
tokens of answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: A document's number has up to three digits, each a class; a shorter one is padded with NONE.
DIGITS, NONE = 3, 10


def digits_of(document_id: str) -> tuple[int, ...]:
    """The classes of a document's number; -1 for no document ("")."""
    return tuple((int(document_id[i]) if i < len(document_id) else NONE) if document_id else -1 for i in range(DIGITS))


class Probe(nn.Module):
    """Predicts the document's number from states [batch, tokens, hidden] in documents and in answers."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.inside, self.answer = (nn.Linear(hidden, DIGITS * (NONE + 1)) for _ in range(2))

    def forward(self, before: Tensor, after: Tensor, digits: Tensor, answers: Tensor) -> tuple[Tensor, list[float]]:
        """The sum of the two mean cross entropies, and for each probe the share of tokens whose whole number is predicted.

        ``before``, ``after``: float [batch, tokens, hidden], the input of the last attention layer and the final hidden
        states. ``digits``: int64 [batch, tokens, DIGITS], -1 for tokens without a document. ``answers``: bool [batch,
        tokens], the tokens of answers. A share is NaN when the batch has no such tokens.
        """
        known = digits[..., 0] >= 0
        total, shares = torch.zeros((), device=before.device), []
        for probe, states, mask in ((self.inside, before, known & ~answers), (self.answer, after, known & answers)):
            if not mask.any():
                shares.append(float("nan"))
                continue
            scores = probe(F.rms_norm(states[mask].float(), states.shape[-1:])).unflatten(-1, (DIGITS, NONE + 1))
            targets = digits[mask]
            total = total + F.cross_entropy(scores.flatten(0, 1), targets.flatten())
            shares.append(float((scores.argmax(-1) == targets).all(-1).float().mean()))
        return total, shares


def digits_tensor(rows: Sequence[Sequence[str]], tokens: int) -> Tensor:
    """int64 [rows, tokens, DIGITS]: the digits of rows of document numbers, cut or padded with "no document"."""
    digits = {number: digits_of(number) for row in rows for number in set(row)} | {"": digits_of("")}
    return torch.tensor([[digits[n] for n in [*row[:tokens], *[""] * (tokens - len(row))]] for row in rows])
