"""Random models made on the GPU itself, in seconds even at 50 GB.

As in ``evaluation.synthetic``, a few hundred random rows of each format are repeated in random order. That happens on the
GPU, so host memory holds only the weights that the plan leaves there.
"""

from __future__ import annotations

import math
import zlib

import torch

from jambacli.evaluation.synthetic import choices, random_weight
from jambacli.model.config import JambaConfig
from jambacli.runtime.cuda.memory import expert_layer
from quant.formats import FORMATS, QTensor

_ROWS = 256
# Matrices up to this many values are random throughout: with repeated rows a small vocabulary would have equal logits.
_FEW_VALUES = 1 << 22


class GpuTensors:
    """Makes the tensors of a random model, by GGUF name, on ``device``; experts of ``host_layers`` in host memory."""

    def __init__(
        self, config: JambaConfig, quant: str, device: torch.device, host_layers: frozenset[int] = frozenset()
    ) -> None:
        self._choices = choices(config, quant)
        self._device, self._host = device, host_layers
        self._small = torch.Generator().manual_seed(0)
        self._rows: dict[tuple[str, int, str], torch.Tensor] = {}

    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Format and shape of every tensor, for the memory plan."""
        return {name: (c.format, c.tensor.shape) for name, c in self._choices.items()}

    def __call__(self, name: str) -> QTensor:
        """The tensor with this name; every call returns the same values."""
        choice = self._choices[name]
        shape = choice.tensor.shape
        device = torch.device("cpu") if expert_layer(name) in self._host else self._device
        if choice.kept:
            return _as_f32(_kept(name, shape, self._small).to(device))
        fmt, row = choice.format, shape[-1]
        rows = math.prod(shape[:-1])
        if rows * row <= _FEW_VALUES:
            w = random_weight(fmt, shape, seed=zlib.crc32(name.encode()), size=2 / math.sqrt(row))
            return QTensor(w.data.to(device), w.format, shape, None if w.scale is None else w.scale.to(device))
        key = fmt, row, device.type
        if key not in self._rows:
            # A deviation of about 1 / sqrt(row length) keeps activations in range.
            w = random_weight(fmt, (_ROWS, row), size=2 / math.sqrt(row))
            self._rows[key] = w.row_blocks().to(device)
        # Seeded by name: attention's weights may be requested for the GPU and for host memory.
        generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
        order = torch.randint(_ROWS, (rows,), device=device, generator=generator)
        scale = None
        if fmt == "i8":
            scale = torch.full(shape[:-1], 2 / 127 / math.sqrt(row), device=device)
        return QTensor(self._rows[key].index_select(0, order).view(-1), FORMATS[fmt], shape, scale)


def _kept(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Norms, biases, routers, convolutions, A and D with values like a trained model's."""
    kind = name.split(".", 2)[-1]
    noise = torch.randn(shape, generator=generator)
    if kind == "ssm_a":
        return -torch.arange(1, shape[1] + 1.0).expand(shape) * (1 + 0.1 * noise).clamp(0.5)
    if kind == "ssm_dt.bias":
        return noise - 4.0
    if kind == "ssm_d" or "norm" in name:
        return 1 + 0.1 * noise
    return noise / math.sqrt(shape[-1])


def _as_f32(x: torch.Tensor) -> QTensor:
    return QTensor(x.contiguous().view(-1).view(torch.uint8), FORMATS["f32"], tuple(x.shape))
