"""What a warp's loads of activations ask of a GPU's L1 cache, from the addresses that a kernel computes.

Under Triton's interpreter a kernel runs with the tile that a GPU gets, and every load from the activations (or the norm's
weight) is recorded: element t of the kernel's one dimension is thread t, so 32 consecutive ones are a warp. A thread loads 16
bytes.
``python -m tests.support.warp_loads`` prints the table of docs/cuda.md (with TRITON_INTERPRET=1).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


@dataclasses.dataclass(frozen=True)
class WarpLoad:
    """The worst of a kernel's warp loads: cache ``lines`` of 128 bytes that it touches, and wavefronts (accesses in which each
    of 32 banks delivers one word) if a warp's equal addresses are served together, and if its quarters are served one by one.
    """

    loads: int
    lines: int
    wavefronts: int
    by_quarters: int


@contextlib.contextmanager
def recorded_loads(*tensors: torch.Tensor) -> Iterator[list[np.ndarray]]:
    """In this context, the addresses of every load from ``tensors``, as the kernel's elements [threads, values per thread]."""
    from triton.runtime.interpreter import InterpreterBuilder

    found: list[np.ndarray] = []
    original = InterpreterBuilder.create_masked_load
    spans = [(t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors]

    def load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        at = np.asarray(ptrs.data)
        if at.ndim == 2 and any(start <= int(at.flat[0]) < stop for start, stop in spans):
            found.append(at.astype(np.int64))
        return original(self, ptrs, mask, *rest)

    InterpreterBuilder.create_masked_load = load
    try:
        yield found
    finally:
        InterpreterBuilder.create_masked_load = original


def wavefronts(words: np.ndarray) -> int:
    """Accesses that deliver the 4-byte words at these addresses: the most different ones in one of 32 banks."""
    words = np.unique(words // 4)
    return int(np.bincount(words % 32).max())


def worst(found: list[np.ndarray]) -> WarpLoad:
    """The worst of the recorded loads, warp by warp."""
    lines, together, apart = 0, 0, 0
    for at in found:
        for warp in at.reshape(-1, 32, at.shape[1]):
            lines = max(lines, len(np.unique(warp // 128)))
            together = max(together, wavefronts(warp))
            apart = max(apart, sum(wavefronts(quarter) for quarter in warp.reshape(4, 8, -1)))
    return WarpLoad(len(found), lines, together, apart)


def of_a_product(fmt: str, rows: int, warps: int, *, interleaved: bool) -> WarpLoad:
    """The activations' loads of a product after a norm, by the tile that a GPU gets."""
    from jambacli.evaluation.synthetic import random_weight
    from jambacli.gpu_check.parity import packed_on
    from jambacli.kernels.triton.gemv import gemv
    from jambacli.kernels.triton.launch import Tile

    tile, k = Tile(rows, warps), 256 * warps
    w = packed_on(random_weight(fmt, (tile.height, k)), torch.device("cpu"))
    # Activations begin at a line, as torch's allocator and the buffers of a step place them.
    area = torch.zeros(2 * k + 32)
    first = -area.data_ptr() // 4 % 32
    x, norm = area[first : first + k].view(1, k), torch.zeros(k + 32)
    norm = norm[(n := -norm.data_ptr() // 4 % 32) : n + k]
    with recorded_loads(x, norm) as found:
        gemv(x, w, norm=norm, eps=1e-6, tile=tile, interleaved=interleaved)
    return worst(found)


if __name__ == "__main__":
    from jambacli.kernels.triton.repack import LAYOUTS

    print("| format | loads per turn | lines per load, before | now | L1 cycles per load, before | now |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in LAYOUTS:
        old, new = (of_a_product(name, 2, 2, interleaved=order) for order in (False, True))
        print(
            f"| {name} | {new.loads} | {old.lines} | {new.lines} | {old.wavefronts} to {old.by_quarters} | "
            f"{new.wavefronts} to {new.by_quarters} |"
        )
