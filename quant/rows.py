"""Rows of weights as bytes in host memory, for callers that work without torch, and the names of rows in errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.formats import Format

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class Rows:
    """Whole rows of ``n`` values each, as a file holds them.

    ``data`` is uint8 [bytes], C-contiguous. ``scale`` is float32 [rows], a factor per row, for ExpertsInt8 ("i8") and
    for NVFP4 that has factors, and None otherwise.
    """

    data: np.ndarray
    format: Format
    n: int
    scale: np.ndarray | None = None

    @property
    def count(self) -> int:
        """The number of rows."""
        return int(self.data.size // self.format.row_bytes(self.n))

    def tensor(self) -> torch.Tensor:
        """The values of a float format (f32, f16 or bf16) as a tensor [rows, n] over the same memory."""
        import torch

        dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[self.format.name]
        return host_tensor(self.data).view(dtype).view(-1, self.n)


def host_tensor(array: np.ndarray) -> torch.Tensor:
    """``array`` as a torch tensor over the same memory. It must not be written to if the array is read-only."""
    import warnings

    import torch

    with warnings.catch_warnings():
        # torch has no read-only tensors and warns about each such array.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def row_name(row: int, shape: tuple[int, ...]) -> str:
    """``row 7`` of a matrix, ``row [2, 7]`` of a stack of matrices."""
    if len(shape) <= 2:
        return f"row {row}"
    index = []
    for size in reversed(shape[:-1]):
        index.append(row % size)
        row //= size
    return f"row {index[::-1]}"
