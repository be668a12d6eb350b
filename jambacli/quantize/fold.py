"""Changes of weights that leave what a model computes as it is, in real arithmetic, and make it easier to quantize.

``RotatedHeads``: every head of keys, values and queries times one orthogonal matrix. Jamba has no positional encoding between
the projections and the products of attention, so the matrix folds into W_q, W_k and W_v, and its inverse into W_o: scores stay
what they are, because both factors are rotated, and the output is rotated back. What changes is the KV cache: the few large
values of a head are spread over all of it, so that caches of 8, 5 or 4 bits lose less. The file stays plain GGUF.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from jambacli.model.config import JambaConfig

_SEED = 24
_HEADS = re.compile(r"blk\.\d+\.attn_([qkv]|output)\.weight")


class Fold(Protocol):
    """A change of some of a model's weights."""

    def changes(self, name: str) -> bool:
        """Whether it changes the tensor of this GGUF name."""

    def rows(self, name: str, first: int, count: int, read: Callable[[int, int], np.ndarray]) -> np.ndarray:
        """Rows ``first`` to ``first + count`` of a changed tensor, float32 [count, n]; ``read(first, count)`` gives the
        original's as float32."""

    def importance(self, name: str, columns: np.ndarray) -> np.ndarray:
        """The importance of the columns of a tensor, float32 [n], after the change, from that before it."""


@dataclass(frozen=True)
class RotatedHeads:
    """See the module. The matrix is Hadamard's with fixed signs, on pieces as long as the largest power of two in ``head_dim``.

    The signs of the results keep it from being undone by a runtime that multiplies with Hadamard's matrix once more, as ours
    does for caches of few bits.
    """

    head_dim: int

    @classmethod
    def of(cls, config: JambaConfig) -> RotatedHeads:
        """For a model of this configuration."""
        return cls(config.head_dim)

    def changes(self, name: str) -> bool:
        """See ``Fold``: the projections of attention."""
        return _HEADS.fullmatch(name) is not None

    def rows(self, name: str, first: int, count: int, read: Callable[[int, int], np.ndarray]) -> np.ndarray:
        """See ``Fold``. Computed in float64 and rounded once. At most a head's rows more than asked for are read."""
        import numpy as np

        matrix, n = self.matrix(), self.head_dim
        if name.endswith("attn_output.weight"):
            x = read(first, count).astype(np.float64)
            return (x.reshape(-1, n) @ matrix.T).reshape(x.shape).astype(np.float32)
        begin, end = first // n * n, -(-(first + count) // n) * n
        heads = read(begin, end - begin).astype(np.float64)
        mixed = matrix @ heads.reshape(-1, n, heads.shape[1])
        return mixed.reshape(heads.shape)[first - begin : first - begin + count].astype(np.float32)

    def importance(self, name: str, columns: np.ndarray) -> np.ndarray:
        """See ``Fold``. The inputs of the output projection are mixed within a piece, so each gets the piece's mean. That is
        exact where they are uncorrelated."""
        if not name.endswith("attn_output.weight"):
            return columns
        import numpy as np

        piece = self.head_dim & -self.head_dim
        return np.repeat(columns.reshape(-1, piece).mean(axis=1), piece).astype(np.float32)

    def matrix(self) -> np.ndarray:
        """The orthogonal matrix, float64 [head_dim, head_dim]: a rotated head is the matrix times it."""
        import numpy as np

        piece = self.head_dim & -self.head_dim
        hadamard = np.ones((1, 1))
        while len(hadamard) < piece:
            hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
        signs = np.random.RandomState(_SEED).choice((-1.0, 1.0), self.head_dim)  # this generator's numbers never change
        blocks = np.kron(np.eye(self.head_dim // piece), hadamard / np.sqrt(piece))
        rotation: np.ndarray = blocks * signs[:, None]
        return rotation
