"""GGUF's block formats, from values to bytes and back: ``from quant import quantize, dequantize``. No models, no files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quant.formats import FORMATS, Format, QTensor, get_format
from quant.rows import Rows

if TYPE_CHECKING:
    from quant.dequantize_blocks import dequantize as dequantize
    from quant.quantize_blocks import quantize as quantize

__all__ = ["FORMATS", "Format", "QTensor", "Rows", "dequantize", "get_format", "quantize"]


if not TYPE_CHECKING:  # a type checker would take any name for one of the package's

    def __getattr__(name: str) -> Any:
        # Lazy: many commands need the table of formats and nothing else.
        if name == "quantize":
            from quant.quantize_blocks import quantize

            return quantize
        if name == "dequantize":
            from quant.dequantize_blocks import dequantize

            return dequantize
        raise AttributeError(f"module 'quant' has no attribute {name!r}")
