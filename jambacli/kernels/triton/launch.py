"""How kernels are launched: tile sizes, the constants a weight's format fixes, scratch memory; knows nothing of models.

Tile sizes are chosen by shape alone, never by what else runs, so that a sum is added up in the same order every time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jambacli.kernels.triton.interpret import interpreted
from jambacli.kernels.triton.repack import NIBBLES, Packed

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Tile:
    """Rows and groups of 32 values that a program takes at a time, and its warps."""

    rows: int
    groups: int
    warps: int


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << max(0, n - 1).bit_length()


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


#: Measured choices for the matrix-vector product by (rows, groups), to replace the rule below; the GPU suite's sweep
#: prints what belongs here. Empty until a card has been met.
TUNED: dict[tuple[int, int], Tile] = {}


def gemv_tile(w: Packed, n_rows: int, *, gated: bool = False) -> Tile:
    """The tile of a matrix-vector product with ``n_rows`` output rows of the kind in ``w``.

    A thread reads sixteen bytes of each row of its tile, so that x is fetched once for all of them; the widest tile that
    leaves at most a fifth of the threads idle at a row's end; as many rows as leave a few programs a multiprocessor.
    """
    groups = w.groups
    if interpreted():
        return Tile(min(64, power_of_two(n_rows)), min(64, power_of_two(groups)), 4)
    if (n_rows, groups) in TUNED:
        return TUNED[n_rows, groups]
    rows = 4 if n_rows >= 1024 else 2
    if n_rows >= 8192 and w.layout.levels == NIBBLES and not w.layout.high and not gated:
        rows = 8  # the other formats would not fit into a thread's registers
    if groups <= 32:
        return Tile(rows, power_of_two(groups), 1)
    wide = next((w for w in (128, 64) if cdiv(groups, w) * w <= groups * 1.2), 32)
    return Tile(rows, wide, wide // 32)


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
