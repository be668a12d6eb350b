"""Random weights in every block format with plausible scales, and their values as the ``gguf`` package reads them."""

from __future__ import annotations

import functools

import gguf
import torch

from jambacli.evaluation import synthetic
from quant.formats import FORMATS, QTensor

NATIVE = [f.name for f in FORMATS.values() if f.native]


@functools.cache
def random_weight(fmt: str, shape: tuple[int, ...], *, seed: int = 0, size: float = 0.1) -> QTensor:
    """``synthetic.random_weight``, cached: not to be written to."""
    return synthetic.random_weight(fmt, shape, seed=seed, size=size)


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
