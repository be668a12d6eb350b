"""Launch parameters of the kernels: tile sizes, and the compile-time constants of a weight's format.

Tile sizes depend on shapes alone, so a sum is always added up in the same order.

Triton compiles a kernel once each for integer arguments that are 1, multiples of 16, or neither. Arguments that change from
call to call (tokens, chunks, runs of keys) are therefore ``do_not_specialize``: otherwise a new prompt length could compile
in the middle of an answer. Sizes and strides of weights stay specialized, since loads are wide only for multiples of 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jambacli.kernels.triton import limits
from jambacli.kernels.triton.interpret import interpreted
from jambacli.kernels.triton.repack import BYTES, NIBBLES, PAIRS, Packed

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Tile:
    """The tile of ``stream``: ``rows`` per thread, ``warps`` that take turns along a row.

    ``groups`` and ``lanes`` are a warp's threads along a row and across rows; their product is 32 on a GPU. ``rows`` is 1, 2
    or 4.
    """

    rows: int
    warps: int
    groups: int = 8
    lanes: int = 4

    @property
    def height(self) -> int:
        """Rows per program."""
        return self.lanes * self.rows

    def constants(self) -> dict[str, int]:
        """The kernel's compile-time constants for this tile, and the number of warps."""
        return {"GL": self.groups, "RL": self.lanes, "KW": self.warps, "BR": self.rows, "num_warps": self.warps}


def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability that kernels for tensors on ``device`` are compiled for. Under the interpreter, that of a
    current GPU without special cases."""
    import torch

    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 6)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << max(0, n - 1).bit_length()


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


#: Measured tiles of the matrix-vector product by (rows, groups, gated), which override the rule. ``gpu_check`` prints them.
#: Empty until measured on a GPU.
TUNED: dict[tuple[int, int, bool], Tile] = {}


def rounds(w: Packed, n_rows: int) -> bool:
    """Whether products with ``n_rows`` rows like those of ``w`` can take activations of int8: levels are integers, and the rows
    are many enough for rounding x to cost less than it saves."""
    return w.layout.levels in (BYTES, NIBBLES, PAIRS) and n_rows >= limits.INT8_ROWS


def gemv_tile(w: Packed, n_rows: int, *, gated: bool = False, int8: bool = False) -> Tile:
    """The tile of a matrix-vector product with ``n_rows`` rows like those of ``w``: measured, else ``limits.tile_shape``."""
    groups = w.groups
    if interpreted():
        return Tile(1, 1, min(64, power_of_two(groups)), min(64, power_of_two(n_rows)))
    if (n_rows, groups, gated) in TUNED and not int8:
        return TUNED[n_rows, groups, gated]
    return Tile(*limits.tile_shape(n_rows, groups, gated=gated, int8=int8))


def constants(w: Packed) -> dict[str, int]:
    """The kernels' compile-time constants for the format of ``w``."""
    y = w.layout
    return {"G": w.groups, "LEVELS": y.levels, "HIGH": y.high, "ZERO": y.zero, "SCALES": y.scales}


def as_packed(w: Any) -> Packed:
    """``w`` itself; TypeError for a weight that was not uploaded."""
    if not isinstance(w, Packed):
        raise TypeError("this weight is in GGUF blocks; upload it before GPU kernels read it")
    return w


def triton_dtype(dtype: torch.dtype) -> Any:
    """The Triton type of a torch type."""
    import torch
    import triton.language as tl

    return {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[dtype]
