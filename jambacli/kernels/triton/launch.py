"""How kernels are launched: tile sizes, the constants a weight's format fixes, scratch memory; knows nothing of models.

Tile sizes are chosen by shape alone, never by what else runs, so that a sum is added up in the same order every time.

Triton compiles a kernel anew for an integer argument that is 1, a multiple of 16, or neither. Kernels say ``do_not_specialize``
of those that change from call to call (tokens, chunks, runs of keys), or an answer would pause for its prompt's length;
sizes and strides of weights stay as they are: that they are multiples of 16 is what makes loads wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jambacli.kernels.triton.interpret import interpreted
from jambacli.kernels.triton.limits import tile_shape
from jambacli.kernels.triton.repack import Packed

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Tile:
    """How ``stream``'s tiles are cut: ``rows`` of a thread, ``warps`` that take turns along a row.

    ``groups`` and ``lanes`` are a warp's threads along a row and across rows: their product is its 32 threads.
    """

    rows: int
    warps: int
    groups: int = 8
    lanes: int = 4

    @property
    def height(self) -> int:
        """Rows of a program."""
        return self.lanes * self.rows

    def constants(self) -> dict[str, int]:
        """The compile-time constants by which a kernel knows it, and the number of warps."""
        return {"GL": self.groups, "RL": self.lanes, "KW": self.warps, "BR": self.rows, "num_warps": self.warps}


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << max(0, n - 1).bit_length()


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


#: Measured choices for the matrix-vector product by (rows, groups), to replace the rule below; the GPU suite's sweep
#: prints what belongs here. Empty until a GPU has been met.
TUNED: dict[tuple[int, int], Tile] = {}


def gemv_tile(w: Packed, n_rows: int) -> Tile:
    """The tile of a matrix-vector product with ``n_rows`` output rows of the kind in ``w``.

    See ``limits.tile_shape`` for how it is chosen where nothing has been measured.
    """
    groups = w.groups
    if interpreted():
        return Tile(min(64, power_of_two(n_rows)), 1, min(64, power_of_two(groups)), 1)
    if (n_rows, groups) in TUNED:
        return TUNED[n_rows, groups]
    return Tile(*tile_shape(n_rows, groups))


def constants(w: Packed) -> dict[str, int]:
    """The compile-time constants by which a kernel reads the weight ``w``."""
    y = w.layout
    return {"G": w.groups, "LEVELS": y.levels, "HIGH": y.high, "ZERO": y.zero, "SCALES": y.scales}


def as_packed(w: Any) -> Packed:
    """``w`` itself; TypeError for a weight that was never uploaded."""
    if not isinstance(w, Packed):
        raise TypeError("this weight lies in GGUF blocks; upload it before the GPU's kernels read it")
    return w


def triton_dtype(dtype: torch.dtype) -> Any:
    """Triton's name of a torch type."""
    import torch
    import triton.language as tl

    return {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[dtype]
