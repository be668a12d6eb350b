"""Blocks to values: the public ``dequantize``, which checks its arguments and picks the implementation.

C++ for CPU tensors, torch for any device; both give the values that the ``gguf`` package gives. A format without code of
its own goes through that package, with a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, overload

from quant import native
from quant.backends import uses_native
from quant.formats import FEW_LEVELS, FLOATS, FP4, IQ4, K_QUANTS, LEGACY, Format, float_format, get_format
from quant.rows import Rows, host_tensor

if TYPE_CHECKING:
    import numpy as np
    import torch

# uint8 [rows, row bytes] -> float32 [rows, n]
TorchDequantizer = Callable[["torch.Tensor"], "torch.Tensor"]

TORCH_CHUNK_VALUES = {"cpu": 1 << 22, "cuda": 1 << 26}


@overload
def dequantize(
    blocks: torch.Tensor,
    fmt: str,
    *,
    dtype: torch.dtype | None = None,
    threads: int | None = None,
    backend: str = "auto",
) -> torch.Tensor: ...


@overload
def dequantize(blocks: Rows, *, threads: int | None = None) -> np.ndarray: ...


def dequantize(
    blocks: torch.Tensor | Rows,
    fmt: str | None = None,
    *,
    dtype: torch.dtype | None = None,
    threads: int | None = None,
    backend: str = "auto",
) -> torch.Tensor | np.ndarray:
    """The values that ``blocks`` stand for.

    Args:
        blocks: uint8 [..., row bytes] on any device, whole blocks along the last dimension. Or ``Rows``, in any format.
        fmt: a name of ``quant.FORMATS``, any case; ``Rows`` have their own.
        dtype: float32 (default), float16 or bfloat16; the narrower ones are float32's rounded to nearest even.
        threads: CPU threads of the C++ path; every processor by default.
        backend: "native" (C++), "torch", or "auto": C++ where it is built and the blocks are on the CPU.

    Returns:
        ``dtype`` [..., n] on the blocks' device; for ``Rows`` a new float32 array [rows, n].

    Raises:
        ValueError: an unknown format, or bytes that are not whole blocks of it.
    """
    if isinstance(blocks, Rows):
        return _dequantize_rows(blocks, threads)
    if fmt is None:
        raise ValueError("dequantize needs the format of the blocks")
    return _dequantize_tensor(blocks, get_format(fmt), dtype, threads, backend)


def _dequantize_tensor(
    blocks: torch.Tensor, source: Format, dtype: torch.dtype | None, threads: int | None, backend: str
) -> torch.Tensor:
    import torch

    dtype = torch.float32 if dtype is None else dtype
    target = float_format(dtype)
    if target is None:
        raise ValueError(f"cannot dequantize to {dtype}; float32, float16 and bfloat16 are possible")
    if blocks.dtype != torch.uint8 or blocks.dim() == 0:
        raise ValueError(f"blocks are uint8 [..., row bytes], not {blocks.dtype} {list(blocks.shape)}")
    row_bytes = blocks.shape[-1]
    if row_bytes % source.block_bytes:
        raise ValueError(
            f"a row of {row_bytes} bytes is not a multiple of {source.name}'s block of {source.block_bytes}"
        )
    n = row_bytes // source.block_bytes * source.block
    use_native = uses_native(backend, blocks.device, native.can_dequantize(source.ggml_type), source)

    flat = blocks.contiguous().view(-1, row_bytes) if blocks.numel() else blocks.new_empty(0, row_bytes)
    out = torch.empty(flat.shape[0], n, dtype=dtype, device=blocks.device)
    if flat.shape[0] == 0:
        pass
    elif use_native:
        sizes = flat.shape[0], n
        native.dequantize(source.ggml_type, target.ggml_type, flat.data_ptr(), *sizes, out.data_ptr(), threads)
    else:
        dequantizer = torch_dequantizer(source)
        chunk = max(1, TORCH_CHUNK_VALUES.get(blocks.device.type, 1 << 22) // n)
        for first in range(0, flat.shape[0], chunk):
            out[first : first + chunk] = dequantizer(flat[first : first + chunk])
    return out.view(*blocks.shape[:-1], n)


def _dequantize_rows(rows: Rows, threads: int | None) -> np.ndarray:
    """float32 [rows, n]; without importing torch where the C++ library implements the format."""
    import numpy as np

    source = rows.format
    if rows.scale is not None and source.name == "i8":
        return np.multiply(rows.data.view(np.int8).reshape(-1, rows.n), rows.scale[:, None], dtype=np.float32)
    if native.can_dequantize(source.ggml_type):
        out = np.empty((rows.count, rows.n), np.float32)
        f32 = get_format("f32").ggml_type
        native.dequantize(source.ggml_type, f32, rows.data.ctypes.data, *out.shape, out.ctypes.data, threads)
        return out
    values = _dequantize_tensor(host_tensor(rows.data).view(rows.count, -1), source, None, threads, "auto")
    if rows.scale is not None:
        values *= host_tensor(rows.scale)[:, None]
    return np.asarray(values.numpy())


def torch_dequantizer(source: Format) -> TorchDequantizer:
    """The reference dequantizer of a format: uint8 [rows, row bytes] -> float32 [rows, n]."""
    name = source.name
    if name in K_QUANTS:
        from quant.k_quants import dequantize_k

        return lambda blocks: dequantize_k(blocks, name)
    if name in IQ4:
        from quant import iq4

        return iq4.DEQUANTIZERS[name]
    if name in (*FLOATS, *LEGACY):
        from quant import legacy

        return legacy.DEQUANTIZERS[name]
    if name in FP4:
        from quant import fp4

        return fp4.DEQUANTIZERS[name]
    if name in FEW_LEVELS:
        from quant import few_levels

        return few_levels.DEQUANTIZERS[name]
    if source.block == 1:
        raise ValueError(f"{name} holds plain numbers, not blocks; read it as that type")
    return _through_gguf(source)


def _through_gguf(source: Format) -> TorchDequantizer:
    """The ``gguf`` package's dequantizer, for formats without a dequantizer of their own."""
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize as gguf_dequantize

    kind = GGMLQuantizationType(source.ggml_type)
    warnings.warn(f"{source.name} is dequantized by the gguf package, slowly", stacklevel=3)

    def dequantize_slowly(blocks: torch.Tensor) -> torch.Tensor:
        try:
            values = gguf_dequantize(blocks.cpu().numpy(), kind)
        except NotImplementedError:
            raise ValueError(f"{source.name} cannot be dequantized, not by the gguf package either") from None
        return torch.from_numpy(values).to(blocks.device)

    return dequantize_slowly
