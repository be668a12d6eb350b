"""Panels of rows from one format to another, on any device; knows nothing of files, models or which format is wanted.

A panel is a run of whole rows small enough to stay near the processor. With the C++ library built and the work on the
CPU, torch is never imported: the rows are read where they lie and encoded straight into the caller's buffer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quant import native
from quant.formats import Format
from quant.scales import overflowed_row

if TYPE_CHECKING:
    import numpy as np

FLOATS = ("f32", "f16", "bf16")


class BadRowError(ValueError):
    """A row that cannot be encoded: ``row`` within the panel, ``problem`` what is wrong with it."""

    def __init__(self, row: int, problem: str) -> None:
        super().__init__(f"row {row} {problem}")
        self.row, self.problem = row, problem


@dataclass
class Error:
    """Sums over the weights seen so far of how far their encoding is from them."""

    weights: int = 0
    squares: float = 0.0
    """Sum of squared weights."""
    error_squares: float = 0.0
    worst: float = 0.0
    """Largest absolute difference."""

    def add(self, values: np.ndarray, decoded: np.ndarray) -> None:
        """Count a panel: float32 arrays of one shape, ``decoded`` is overwritten."""
        import numpy as np

        difference = np.subtract(decoded, values, out=decoded).reshape(-1)
        flat = values.reshape(-1)
        self.weights += flat.size
        self.squares += float(np.einsum("i,i->", flat, flat, dtype=np.float64))
        self.error_squares += float(np.einsum("i,i->", difference, difference, dtype=np.float64))
        self.worst = max(self.worst, float(np.abs(difference, out=difference).max(initial=0.0)))

    def merge(self, other: Error) -> None:
        """Add another tensor's sums."""
        self.weights += other.weights
        self.squares += other.squares
        self.error_squares += other.error_squares
        self.worst = max(self.worst, other.worst)

    @property
    def rms(self) -> float:
        """Root of the mean squared difference."""
        return math.sqrt(self.error_squares / self.weights) if self.weights else 0.0

    @property
    def relative(self) -> float:
        """``rms`` over the root mean square of the weights; 0 where all of them are 0."""
        return math.sqrt(self.error_squares / self.squares) if self.squares else 0.0


class Encoder:
    """Encodes and decodes panels with ``threads`` CPU threads, or on another torch ``device``."""

    def __init__(self, *, threads: int | None = None, device: str = "cpu") -> None:
        self.threads = threads or native.default_threads()
        self.device = device
        self._on_cpu = device == "cpu"

    def encode(
        self, source: np.ndarray, have: Format, want: Format, n: int, weights: np.ndarray | None, out: np.ndarray
    ) -> None:
        """Encode whole rows of ``n`` values: uint8 ``source`` in format ``have`` into uint8 ``out`` in format ``want``.

        ``weights``: importance of the columns, float32 [n], or None. Rows already in ``want`` are copied. Raises
        BadRowError for a row with a NaN or an infinity, in the source or in what became of it.
        """
        if have.name not in FLOATS:
            if have == want:
                self._finite(source, have, n, "holds a block with an infinite or NaN scale")
                out[:] = source
                return
            source, have = self._widened(source, have, n)
        try:
            if self._on_cpu and native.can_encode(want.ggml_type):
                self._encode_native(source, have, want, n, weights, out)
            else:
                self._encode_torch(source, have, want, n, weights, out)
        except native.NonFiniteRowError as error:
            raise BadRowError(error.row, "holds a NaN or an infinity") from None
        if want != have:
            self._finite(out, want, n, f"has weights too large for {want.name}")

    def decode(self, blocks: np.ndarray, fmt: Format, n: int) -> np.ndarray:
        """The values of whole rows of ``n``: float32 [rows, n], a new array."""
        import numpy as np

        rows = blocks.size // fmt.row_bytes(n)
        if native.can_decode(fmt.ggml_type):
            out = np.empty((rows, n), np.float32)
            native.decode(fmt.ggml_type, 0, _address(blocks), rows, n, _address(out), self.threads)
            return out
        from quant import dequantize

        values = dequantize(_tensor(blocks).view(rows, -1), fmt.name, threads=self.threads)
        return np.asarray(values.numpy())

    def _widened(self, source: np.ndarray, have: Format, n: int) -> tuple[np.ndarray, Format]:
        from quant.formats import get_format

        return _bytes(self.decode(source, have, n)), get_format("f32")

    def _encode_native(
        self, source: np.ndarray, have: Format, want: Format, n: int, weights: np.ndarray | None, out: np.ndarray
    ) -> None:
        rows = source.size // have.row_bytes(n)
        native.encode(
            want.ggml_type,
            have.ggml_type,
            _address(source),
            rows,
            n,
            None if weights is None else _address(weights),
            _address(out),
            self.threads,
        )

    def _encode_torch(
        self, source: np.ndarray, have: Format, want: Format, n: int, weights: np.ndarray | None, out: np.ndarray
    ) -> None:
        import torch

        from quant import quantize

        dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[have.name]
        values = _tensor(source).view(dtype).view(-1, n).to(self.device)
        columns = None if weights is None else torch.from_numpy(weights).to(self.device)
        out[:] = quantize(values, want.name, columns, threads=self.threads).view(-1).cpu().numpy()

    def _finite(self, blocks: np.ndarray, fmt: Format, n: int, problem: str) -> None:
        row = overflowed_row(blocks.reshape(-1, fmt.row_bytes(n)), fmt.name)
        if row is not None:
            raise BadRowError(row, problem)


def _address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def _bytes(array: np.ndarray) -> np.ndarray:
    import numpy as np

    return array.reshape(-1).view(np.uint8)


def _tensor(array: np.ndarray) -> Any:
    import warnings

    import torch

    with warnings.catch_warnings():
        # torch has no read-only tensors and says so; nothing here writes to weights.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
