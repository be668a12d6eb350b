"""Random models made on the card itself, in seconds even at 50 GB; knows nothing of timing.

As ``evaluation.synthetic``: a few hundred truly random rows of each format, repeated in random order. The rows are made
and repeated on the card, so that nothing but what a plan leaves in the computer's memory is ever there.
"""

from __future__ import annotations

import math
import zlib

import torch

from jambacli.evaluation.synthetic import choices
from jambacli.gpu_check.parity import random_weight
from jambacli.model.config import JambaConfig
from jambacli.runtime.cuda.memory import expert_layer
from quant.formats import FORMATS, QTensor

_ROWS = 256
# A matrix of at most so many values is random throughout: equal rows would give a small vocabulary equal logits.
_FEW_VALUES = 1 << 22


class CardTensors:
    """Tensors of a random model by GGUF name, each made when it is asked for: on the card, or here."""

    def __init__(
        self, config: JambaConfig, quant: str, device: torch.device, host_layers: frozenset[int] = frozenset()
    ) -> None:
        self._choices = choices(config, quant)
        self._device, self._host = device, host_layers
        self._small = torch.Generator().manual_seed(0)
        self._tiles: dict[tuple[str, int, str], torch.Tensor] = {}

    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Format and shape of every tensor, to plan with."""
        return {name: (c.format, c.tensor.shape) for name, c in self._choices.items()}

    def __call__(self, name: str) -> QTensor:
        """The tensor of that name."""
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
        if key not in self._tiles:
            # Values about 1 / sqrt(row) wide keep the activations sane.
            w = random_weight(fmt, (_ROWS, row), size=2 / math.sqrt(row))
            self._tiles[key] = w.row_blocks().to(device)
        # The same each time it is asked for: attention's weights may be wanted on the card and here.
        generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
        order = torch.randint(_ROWS, (rows,), device=device, generator=generator)
        scale = None
        if fmt == "i8":
            scale = torch.full(shape[:-1], 2 / 127 / math.sqrt(row), device=device)
        return QTensor(self._tiles[key].index_select(0, order).view(-1), FORMATS[fmt], shape, scale)


def _kept(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Norms, biases, routers and the recurrence's own tensors, about as a trained model has them."""
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
