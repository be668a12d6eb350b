"""Blocks to values: the public ``dequantize``; knows nothing of how a format is coded, only who decodes it where.

C++ for CPU tensors, torch for any device; both give the values that the ``gguf`` package gives. Formats this package
does not code itself go through that package, with a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from quant import native
from quant.formats import Format, get_format
from quant.quantize_blocks import IQ4, K_QUANTS, LEGACY, PLAIN, choose_native

if TYPE_CHECKING:
    import torch

# uint8 [rows, row bytes] -> float32 [rows, n]
TorchDecoder = Callable[["torch.Tensor"], "torch.Tensor"]

TORCH_CHUNK_VALUES = {"cpu": 1 << 22, "cuda": 1 << 26}


def dequantize(
    blocks: torch.Tensor,
    fmt: str,
    *,
    dtype: torch.dtype | None = None,
    threads: int | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """The values that ``blocks`` stand for.

    Args:
        blocks: uint8 [..., row bytes]; whole blocks along the last dimension. Any device.
        fmt: a name of ``quant.FORMATS``, any case.
        dtype: float32 (default), float16 or bfloat16; the narrower ones are float32's rounded to nearest even.
        threads: CPU threads of the C++ path; every processor by default.
        backend: "native" (C++), "torch", or "auto": C++ where it is built and the blocks are on the CPU.

    Returns:
        ``dtype`` [..., n] on the blocks' device.

    Raises:
        ValueError: an unknown format, or bytes that are not whole blocks of it.
    """
    import torch

    source = get_format(fmt)
    dtype = torch.float32 if dtype is None else dtype
    target_type = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}.get(dtype)
    if target_type is None:
        raise ValueError(f"cannot dequantize to {dtype}; float32, float16 and bfloat16 are possible")
    if blocks.dtype != torch.uint8 or blocks.dim() == 0:
        raise ValueError(f"blocks are uint8 [..., row bytes], not {blocks.dtype} {list(blocks.shape)}")
    row_bytes = blocks.shape[-1]
    if row_bytes % source.block_bytes:
        raise ValueError(f"a row of {row_bytes} bytes is no multiple of {source.name}'s block of {source.block_bytes}")
    n = row_bytes // source.block_bytes * source.block
    use_native = choose_native(backend, blocks, native.can_dequantize(source.ggml_type), source)

    flat = blocks.contiguous().view(-1, row_bytes) if blocks.numel() else blocks.new_empty(0, row_bytes)
    out = torch.empty(flat.shape[0], n, dtype=dtype, device=blocks.device)
    if flat.shape[0] == 0:
        pass
    elif use_native:
        native.dequantize(source.ggml_type, target_type, flat.data_ptr(), flat.shape[0], n, out.data_ptr(), threads)
    else:
        decoder = torch_decoder(source)
        chunk = max(1, TORCH_CHUNK_VALUES.get(blocks.device.type, 1 << 22) // n)
        for first in range(0, flat.shape[0], chunk):
            out[first : first + chunk] = decoder(flat[first : first + chunk])
    return out.view(*blocks.shape[:-1], n)


def torch_decoder(source: Format) -> TorchDecoder:
    """The reference decoder of a format: uint8 [rows, row bytes] -> float32 [rows, n]."""
    name = source.name
    if name in K_QUANTS:
        from quant.k_quants import decode_k

        return lambda blocks: decode_k(blocks, name)
    if name in IQ4:
        from quant import iq4

        return iq4.DECODERS[name]
    if name in (*PLAIN, *LEGACY):
        from quant import legacy

        return legacy.DECODERS[name]
    if source.native or name.startswith(("i8", "i16", "i32", "i64", "f64")):
        raise ValueError(f"{name} holds plain numbers, not blocks; read it as that type")
    return _through_gguf(source)


def _through_gguf(source: Format) -> TorchDecoder:
    """The ``gguf`` package's decoder, for formats that this package only knows by name."""
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize as gguf_dequantize

    kind = GGMLQuantizationType(source.ggml_type)
    warnings.warn(f"{source.name} is decoded by the gguf package, slowly", stacklevel=3)

    def decode(blocks: torch.Tensor) -> torch.Tensor:
        try:
            values = gguf_dequantize(blocks.cpu().numpy(), kind)
        except NotImplementedError:
            raise ValueError(f"no decoder for {source.name}: neither here nor in the gguf package") from None
        return torch.from_numpy(values).to(blocks.device)

    return decode
