"""IQ4_NL and IQ4_XS in torch: the reference, and what runs on CUDA.

Four-bit levels on a fixed non-linear grid: blocks of 32 with one scale, or super-blocks of 256 with a six-bit scale for
each 32. The bytes are those of ggml's search. As in quant.legacy, blocks are columns.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from quant.k_search import NEGLIGIBLE, divide, largest, nearest_int, ordered_sum
from quant.legacy import (
    BLOCK,
    by_blocks,
    half_at,
    half_bytes,
    importance_columns,
    pack_nibbles,
    reciprocal_or_zero,
    to_columns,
    to_rows,
    unpack_nibbles,
    weigh,
)

SUPER = 256
GRID = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
TRIES = 7  # scales tried above and below the first one


def _nearest_level(x: Tensor) -> Tensor:
    """int64 index of the nearest grid value, ties upwards; NaN gives the highest."""
    boundaries = torch.tensor([(a + b) / 2 for a, b in pairwise(GRID)], device=x.device)
    return torch.bucketize(torch.where(torch.isnan(x), torch.inf, x), boundaries, right=True)


def _fit_grid(x: Tensor, w: Tensor) -> Tensor:
    """Scale [blocks] of values ``x`` and weights ``w`` [32, blocks] with the least weighted error; 0 for negligible blocks."""
    grid = torch.tensor(GRID, dtype=torch.float32, device=x.device)
    peak, most = largest(x)

    def sums(step: Tensor) -> tuple[Tensor, Tensor]:
        q = grid[_nearest_level(step * x)]
        wq = w * q
        return ordered_sum(wq * x), ordered_sum(wq * q)

    sum_x, sum_q = sums(divide(1.0, divide(-peak, float(GRID[0]))))
    scale = torch.where(sum_q > 0, divide(sum_x, sum_q), 0.0)
    best = scale * sum_x
    for k in range(-TRIES, TRIES + 1):
        sum_x, sum_q = sums(divide(float(k + GRID[0]), peak))
        better = (sum_q > 0) & (sum_x * sum_x > best * sum_q)
        found = divide(sum_x, sum_q)
        scale = torch.where(better, found, scale)
        best = torch.where(better, found * sum_x, best)
    return torch.where(most < NEGLIGIBLE, 0.0, scale)


def _weights(x: Tensor, importance: Tensor | None) -> Tensor:
    """Search weights [length, blocks] of whole (super-)blocks; with importance, the spread is twice the mean square."""
    squares = x * x
    if importance is None:
        return squares
    return weigh(x, importance, ordered_sum(squares) * (2.0 / len(x)))


def quantize_iq4_nl(rows: Tensor, weights: Tensor | None) -> Tensor:
    """float32 [rows, n], importance [n] or None -> uint8 [rows, row bytes]."""
    x = to_columns(rows, BLOCK)
    importance = None if weights is None else importance_columns(weights, rows.shape[0], BLOCK)
    scale = _fit_grid(x, _weights(x, importance))
    levels = _nearest_level(reciprocal_or_zero(scale) * x).to(torch.int32)
    return to_rows(torch.cat([half_bytes(scale), pack_nibbles(levels)]), rows.shape[0])


def quantize_iq4_xs(rows: Tensor, weights: Tensor | None) -> Tensor:
    """float32 [rows, n], importance [n] or None -> uint8 [rows, row bytes]."""
    x = to_columns(rows, SUPER)
    importance = None if weights is None else importance_columns(weights, rows.shape[0], SUPER)
    w = _weights(x, importance)
    scales = torch.stack([_fit_grid(x[at : at + BLOCK], w[at : at + BLOCK]) for at in range(0, SUPER, BLOCK)])
    peak, _ = largest(scales)
    d = divide(-peak, 32.0)
    six = nearest_int(reciprocal_or_zero(d) * scales).clamp_(-32, 31)
    per_step = reciprocal_or_zero(d * six.to(torch.float32))
    levels = _nearest_level(per_step.repeat_interleave(BLOCK, dim=0) * x).to(torch.int32)
    six = six + 32
    high = six >> 4
    high_bytes = [high[at] | high[at + 1] << 2 | high[at + 2] << 4 | high[at + 3] << 6 for at in (0, 4)]
    low_bytes = (six[0::2] & 15) | (six[1::2] & 15) << 4
    packed = pack_nibbles(levels.view(8, BLOCK, -1).transpose(0, 1).reshape(BLOCK, -1))  # [16, 8 * blocks]
    packed = packed.view(16, 8, -1).transpose(0, 1).reshape(128, -1)
    return to_rows(torch.cat([half_bytes(d), torch.stack(high_bytes), low_bytes, packed]), rows.shape[0])


QUANTIZERS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "iq4_nl": quantize_iq4_nl,
    "iq4_xs": quantize_iq4_xs,
}


def _grid_values(packed: Tensor) -> Tensor:
    """uint8 [blocks, 16] -> float32 [blocks, 32]."""
    grid = torch.tensor(GRID, dtype=torch.float32, device=packed.device)
    return grid[unpack_nibbles(packed).to(torch.int64)]


def _dequantize_iq4_nl(b: Tensor) -> Tensor:
    return _grid_values(b[:, 2:]) * half_at(b, 0)


def _dequantize_iq4_xs(b: Tensor) -> Tensor:
    pairs = torch.arange(0, 8, 2, dtype=torch.uint8, device=b.device)
    high = (b[:, 2:4].unsqueeze(-1) >> pairs & 3).reshape(-1, 8)
    low = torch.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], dim=-1).reshape(-1, 8)
    scale = half_at(b, 0) * ((low | high << 4).to(torch.float32) - 32.0)
    return (_grid_values(b[:, 8:].reshape(-1, 16)).view(-1, 8, BLOCK) * scale.unsqueeze(-1)).view(-1, SUPER)


DEQUANTIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "iq4_nl": by_blocks(_dequantize_iq4_nl, 18),
    "iq4_xs": by_blocks(_dequantize_iq4_xs, 136),
}
