"""Q1_0 and Q2_0 in torch: a float16 d, then one or two bits a value, lowest bits first. They can be read, not written.

Q1_0   128 values: -d or d
Q2_0   64 values: -d, 0, d or 2 d
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant.legacy import by_blocks, half_at


def _fields(packed: Tensor, bits: int) -> Tensor:
    """The fields of ``bits`` bits in uint8 [blocks, bytes], lowest first: uint8 [blocks, bytes * 8 / bits]."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return (packed[:, :, None] >> shifts & ((1 << bits) - 1)).flatten(1)


def _dequantize_q1_0(blocks: Tensor) -> Tensor:
    d = half_at(blocks, 0)
    return torch.where(_fields(blocks[:, 2:], 1) > 0, d, -d)


def _dequantize_q2_0(blocks: Tensor) -> Tensor:
    return (_fields(blocks[:, 2:], 2).to(torch.float32) - 1) * half_at(blocks, 0)


#: uint8 [rows, row bytes] -> float32 [rows, n].
DEQUANTIZERS = {"q1_0": by_blocks(_dequantize_q1_0, 18), "q2_0": by_blocks(_dequantize_q2_0, 18)}
