"""MXFP4 in torch: 32 four-bit floats (E2M1) that share a power of two (E8M0), as OCP's Microscaling specification has them.

It can be read, not written. As in ggml, a block is the byte of the exponent, then 16 bytes: level i low, level i + 16 high.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant.legacy import by_blocks, unpack_nibbles

# Twice the values of E2M1, as in ggml, so that they are whole numbers; the scale is half of the shared power of two.
GRID = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def _half_of_power(exponent: Tensor) -> Tensor:
    """2^(exponent - 128) as float32, from its bits; the two smallest are subnormal."""
    e = exponent.to(torch.int32)
    return torch.where(e < 2, 0x00200000 << e, (e - 1) << 23).to(torch.int32).view(torch.float32)


def _dequantize_mxfp4(blocks: Tensor) -> Tensor:
    grid = torch.tensor(GRID, dtype=torch.float32, device=blocks.device)
    return grid[unpack_nibbles(blocks[:, 1:]).long()] * _half_of_power(blocks[:, :1])


#: uint8 [rows, row bytes] -> float32 [rows, n].
dequantize_mxfp4 = by_blocks(_dequantize_mxfp4, 17)
