"""Token ids for the small model, and the logits of computing them in one go."""

from __future__ import annotations

import numpy as np
import torch

from tests.support.small_models import small_model


def ids(n: int, seed: int = 0) -> list[int]:
    """``n`` random tokens of the small model."""
    return torch.randint(10, 300, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def straight(tokens: list[int]) -> np.ndarray:
    """The logits after ``tokens``, computed without checkpoints or a store."""
    return small_model().logits(tokens, chunk=64)[-1].numpy()


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether logits agree but for rounding in float32."""
    return bool(np.abs(a - b).max() <= 1e-4 * np.abs(b).max())
