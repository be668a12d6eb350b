"""F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 in torch: the reference, and what runs on CUDA.

Blocks of 32 as ggml lays them out, with the bytes of its x86-64 quantizers. The functions work on blocks as columns: values
[32, blocks], levels int32 [32, blocks], bytes int32 [bytes, blocks]. With an imatrix, Q4 and Q5 search as K-quants do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quant.k_search import divide, fit_affine, fit_symmetric, largest, ordered_sum, square_root

BLOCK = 32
BELOW_HALF = 0.49999997  # the float32 just under a half


# ---- shared with iq4 and k_quants ----


def to_columns(x: Tensor, length: int) -> Tensor:
    """[rows, n] -> [length, rows * n / length]: every block a column."""
    return x.reshape(-1, length).T.contiguous()


def importance_columns(weights: Tensor, rows: int, length: int) -> Tensor:
    """Importance [n] -> [length, rows * n / length], the same for every row."""
    return weights.view(1, -1, length).expand(rows, -1, length).reshape(-1, length).T.contiguous()


def to_rows(coded: Tensor, rows: int) -> Tensor:
    """Bytes int32 [bytes, blocks] -> uint8 [rows, row bytes]."""
    return coded.T.to(torch.uint8).reshape(rows, -1)


def half_bytes(*values: Tensor) -> Tensor:
    """float32 ``values`` [blocks] as the bytes of float16; NaN becomes the one that x86 arithmetic makes."""
    out = []
    for value in values:
        bits = value.to(torch.float16).view(torch.int16).to(torch.int32) & 0xFFFF
        bits = torch.where(torch.isnan(value), 0xFE00, bits)
        out += [bits & 255, bits >> 8]
    return torch.stack(out)


def half_at(blocks: Tensor, at: int) -> Tensor:
    """The float16 at byte ``at`` of each block, as float32 [blocks, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).to(torch.float32)


def pack_nibbles(levels: Tensor) -> Tensor:
    """Levels [32, blocks] -> bytes [16, blocks]: byte j has level j low and level j + 16 high."""
    return (levels[:16] & 15) | (levels[16:] & 15) << 4


def unpack_nibbles(packed: Tensor) -> Tensor:
    """uint8 [blocks, 16] -> uint8 [blocks, 32], the inverse of ``pack_nibbles``."""
    return torch.cat([packed & 15, packed >> 4], dim=1)


def reciprocal_or_zero(d: Tensor) -> Tensor:
    """1 / d, and 0 where d is 0."""
    return torch.where(d == 0, 0.0, divide(1.0, d))


def _truncate(x: Tensor) -> Tensor:
    """int32, rounded toward zero; INT_MIN where the value does not fit, as on x86."""
    fits = x.abs() < 2147483648.0
    return torch.where(fits, torch.where(fits, x, 0.0).to(torch.int32), -2147483648)


# ---- without an imatrix ----


def _q8_0_bytes(x: Tensor) -> Tensor:
    d = divide(x.abs().amax(0), 127.0)
    scaled = x * reciprocal_or_zero(d)
    nudge = torch.copysign(torch.full_like(x, BELOW_HALF), scaled)
    return torch.cat([half_bytes(d), _truncate(scaled + nudge) & 255])  # halves away from zero


def _symmetric_levels(x: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Scale [blocks] and levels 0..2 * ``top`` - 1; the value of largest magnitude becomes level 0."""
    peak, _ = largest(x)
    d = divide(peak, float(-top))
    byte = _truncate(x * reciprocal_or_zero(d) + (top + 0.5)) << 24 >> 24
    return d, byte.clamp(max=2 * top - 1) & 255


def _affine_levels(x: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and least value [blocks], and levels 0..``top``."""
    low, high = x[0], x[0]
    for row in x[1:]:  # one at a time, so that the first of 0.0 and -0.0 is stored, as in ggml
        low = torch.where(row < low, row, low)
        high = torch.where(high < row, row, high)
    d = divide(high - low, float(top))
    levels = _truncate((x - low) * reciprocal_or_zero(d) + 0.5) & 255
    return d, low, levels.clamp(max=15) if top == 15 else levels  # ggml clamps only the four-bit levels


# ---- with an imatrix ----


def row_mean_square(x: Tensor) -> Tensor:
    """[rows, n] -> [rows]; the sums run from left to right, as ggml's do."""
    return divide(ordered_sum((x * x).T), float(x.shape[1]))


def weigh(x: Tensor, importance: Tensor, spread: Tensor) -> Tensor:
    """ggml's weight of each value: importance * sqrt(spread + x^2)."""
    return importance * square_root(spread + x * x)


def _columns_and_weights(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The values [32, blocks] and their weights in the search."""
    spread = row_mean_square(rows).repeat_interleave(rows.shape[1] // BLOCK)
    values = to_columns(rows, BLOCK)
    return values, weigh(values, importance_columns(weights, rows.shape[0], BLOCK), spread)


def _symmetric(rows: Tensor, weights: Tensor | None, top: int) -> tuple[Tensor, Tensor]:
    if weights is None:
        return _symmetric_levels(to_columns(rows, BLOCK), top)
    x, w = _columns_and_weights(rows, weights)
    fit = fit_symmetric(x, w, top)
    return fit.scale, fit.levels(x, top)


def _affine(rows: Tensor, weights: Tensor | None, top: int) -> tuple[Tensor, Tensor, Tensor]:
    if weights is None:
        return _affine_levels(to_columns(rows, BLOCK), top)
    x, w = _columns_and_weights(rows, weights)
    fit = fit_affine(x, w, top, -0.9, 0.05, 36, absolute=False)
    return fit.scale, -fit.offset, fit.levels(x, top)


def _fifth_bits(levels: Tensor) -> Tensor:
    """Bytes [4, blocks]: bit j of the 32 is bit 4 of level j."""
    shifts = torch.arange(8, dtype=torch.int32, device=levels.device).view(1, 8, 1)
    return ((levels >> 4 & 1).view(4, 8, -1) << shifts).sum(1, dtype=torch.int32)


# ---- rows to blocks ----


def quantize_q8_0(rows: Tensor, weights: Tensor | None) -> Tensor:
    """ggml does not search for Q8_0, so an imatrix changes nothing."""
    return to_rows(_q8_0_bytes(to_columns(rows, BLOCK)), rows.shape[0])


def quantize_q4_0(rows: Tensor, weights: Tensor | None) -> Tensor:
    d, levels = _symmetric(rows, weights, 8)
    return to_rows(torch.cat([half_bytes(d), pack_nibbles(levels)]), rows.shape[0])


def quantize_q5_0(rows: Tensor, weights: Tensor | None) -> Tensor:
    d, levels = _symmetric(rows, weights, 16)
    return to_rows(torch.cat([half_bytes(d), _fifth_bits(levels), pack_nibbles(levels)]), rows.shape[0])


def quantize_q4_1(rows: Tensor, weights: Tensor | None) -> Tensor:
    d, low, levels = _affine(rows, weights, 15)
    return to_rows(torch.cat([half_bytes(d, low), pack_nibbles(levels)]), rows.shape[0])


def quantize_q5_1(rows: Tensor, weights: Tensor | None) -> Tensor:
    d, low, levels = _affine(rows, weights, 31)
    return to_rows(torch.cat([half_bytes(d, low), _fifth_bits(levels), pack_nibbles(levels)]), rows.shape[0])


def _quantize_plain(dtype: torch.dtype) -> Callable[[Tensor, Tensor | None], Tensor]:
    return lambda rows, weights: rows.to(dtype).contiguous().view(torch.uint8)


QUANTIZERS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "f32": _quantize_plain(torch.float32),
    "f16": _quantize_plain(torch.float16),
    "bf16": _quantize_plain(torch.bfloat16),
    "q8_0": quantize_q8_0,
    "q4_0": quantize_q4_0,
    "q4_1": quantize_q4_1,
    "q5_0": quantize_q5_0,
    "q5_1": quantize_q5_1,
}


# ---- blocks to rows; the functions take uint8 [blocks, bytes] and return float32 [blocks, 32] ----


def _dequantize_q8_0(b: Tensor) -> Tensor:
    return b[:, 2:].contiguous().view(torch.int8).to(torch.float32) * half_at(b, 0)


def _dequantize_q4_0(b: Tensor) -> Tensor:
    return (unpack_nibbles(b[:, 2:]).to(torch.float32) - 8.0) * half_at(b, 0)


def _dequantize_q4_1(b: Tensor) -> Tensor:
    return unpack_nibbles(b[:, 4:]).to(torch.float32) * half_at(b, 0) + half_at(b, 2)


def _with_fifth_bits(b: Tensor, at: int) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=b.device)
    high = (b[:, at : at + 4].unsqueeze(-1) >> shifts & 1).view(-1, BLOCK)
    return (unpack_nibbles(b[:, at + 4 :]) | high << 4).to(torch.float32)


def _dequantize_q5_0(b: Tensor) -> Tensor:
    return (_with_fifth_bits(b, 2) - 16.0) * half_at(b, 0)


def _dequantize_q5_1(b: Tensor) -> Tensor:
    return _with_fifth_bits(b, 4) * half_at(b, 0) + half_at(b, 2)


def by_blocks(dequantize: Callable[[Tensor], Tensor], block_bytes: int) -> Callable[[Tensor], Tensor]:
    """Make a dequantizer of blocks one of rows: uint8 [rows, row bytes] -> float32 [rows, n]."""
    return lambda rows: dequantize(rows.reshape(-1, block_bytes)).reshape(rows.shape[0], -1)


def _dequantize_plain(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda rows: rows.contiguous().view(dtype).to(torch.float32)


DEQUANTIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "f32": _dequantize_plain(torch.float32),
    "f16": _dequantize_plain(torch.float16),
    "bf16": _dequantize_plain(torch.bfloat16),
    "q8_0": by_blocks(_dequantize_q8_0, 34),
    "q4_0": by_blocks(_dequantize_q4_0, 18),
    "q4_1": by_blocks(_dequantize_q4_1, 20),
    "q5_0": by_blocks(_dequantize_q5_0, 22),
    "q5_1": by_blocks(_dequantize_q5_1, 24),
}
