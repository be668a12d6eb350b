"""MXFP4 and NVFP4 in torch: four-bit floats (E2M1) whose blocks share a factor. They can be read, not written.

As in ggml, a group of values is bytes with level i low and level i + half the group high.

    MXFP4   32 values: the byte of a power of two (E8M0, OCP's Microscaling specification), 16 bytes
    NVFP4   64 values: four factors of 16 values each (E4M3 without its sign), four times 8 bytes
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant.legacy import by_blocks, unpack_nibbles

# Twice the values of E2M1, as in ggml, so that they are whole numbers; the factors are halved.
GRID = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
_NVFP4_GROUPS = 4


def _half_of_power(exponent: Tensor) -> Tensor:
    """2^(exponent - 128) as float32, from its bits; the two smallest are subnormal."""
    e = exponent.to(torch.int32)
    return torch.where(e < 2, 0x00200000 << e, (e - 1) << 23).to(torch.int32).view(torch.float32)


def _half_of_e4m3(byte: Tensor) -> Tensor:
    """Half of an E4M3 without a sign as float32; 0x7F, which is no number, counts as 0 in ggml."""
    e, mantissa = (byte >> 3 & 15).to(torch.int32), (byte & 7).to(torch.float32)
    power = ((e.clamp(min=1) + (127 - 11)) << 23).view(torch.float32)  # 2^(e - 7) / 8 / 2
    return torch.where(byte == 0x7F, 0.0, (mantissa + torch.where(e > 0, 8.0, 0.0)) * power)


def _levels(packed: Tensor) -> Tensor:
    """Bytes [groups, half] as twice the values of E2M1, float32 [groups, 2 * half]."""
    grid = torch.tensor(GRID, dtype=torch.float32, device=packed.device)
    return grid[unpack_nibbles(packed).long()]


def _dequantize_mxfp4(blocks: Tensor) -> Tensor:
    return _levels(blocks[:, 1:]) * _half_of_power(blocks[:, :1])


def _dequantize_nvfp4(blocks: Tensor) -> Tensor:
    factors = _half_of_e4m3(blocks[:, :_NVFP4_GROUPS].reshape(-1, 1))
    return (_levels(blocks[:, _NVFP4_GROUPS:].reshape(len(factors), -1)) * factors).view(len(blocks), -1)


#: uint8 [rows, row bytes] -> float32 [rows, n].
DEQUANTIZERS = {"mxfp4": by_blocks(_dequantize_mxfp4, 17), "nvfp4": by_blocks(_dequantize_nvfp4, 36)}
