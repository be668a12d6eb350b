"""The table of block formats: name, GGML type id, values and bytes per block.

Sizes are those of the GGUF specification (ggml's block structs). This package implements the ``native`` formats; the rest
are listed so that a file that uses them can be described, or refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Format:
    """One storage format of a tensor row: ``block`` values in ``block_bytes`` bytes."""

    name: str
    ggml_type: int
    block: int
    block_bytes: int
    native: bool = True

    @property
    def bits_per_weight(self) -> float:
        """Storage bits per value."""
        return self.block_bytes * 8 / self.block

    def row_bytes(self, n: int) -> int:
        """Bytes of a row of ``n`` values; ValueError when ``n`` is not a multiple of the block length."""
        if n % self.block:
            raise ValueError(f"a row of {n} values is not a multiple of {self.name}'s block of {self.block}")
        return n // self.block * self.block_bytes


_TABLE = [
    Format("f32", 0, 1, 4),
    Format("f16", 1, 1, 2),
    Format("q4_0", 2, 32, 18),
    Format("q4_1", 3, 32, 20),
    Format("q5_0", 6, 32, 22),
    Format("q5_1", 7, 32, 24),
    Format("q8_0", 8, 32, 34),
    Format("q8_1", 9, 32, 36, native=False),
    Format("q2_k", 10, 256, 84),
    Format("q3_k", 11, 256, 110),
    Format("q4_k", 12, 256, 144),
    Format("q5_k", 13, 256, 176),
    Format("q6_k", 14, 256, 210),
    Format("q8_k", 15, 256, 292, native=False),
    Format("iq2_xxs", 16, 256, 66, native=False),
    Format("iq2_xs", 17, 256, 74, native=False),
    Format("iq3_xxs", 18, 256, 98, native=False),
    Format("iq1_s", 19, 256, 50, native=False),
    Format("iq4_nl", 20, 32, 18),
    Format("iq3_s", 21, 256, 110, native=False),
    Format("iq2_s", 22, 256, 82, native=False),
    Format("iq4_xs", 23, 256, 136),
    Format("i8", 24, 1, 1),
    Format("i16", 25, 1, 2, native=False),
    Format("i32", 26, 1, 4, native=False),
    Format("i64", 27, 1, 8, native=False),
    Format("f64", 28, 1, 8, native=False),
    Format("iq1_m", 29, 256, 56, native=False),
    Format("bf16", 30, 1, 2),
    Format("tq1_0", 34, 256, 54, native=False),
    Format("tq2_0", 35, 256, 66, native=False),
    Format("mxfp4", 39, 32, 17, native=False),
]

#: The formats that this package quantizes to and from, by family. "i8" (ExpertsInt8) has a module of its own.
FLOATS = ("f32", "f16", "bf16")
LEGACY = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
IQ4 = ("iq4_nl", "iq4_xs")
K_QUANTS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")

FORMATS: dict[str, Format] = {f.name: f for f in _TABLE}
BY_GGML_TYPE: dict[int, Format] = {f.ggml_type: f for f in _TABLE}


def get_format(name: str) -> Format:
    """The format called ``name`` (any case); ValueError, listing the known ones, for another name."""
    try:
        return FORMATS[name.lower()]
    except KeyError:
        raise ValueError(f"unknown format {name!r}; known: {', '.join(f.name for f in _TABLE if f.native)}") from None


def float_format(dtype: torch.dtype) -> Format | None:
    """The format of a tensor of float32, float16 or bfloat16; None for another dtype."""
    name = {"torch.float32": "f32", "torch.float16": "f16", "torch.bfloat16": "bf16"}.get(str(dtype))
    return None if name is None else FORMATS[name]


@dataclass(frozen=True)
class QTensor:
    """A weight as a file holds it: a flat uint8 view of its blocks, their format and the logical shape.

    ``data`` is uint8 [nbytes], contiguous, on any device; on the CPU it is the mapped file, not a copy. ``shape`` is in
    torch order: the last dimension is the row that blocks run along, e.g. [out, in] or [experts, out, in]. ``scale`` is
    set for ExpertsInt8 alone (``format`` "i8"): float32 [experts, out], one factor per row.
    """

    data: torch.Tensor
    format: Format
    shape: tuple[int, ...]
    scale: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks, scales included."""
        return self.data.numel() + (0 if self.scale is None else self.scale.numel() * 4)

    def row_blocks(self) -> torch.Tensor:
        """The blocks as uint8 [*shape[:-1], bytes per row], a view."""
        return self.data.view(*self.shape[:-1], self.format.row_bytes(self.shape[-1]))
