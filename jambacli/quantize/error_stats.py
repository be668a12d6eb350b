"""The error of quantized weights: RMS and maximum, summed panel by panel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass
class ErrorStats:
    """Sums over the weights added so far; ``worst`` is the largest absolute error."""

    weights: int = 0
    squares: float = 0.0
    error_squares: float = 0.0
    worst: float = 0.0

    def add(self, values: np.ndarray, quantized: np.ndarray) -> None:
        """Add weights: the original ``values`` and the ``quantized`` ones, float32 of one shape; the latter is overwritten."""
        import numpy as np

        difference = np.subtract(quantized, values, out=quantized).reshape(-1)
        flat = values.reshape(-1)
        self.weights += flat.size
        self.squares += float(np.einsum("i,i->", flat, flat, dtype=np.float64))
        self.error_squares += float(np.einsum("i,i->", difference, difference, dtype=np.float64))
        self.worst = max(self.worst, float(np.abs(difference, out=difference).max(initial=0.0)))

    def merge(self, other: ErrorStats) -> None:
        """Add the sums of other weights."""
        self.weights += other.weights
        self.squares += other.squares
        self.error_squares += other.error_squares
        self.worst = max(self.worst, other.worst)

    @property
    def rms(self) -> float:
        """Root of the mean squared error."""
        return math.sqrt(self.error_squares / self.weights) if self.weights else 0.0

    @property
    def relative(self) -> float:
        """``rms`` divided by the root mean square of the weights; 0 where all weights are 0."""
        return math.sqrt(self.error_squares / self.squares) if self.squares else 0.0
