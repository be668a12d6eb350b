"""Panels of rows from one format to another, on any device; knows nothing of files, models or which format is wanted.

A panel is a run of whole rows small enough to stay near the processor. With the C++ library built and the work on the
CPU, torch is never imported: the rows are read where they lie and encoded straight into the caller's buffer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quant import native
from quant.formats import Format, get_format
from quant.overflow import overflowed_row

if TYPE_CHECKING:
    import numpy as np

FLOATS = ("f32", "f16", "bf16")
_TYPE_IDS = {"f32": 0, "f16": 1, "bf16": 30}


class BadRowError(ValueError):
    """A row that cannot be encoded: ``row`` within the panel, ``problem`` what is wrong with it."""

    def __init__(self, row: int, problem: str) -> None:
        super().__init__(f"row {row} {problem}")
        self.row, self.problem = row, problem


@dataclass(frozen=True)
class Rows:
    """Whole rows of ``n`` values: uint8 [bytes] in ``format``, and for ExpertsInt8 (i8) float32 [rows] ``scales``."""

    data: np.ndarray
    format: Format
    n: int
    scales: np.ndarray | None = None

    @property
    def count(self) -> int:
        """How many rows."""
        return int(self.data.size // self.format.row_bytes(self.n))


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
        self._native = device == "cpu" and native.library() is not None

    def encode(self, rows: Rows, out: Rows, weights: np.ndarray | None = None) -> None:
        """Fill ``out``, whose format is the one wanted, from ``rows``; what is in that format already is copied.

        ``weights``: importance of the columns, float32 [n], or None. Raises BadRowError for a row with a NaN or an
        infinity, in the source or in what became of it.
        """
        if rows.format.name not in FLOATS and rows.format == out.format:
            _check_finite(rows, "holds a block with an infinite or NaN scale")
            out.data[:] = rows.data
            if rows.scales is not None and out.scales is not None:
                out.scales[:] = rows.scales
            return
        if rows.format.name not in FLOATS:
            rows = Rows(self.decode(rows).reshape(-1).view("uint8"), get_format("f32"), rows.n)
        try:
            if out.scales is not None:
                self._encode_int8(rows, out)
            elif self._native and native.can_quantize(out.format.ggml_type):
                self._encode_native(rows, out, weights)
            else:
                self._encode_torch(rows, out, weights)
        except native.NonFiniteRowError as error:
            raise BadRowError(error.row, "holds a NaN or an infinity") from None
        if out.format != rows.format:
            _check_finite(out, f"has weights too large for {out.format.name}")

    def decode(self, rows: Rows) -> np.ndarray:
        """The values: float32 [rows, n], a new array."""
        import numpy as np

        if rows.scales is not None:
            return np.multiply(rows.data.view(np.int8).reshape(-1, rows.n), rows.scales[:, None], dtype=np.float32)
        if native.can_dequantize(rows.format.ggml_type):
            out = np.empty((rows.count, rows.n), np.float32)
            source, target = _address(rows.data), _address(out)
            native.dequantize(rows.format.ggml_type, 0, source, rows.count, rows.n, target, self.threads)
            return out
        from quant import dequantize

        values = dequantize(_tensor(rows.data).view(rows.count, -1), rows.format.name, threads=self.threads)
        return np.asarray(values.numpy())

    def _encode_native(self, rows: Rows, out: Rows, weights: np.ndarray | None) -> None:
        columns = None if weights is None else _address(weights)
        source, target = _address(rows.data), _address(out.data)
        have = _TYPE_IDS[rows.format.name]
        native.quantize(out.format.ggml_type, have, source, rows.count, rows.n, columns, target, self.threads)

    def _encode_torch(self, rows: Rows, out: Rows, weights: np.ndarray | None) -> None:
        import torch

        from quant import quantize

        columns = None if weights is None else torch.from_numpy(weights).to(self.device)
        blocks = quantize(self._values(rows), out.format.name, columns, threads=self.threads)
        out.data[:] = blocks.view(-1).cpu().numpy()

    def _encode_int8(self, rows: Rows, out: Rows) -> None:
        assert out.scales is not None
        if self._native:
            levels, scales = _address(out.data), _address(out.scales)
            have = _TYPE_IDS[rows.format.name]
            native.quantize_rowwise_int8(have, _address(rows.data), rows.count, rows.n, levels, scales, self.threads)
            return
        from quant import experts_int8

        found, steps = experts_int8.encode(self._values(rows), threads=self.threads)
        out.data[:] = found.view(-1).cpu().numpy().view("uint8")
        out.scales[:] = steps.cpu().numpy()

    def _values(self, rows: Rows) -> Any:
        """The rows of a float format as a torch tensor [rows, n] on the device."""
        import torch

        dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[rows.format.name]
        return _tensor(rows.data).view(dtype).view(-1, rows.n).to(self.device)


def _check_finite(rows: Rows, problem: str) -> None:
    row = overflowed_row(rows.data.reshape(rows.count, -1), rows.format.name)
    if row is not None:
        raise BadRowError(row, problem)


def _address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def _tensor(array: np.ndarray) -> Any:
    import warnings

    import torch

    with warnings.catch_warnings():
        # torch has no read-only tensors and says so; nothing here writes to weights.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
