"""Loads LoRA adapters, and makes the models that apply them beside the weights of a loaded one.

A model with adapters shares the weights of the one without; only lists of addresses are made anew. Nothing is dequantized.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch

from jambacli.errors import BadFileError, JambaError, UsageError
from jambacli.files import path_of
from jambacli.gguf.adapter import AdapterFile
from jambacli.gguf.jamba_metadata import HasShape
from jambacli.kernels import reference
from jambacli.kernels.low_rank import LowRank, adapted, low_rank
from jambacli.model.jamba import JambaModel
from jambacli.model.lora import Adapter, AdapterSet, check_scale
from quant.formats import FORMATS, QTensor

#: An adapter as it is named: a path, "PATH:SCALE", or both.
LoraName: TypeAlias = "str | Path | tuple[str | Path, float]"
# Models with adapters that are kept: what servers switch between.
_KEPT = 8
_ROUTER = ".ffn_gate_inp.weight"


def parse_lora(name: LoraName) -> tuple[Path, float]:
    """The path and the scale (by default 1) of an adapter. Raises UsageError for a scale that is out of range."""
    if isinstance(name, tuple):
        path, scale = name
        return path_of(str(path)), check_scale(scale)
    text = str(name)
    before, colon, after = text.rpartition(":")
    if colon and before and not path_of(text).exists():
        try:
            return path_of(before), check_scale(float(after))
        except ValueError:
            pass
    return path_of(text), 1.0


def load_adapters(names: Iterable[LoraName], tensors: Mapping[str, HasShape], model: object) -> AdapterSet:
    """Load adapters for a model with these ``tensors``, called ``model`` in errors.

    Raises JambaError for a file that cannot be read, does not fit the model or is named twice.
    """
    parts: list[tuple[Adapter, float]] = []
    for path, scale in map(parse_lora, names):
        adapter = load_adapter(path, tensors, model)
        if any(adapter.digest == other.digest for other, _ in parts):
            raise UsageError("is named twice", field="lora", value=str(path))
        parts.append((adapter, scale))
    return AdapterSet(tuple(parts))


def load_adapter(path: Path, tensors: Mapping[str, HasShape], model: object) -> Adapter:
    """Load one adapter; see ``load_adapters``."""
    with AdapterFile.open(path) as file:
        file.check(tensors, model)
        weights = {name: _low_rank(file, name) for name in file.pairs}
        return Adapter(file.name, path, file.digest(), weights)


def _low_rank(file: AdapterFile, name: str) -> LowRank:
    a, b = (reference.dequantize(file.file.qtensor(info.name)) for info in file.pairs[name])
    for values, info in zip((a, b), file.pairs[name], strict=True):
        if not values.isfinite().all():
            raise BadFileError(file.path, f"tensor {info.name} holds a NaN or an infinity")
    scale = file.scale(name)
    if not math.isfinite(scale):
        raise BadFileError(file.path, f"the scale of {name}, alpha divided by its rank, is {scale}")
    # Copies: the adapter's file need not stay as it is.
    return low_rank(a.clone(), b, scale)


def delta(low: LowRank, n_out: int) -> torch.Tensor:
    """What ``low`` adds to its weight: float32 [..., n_out, in]."""
    return low.b[..., :n_out].transpose(-1, -2) @ (low.a * low.scale)


class Variants:
    """The models with adapters that were made from one model."""

    def __init__(
        self, build: Callable[[Callable[[str], QTensor]], JambaModel], tensor: Callable[[str], QTensor]
    ) -> None:
        """``tensor``: the weights by name; ``build`` assembles a model from such a function."""
        self._build, self._tensor = build, tensor
        self._made: OrderedDict[str, JambaModel] = OrderedDict()

    def __call__(self, adapters: AdapterSet) -> JambaModel:
        """The model with ``adapters``."""
        model = self._made.get(adapters.key)
        if model is None:
            made = self._build(functools.partial(_tensor, self._tensor, adapters))
            model = self._made[adapters.key] = _applied(made, adapters)
        self._made.move_to_end(adapters.key)
        if len(self._made) > _KEPT:
            self._made.popitem(last=False)
        return model


def _applied(model: JambaModel, adapters: AdapterSet) -> JambaModel:
    return dataclasses.replace(model, adapters=adapters, applied=adapters)


def _tensor(tensor: Callable[[str], QTensor], adapters: AdapterSet, name: str) -> QTensor:
    weight, low = tensor(name), adapters.low(name)
    if low and name.endswith(_ROUTER):
        # A router is a small float32 matrix: the sum costs nothing, and no operation on routers knows of adapters.
        values = sum((delta(part, weight.shape[0]) for part in low), reference.dequantize(weight))
        return QTensor(values.contiguous().view(-1).view(torch.uint8), FORMATS["f32"], weight.shape)
    return adapted(weight, low)


def with_default(model: JambaModel, adapters: AdapterSet) -> JambaModel:
    """``model`` with these adapters for new states. Raises JambaError for one on a device where none are applied."""
    if model.adapt is None:
        raise JambaError(
            f"is applied on the CPU only, and the model is on {model.device}",
            field="lora",
            remedy="use {device} cpu, or merge it into the model",
        )
    return dataclasses.replace(model, adapters=adapters)
