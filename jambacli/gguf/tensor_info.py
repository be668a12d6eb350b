"""Where a tensor lies in a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass

from quant.formats import Format


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The location of a tensor: ``offset`` bytes into the file of part ``part``. ``shape`` is in torch order, the row last."""

    name: str
    shape: tuple[int, ...]
    format: Format
    offset: int
    nbytes: int
    part: int
