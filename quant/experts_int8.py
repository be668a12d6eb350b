"""ExpertsInt8: signed bytes with one float32 scale per output row of each expert.

AI21's scheme as vLLM runs it: symmetric, scale = largest magnitude of the row / 127, levels rounded to nearest even, so
that value = level * scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quant import native
from quant.backends import uses_native
from quant.formats import float_format, get_format
from quant.rows import row_name

if TYPE_CHECKING:
    import torch

LEVELS = 127
SMALLEST_NORMAL = 1.1754943508222875e-38

# Torch quantizes about this many values at a time, so that the float32 copies stay small.
CHUNK_VALUES = {"cpu": 1 << 22, "cuda": 1 << 27}


def quantize(
    weight: torch.Tensor, *, threads: int | None = None, backend: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Signed bytes and the scale of each row.

    A row of zeros gets scale 1. A scale is at least the smallest normal float: a subnormal one could not keep the error
    within half a step.

    Args:
        weight: float32, float16 or bfloat16 [..., out, in] (or one row [in]). Any device.
        threads: CPU threads of the C++ path; every processor by default.
        backend: "native" (C++), "torch", or "auto": C++ where it is built and the tensor is on the CPU.

    Returns:
        int8 [..., out, in], from -127 to 127, and float32 [..., out], on the tensor's device.

    Raises:
        ValueError: another dtype, or a NaN or infinity, naming its row.
    """
    import torch

    source = float_format(weight.dtype)
    if source is None:
        raise ValueError(f"cannot quantize {weight.dtype}; convert to float32, float16 or bfloat16 first")
    if weight.dim() == 0:
        raise ValueError("cannot quantize a scalar: scales belong to rows")
    use_native = uses_native(backend, weight.device, native.library() is not None, get_format("i8"))
    n = weight.shape[-1]
    levels = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.ones(weight.shape[:-1], dtype=torch.float32, device=weight.device)
    if weight.numel() == 0:
        return levels, scale
    rows, flat_levels, flat_scale = weight.detach().contiguous().view(-1, n), levels.view(-1, n), scale.view(-1)
    try:
        if use_native:
            addresses = rows.data_ptr(), rows.shape[0], n, flat_levels.data_ptr(), flat_scale.data_ptr()
            native.quantize_rowwise_int8(source.ggml_type, *addresses, threads)
        else:
            step = max(1, CHUNK_VALUES.get(weight.device.type, 1 << 22) // n)
            for first in range(0, rows.shape[0], step):
                last = first + step
                _quantize_torch(first, rows[first:last], flat_levels[first:last], flat_scale[first:last])
    except native.NonFiniteRowError as error:
        raise native.NonFiniteRowError(error.row, row_name(error.row, weight.shape)) from None
    return levels, scale


def _quantize_torch(first: int, rows: torch.Tensor, levels: torch.Tensor, scale: torch.Tensor) -> None:
    import torch

    values = rows.to(torch.float32)
    largest = values.abs().amax(dim=1)
    finite = torch.isfinite(largest)
    if not bool(finite.all()):
        raise native.NonFiniteRowError(first + int((~finite).int().argmax()))
    step = torch.div(largest, torch.full_like(largest, LEVELS)).clamp_(min=SMALLEST_NORMAL)
    scale.copy_(torch.where(largest == 0, 1.0, step))
    levels.copy_(torch.div(values, scale.unsqueeze(1)).round_().clamp_(-LEVELS, LEVELS))


def dequantize(levels: torch.Tensor, scale: torch.Tensor, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """``levels`` int8 [..., out, in] times ``scale`` float32 [..., out]: ``dtype`` (float32 by default) [..., out, in].

    Raises ValueError for shapes or dtypes that do not match.
    """
    import torch

    if levels.dtype != torch.int8 or scale.dtype != torch.float32 or levels.shape[:-1] != scale.shape:
        raise ValueError(
            f"ExpertsInt8 is int8 [..., out, in] with float32 [..., out]; these are {levels.dtype} {list(levels.shape)} "
            f"and {scale.dtype} {list(scale.shape)}"
        )
    return (levels.to(torch.float32) * scale.unsqueeze(-1)).to(torch.float32 if dtype is None else dtype)
