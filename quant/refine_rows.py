"""The search of ``refine_blocks`` over rows in host memory, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quant import native
from quant.formats import get_format
from quant.rows import Rows

if TYPE_CHECKING:
    import numpy as np


def search_rows(rows: Rows, out: Rows, weights: np.ndarray, threads: int | None = None) -> None:
    """Improve the blocks ``out`` of ``rows``, in place, for the error weighted with ``weights``, float32 [n].

    Formats without this search stay as they are. Raises ValueError for a bad weight.
    """
    if not native.can_refine(out.format.ggml_type) or rows.format == out.format:
        return
    values = rows.data.view("<f4") if rows.format == get_format("f32") else _values(rows, threads)
    native.search_rows(
        out.format.ggml_type, values.ctypes.data, out.count, out.n, weights.ctypes.data, out.data.ctypes.data, threads
    )


def _values(rows: Rows, threads: int | None) -> np.ndarray:
    from quant.dequantize_blocks import dequantize

    return dequantize(rows, threads=threads)
