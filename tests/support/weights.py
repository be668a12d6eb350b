"""Random weights in every block format with plausible scales, and their values as the ``gguf`` package reads them."""

from __future__ import annotations

import functools
import math

import gguf
import torch

from quant.formats import FORMATS, QTensor

NATIVE = [f.name for f in FORMATS.values() if f.native]

# Where a block's f16 factors lie, and the largest whole number they multiply.
_FACTORS = {
    "q4_0": ([0], 8),
    "q4_1": ([0, 2], 15),
    "q5_0": ([0], 16),
    "q5_1": ([0, 2], 31),
    "q8_0": ([0], 127),
    "q2_k": ([80, 82], 45),
    "q3_k": ([108], 128),
    "q4_k": ([0, 2], 945),
    "q5_k": ([0, 2], 1953),
    "q6_k": ([208], 4064),
    "iq4_nl": ([0], 127),
    "iq4_xs": ([0], 4064),
}


@functools.cache
def random_weight(name: str, shape: tuple[int, ...], *, seed: int = 0, size: float = 0.1) -> QTensor:
    """Random bytes, but for the factors: values are at most about ``size``. Cached: not to be written to."""
    generator = torch.Generator().manual_seed(seed)
    fmt, n = FORMATS[name], math.prod(shape)
    if name in ("f32", "f16", "bf16"):
        dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[name]
        values = torch.randn(n, generator=generator) * size / 3
        return QTensor(values.to(dtype).view(torch.uint8), fmt, shape)
    blocks = torch.randint(0, 256, (n // fmt.block, fmt.block_bytes), generator=generator, dtype=torch.uint8)
    if name == "i8":
        scale = (torch.rand(shape[:-1], generator=generator) + 0.5) * size / 127
        return QTensor(blocks.flatten(), fmt, shape, scale)
    places, largest = _FACTORS[name]
    for place in places:
        factor = (torch.rand(len(blocks), generator=generator) + 0.5) * size / largest
        blocks[:, place : place + 2] = factor.half().view(torch.uint8).view(-1, 2)
    return QTensor(blocks.flatten(), fmt, shape)


def values(w: QTensor) -> torch.Tensor:
    """The weight as float32 [*shape], decoded by the gguf package (int8 rows by hand: GGUF has no such tensors)."""
    key = (w.data.data_ptr(), w.format.name, w.shape)
    if key not in _decoded:
        _decoded[key] = (w, _decode(w))  # the weight is kept too, so that its address stays its own
    return _decoded[key][1]


_decoded: dict[tuple[int, str, tuple[int, ...]], tuple[QTensor, torch.Tensor]] = {}


def _decode(w: QTensor) -> torch.Tensor:
    if w.scale is not None:
        return w.data.view(torch.int8).view(w.shape).float() * w.scale.view(*w.shape[:-1], 1)
    kind = gguf.GGMLQuantizationType(w.format.ggml_type)
    return torch.from_numpy(gguf.dequantize(w.row_blocks().numpy(), kind).copy())


def as_f32(w: QTensor) -> QTensor:
    """The same values as a float32 weight."""
    return QTensor(values(w).contiguous().view(-1).view(torch.uint8), FORMATS["f32"], w.shape)
