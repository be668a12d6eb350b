"""The fields of blocks as ``refine_reference`` works on them: bytes of one column block -> scales, minimums and levels."""

from __future__ import annotations

import torch
from torch import Tensor

from quant.formats import get_format
from quant.iq4 import GRID
from quant.legacy import half_at
from quant.refine_reference import LAYOUTS, Grid


def read_grid(blocks: Tensor, fmt: str) -> Grid:
    """The Grid of uint8 ``blocks`` [rows, bytes]: a super-block, or some blocks of 32, of each row."""
    form, layout = get_format(fmt), LAYOUTS[fmt]
    rows = len(blocks)
    if layout.scales:
        d_at, dmin_at = {"q2_k": (80, 82), "q3_k": (108, None), "q6_k": (208, None)}.get(fmt, (0, 2))
        d = half_at(blocks, d_at).view(1, rows)
        dmin = half_at(blocks, dmin_at).view(1, rows) if layout.affine and dmin_at is not None else torch.zeros(1, rows)
        scale, minimum, level = _nested(blocks, fmt)
    else:
        parts = blocks.reshape(-1, form.block_bytes)
        d = half_at(parts, 0).view(rows, -1).T.clone()
        dmin = half_at(parts, 2).view(rows, -1).T.clone() if layout.affine else torch.zeros_like(d)
        scale = minimum = torch.zeros(len(d), rows)
        level = _plain(parts, fmt).view(rows, -1)
    level = torch.tensor(GRID, dtype=torch.float32)[level.long()] if layout.table else level.float()
    minimum = minimum.float().clone()
    return Grid(layout, level.T.contiguous().clone(), d.clone(), dmin.clone(), scale.float().clone(), minimum)


def _bits(b: Tensor, *shifts: int) -> Tensor:
    """[rows, k] -> int32 [rows, len(shifts) * k]: the bytes shifted right by each in turn."""
    return torch.cat([b.to(torch.int32) >> shift for shift in shifts], dim=1)


def _halves(b: Tensor, parts: int, *shifts: int) -> Tensor:
    """``_bits`` of each of ``parts`` equal parts, one after the other."""
    return torch.cat([_bits(part, *shifts) for part in b.chunk(parts, dim=1)], dim=1)


def _nested(b: Tensor, fmt: str) -> tuple[Tensor, Tensor, Tensor]:
    """Scales and minimums [sub-blocks, rows], levels [rows, 256]."""
    if fmt in ("q4_k", "q5_k"):
        head, middle, tail = b[:, 4:8].int(), b[:, 8:12].int(), b[:, 12:16].int()
        scale = torch.cat([head & 63, (tail & 15) | head >> 6 << 4], dim=1)
        minimum = torch.cat([middle & 63, tail >> 4 | middle >> 6 << 4], dim=1)
        level = _halves(b[:, -128:], 4, 0, 4) & 15
        if fmt == "q5_k":
            level = level | (_bits(b[:, 16:48], *range(8)) & 1) << 4
        return scale.T, minimum.T, level
    if fmt == "q2_k":
        return (b[:, :16] & 15).T, (b[:, :16] >> 4).T, _halves(b[:, 16:80], 2, 0, 2, 4, 6) & 3
    none = torch.zeros(16, len(b))
    if fmt == "q3_k":
        low, high = _bits(b[:, 96:104], 0, 4) & 15, _bits(b[:, 104:108], 0, 2, 4, 6) & 3
        level = (_halves(b[:, 32:96], 2, 0, 2, 4, 6) & 3) | (_bits(b[:, :32], *range(8)) & 1) << 2
        return ((low | high << 4) - 32).T, none, level - 4
    if fmt == "q6_k":
        low = _halves(b[:, :128], 2, 0, 4) & 15
        level = low | (_halves(b[:, 128:192], 2, 0, 2, 4, 6) & 3) << 4
        return b[:, 192:208].contiguous().view(torch.int8).T, none, level - 32
    word = b[:, 2:3].int() | b[:, 3:4].int() << 8
    low = torch.stack([b[:, 4:8].int() & 15, b[:, 4:8].int() >> 4], dim=2).flatten(1)
    high = torch.cat([word >> 2 * j & 3 for j in range(8)], dim=1)
    return ((low | high << 4) - 32).T, none, _halves(b[:, 8:], 8, 0, 4) & 15


def _plain(b: Tensor, fmt: str) -> Tensor:
    """Levels [blocks, 32]."""
    if fmt == "q8_0":
        return b[:, 2:].contiguous().view(torch.int8).int()
    level = _bits(b[:, -16:], 0, 4) & 15
    if fmt in ("q5_0", "q5_1"):
        at = 2 if fmt == "q5_0" else 4
        fifth = torch.stack([b[:, at + i // 8].int() >> i % 8 & 1 for i in range(32)], dim=1)
        level = level | fifth << 4
    return level - {"q4_0": 8, "q5_0": 16}.get(fmt, 0)
