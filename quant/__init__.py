"""Block formats: bytes <-> values, alone: ``from quant import quantize, dequantize``. Knows nothing of models or files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quant.formats import FORMATS, Format, QTensor, get_format

if TYPE_CHECKING:
    from quant.dequantize_blocks import dequantize as dequantize
    from quant.quantize_blocks import quantize as quantize

__all__ = ["FORMATS", "Format", "QTensor", "dequantize", "get_format", "quantize"]


def __getattr__(name: str) -> Any:
    # Lazy: the table above is used by commands that must not pay for importing torch.
    if name == "quantize":
        from quant.quantize_blocks import quantize

        return quantize
    if name == "dequantize":
        from quant.dequantize_blocks import dequantize

        return dequantize
    raise AttributeError(f"module 'quant' has no attribute {name!r}")
