"""Splits tensors into panels: runs of rows small enough to stay in the processor's caches while they are quantized."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jambacli.gguf.background_writer import FilePiece
from jambacli.gguf.experts_int8 import scale_name
from jambacli.quantize.recipes import Choice
from quant.formats import Format, get_format

if TYPE_CHECKING:
    import numpy as np

    from jambacli.quantize.imatrix import Imatrix

QUANTIZE_PANEL_VALUES = 1 << 22


@dataclass(frozen=True)
class Panel:
    """``rows`` rows of one tensor from row ``first``, and the importance of their columns, float32 [n] or None."""

    choice: Choice
    source: Format
    target: Format
    first: int
    rows: int
    weights: np.ndarray | None

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.choice.name

    @property
    def n(self) -> int:
        """Values per row."""
        return self.choice.tensor.row

    @property
    def start(self) -> int:
        """Where the rows start in the source tensor, bytes."""
        return self.first * self.source.row_bytes(self.n)

    @property
    def stop(self) -> int:
        """Where the rows end in the source tensor, bytes."""
        return (self.first + self.rows) * self.source.row_bytes(self.n)

    @property
    def out_bytes(self) -> int:
        """Bytes of the quantized rows, without ExpertsInt8's scales."""
        return self.rows * self.target.row_bytes(self.n)

    @property
    def scales_start(self) -> int:
        """Where ExpertsInt8's scales start in the buffer, after the levels."""
        return -(-self.out_bytes // 4) * 4

    @property
    def buffer_bytes(self) -> int:
        """Bytes that a buffer for the quantized rows needs, scales included."""
        return self.scales_start + 4 * self.rows if self.target.name == "i8" else self.out_bytes

    def pieces(self) -> list[FilePiece]:
        """The tensor that each part of the filled buffer belongs to."""
        pieces = [FilePiece(self.name, self.first * self.target.row_bytes(self.n), 0, self.out_bytes)]
        if self.target.name == "i8":
            pieces.append(FilePiece(scale_name(self.name), 4 * self.first, self.scales_start, self.buffer_bytes))
        return pieces


def split_into_panels(choices: Iterable[Choice], imatrix: Imatrix | None) -> Iterator[Panel]:
    """All tensors in the order of the output, panel by panel."""
    for choice in choices:
        shape = choice.tensor.shape
        source, target = get_format(choice.tensor.format), get_format(choice.format)
        rows, step = math.prod(shape[:-1]), max(1, QUANTIZE_PANEL_VALUES // shape[-1])
        weights = imatrix.weights_for(choice.name, shape) if imatrix and source != target else None
        # Each expert has its own column weights, so a panel does not span experts.
        run = rows if weights is None or weights.ndim == 1 else shape[-2]
        for base in range(0, rows, run):
            columns = weights if weights is None or weights.ndim == 1 else weights[base // run]
            for first in range(base, base + run, step):
                yield Panel(choice, source, target, first, min(step, base + run - first), columns)
