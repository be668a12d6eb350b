"""The order in which a decode step keeps its activations, and the norms' weights with them.

A thread of a product has a group of 32 values and loads it in chunks of four. Chunks are stored with those of eight consecutive
groups side by side, so that the eight threads that load the same chunk of their groups read 128 consecutive bytes: value v of
group g is at 256 (g // 8) + 32 (v // 4) + 4 (g % 8) + v % 4. A row is padded with zeros to a multiple of 256 values. Whatever
writes activations (a product, the scan, attention, the embedding) writes them in this order, so it costs no kernel of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton

if TYPE_CHECKING:
    import torch

#: Values that are interleaved with each other: eight groups of 32.
BLOCK = 256


def padded(n: int) -> int:
    """The length of an interleaved row of ``n`` values."""
    return -(-n // BLOCK) * BLOCK


def interleaved(x: torch.Tensor) -> torch.Tensor:
    """Rows [..., n] in the order of a decode step: a new tensor [..., padded(n)]."""
    import torch.nn.functional as F

    n = x.shape[-1]
    blocks = F.pad(x, (0, padded(n) - n)).unflatten(-1, (-1, 8, 8, 4))
    return blocks.transpose(-3, -2).flatten(-4).contiguous()


def natural(x: torch.Tensor, n: int) -> torch.Tensor:
    """The first ``n`` values of interleaved rows [..., padded(n)] in their usual order: a new tensor [..., n]."""
    return x.unflatten(-1, (-1, 8, 8, 4)).transpose(-3, -2).flatten(-4)[..., :n].contiguous()


@triton.jit
def place(i):
    """Where value i of a row is stored."""
    return i // 256 * 256 + i % 32 // 4 * 32 + i // 32 % 8 * 4 + i % 4
