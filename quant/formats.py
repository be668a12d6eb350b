"""The table of block formats: name, GGML type id, values and bytes per block.

Sizes are those of the GGUF specification (ggml's block structs). Every format can be described; most can be read, in
torch or through the ``gguf`` package. ``writable`` and ``native`` say what else there is for a format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Format:
    """One storage format of a tensor row: ``block`` values in ``block_bytes`` bytes.

    ``writable``: there is a quantizer, so files can be written in it. ``native``: the C++ kernels compute with its blocks;
    the weights of other formats are dequantized in torch first.
    """

    name: str
    ggml_type: int
    block: int
    block_bytes: int
    writable: bool = False
    native: bool = False

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
    Format("f32", 0, 1, 4, writable=True, native=True),
    Format("f16", 1, 1, 2, writable=True, native=True),
    Format("q4_0", 2, 32, 18, writable=True, native=True),
    Format("q4_1", 3, 32, 20, writable=True, native=True),
    Format("q5_0", 6, 32, 22, writable=True, native=True),
    Format("q5_1", 7, 32, 24, writable=True, native=True),
    Format("q8_0", 8, 32, 34, writable=True, native=True),
    Format("q8_1", 9, 32, 36),
    Format("q2_k", 10, 256, 84, writable=True, native=True),
    Format("q3_k", 11, 256, 110, writable=True, native=True),
    Format("q4_k", 12, 256, 144, writable=True, native=True),
    Format("q5_k", 13, 256, 176, writable=True, native=True),
    Format("q6_k", 14, 256, 210, writable=True, native=True),
    Format("q8_k", 15, 256, 292),
    Format("iq2_xxs", 16, 256, 66),
    Format("iq2_xs", 17, 256, 74),
    Format("iq3_xxs", 18, 256, 98),
    Format("iq1_s", 19, 256, 50),
    Format("iq4_nl", 20, 32, 18, writable=True, native=True),
    Format("iq3_s", 21, 256, 110),
    Format("iq2_s", 22, 256, 82),
    Format("iq4_xs", 23, 256, 136, writable=True, native=True),
    Format("i8", 24, 1, 1, writable=True, native=True),
    Format("i16", 25, 1, 2),
    Format("i32", 26, 1, 4),
    Format("i64", 27, 1, 8),
    Format("f64", 28, 1, 8),
    Format("iq1_m", 29, 256, 56),
    Format("bf16", 30, 1, 2, writable=True, native=True),
    Format("tq1_0", 34, 256, 54),
    Format("tq2_0", 35, 256, 66),
    Format("mxfp4", 39, 32, 17),
    Format("nvfp4", 40, 64, 36),
    Format("q1_0", 41, 128, 18),
    Format("q2_0", 42, 64, 18),
]

#: The formats with torch code, by family: the family decides which module has it. "i8" (ExpertsInt8) belongs to none.
FLOATS = ("f32", "f16", "bf16")
LEGACY = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
IQ4 = ("iq4_nl", "iq4_xs")
K_QUANTS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
FP4 = ("mxfp4", "nvfp4")
FEW_LEVELS = ("q1_0", "q2_0")

FORMATS: dict[str, Format] = {f.name: f for f in _TABLE}
BY_GGML_TYPE: dict[int, Format] = {f.ggml_type: f for f in _TABLE}


def get_format(name: str) -> Format:
    """The format called ``name`` (any case); ValueError, listing the known ones, for another name."""
    try:
        return FORMATS[name.lower()]
    except KeyError:
        raise ValueError(f"unknown format {name!r}; known: {', '.join(f.name for f in _TABLE if f.writable)}") from None


def float_format(dtype: torch.dtype) -> Format | None:
    """The format of a tensor of float32, float16 or bfloat16; None for another dtype."""
    name = {"torch.float32": "f32", "torch.float16": "f16", "torch.bfloat16": "bf16"}.get(str(dtype))
    return None if name is None else FORMATS[name]


@dataclass(frozen=True)
class QTensor:
    """A weight as a file holds it: a flat uint8 view of its blocks, their format and the logical shape.

    ``data`` is uint8 [nbytes], contiguous, on any device; on the CPU it is the mapped file, not a copy. ``shape`` is in
    torch order: the last dimension is the row that blocks run along, e.g. [out, in] or [experts, out, in]. ``scale`` is
    float32 [*shape[:-1]], one factor per row, for ExpertsInt8 (``format`` "i8") and for NVFP4 whose file has factors.
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
