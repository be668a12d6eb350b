"""Q2_K Q3_K Q4_K Q5_K Q6_K in torch: the reference, and what runs on CUDA.

Super-blocks of 256 values as ggml lays them out, with the bytes of its x86-64 quantizers: ``quantize_row_*_ref`` without an
imatrix, ``quantize_row_*_impl`` with one. The functions work on super-blocks as columns: values [256, blocks], levels int32
[256, blocks], bytes int32 [bytes, blocks].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quant.formats import get_format
from quant.k_search import (
    NEGLIGIBLE,
    divide,
    fit_affine,
    fit_descent,
    fit_scales,
    fit_symmetric,
    largest,
    nearest_int,
    ordered_sum,
    square_root,
)
from quant.legacy import half_at, weigh

SUPER = 256


def quantize_k(x: Tensor, fmt: str, imatrix: Tensor | None = None) -> Tensor:
    """Blocks of float32 ``x`` [rows, n] in K-quant ``fmt``: uint8 [rows, bytes per row], on ``x``'s device.

    ``imatrix`` is float32 [n], the importance of each column, not negative. ValueError when n is not a multiple of 256.
    """
    form = get_format(fmt)
    rows, n = x.shape
    out = torch.empty(rows, form.row_bytes(n), dtype=torch.uint8, device=x.device)
    per_row = n // SUPER
    weights = None if imatrix is None else imatrix.to(x.device, torch.float32).view(per_row, SUPER)
    step = _rows_at_once(x, per_row)
    for first in range(0, rows, step):
        part = x[first : first + step]
        values = part.reshape(-1, SUPER).T.contiguous()
        importance = None
        if weights is not None:
            importance = weights.expand(len(part), per_row, SUPER).reshape(-1, SUPER).T.contiguous()
        blocks = _QUANTIZERS[form.name](values, importance)
        out[first : first + step] = blocks.T.to(torch.uint8).reshape(len(part), -1)
    return out


def dequantize_k(blocks: Tensor, fmt: str) -> Tensor:
    """float32 [rows, n] of uint8 ``blocks`` [rows, bytes per row] in K-quant ``fmt``; ValueError for an incomplete block."""
    form = get_format(fmt)
    rows, row_bytes = blocks.shape
    if row_bytes % form.block_bytes:
        raise ValueError(f"a row of {row_bytes} bytes is not a multiple of {form.name}'s block of {form.block_bytes}")
    per_row = row_bytes // form.block_bytes
    out = torch.empty(rows, per_row * SUPER, dtype=torch.float32, device=blocks.device)
    step = _rows_at_once(blocks, per_row)
    for first in range(0, rows, step):
        part = blocks[first : first + step].reshape(-1, form.block_bytes)
        out[first : first + step] = _DEQUANTIZERS[form.name](part).reshape(-1, per_row * SUPER)
    return out


def _rows_at_once(tensor: Tensor, per_row: int) -> int:
    """The number of rows whose temporaries stay in a CPU's caches, or within a few hundred MB on a GPU."""
    return max(1, (2048 if tensor.device.type == "cpu" else 65536) // max(1, per_row))


# ---- shared by the formats ----


def _split(x: Tensor, length: int) -> Tensor:
    """[256, blocks] -> [length, sub-blocks * blocks]: each sub-block a column, ordered by sub-block, then by block."""
    return x.view(SUPER // length, length, -1).transpose(0, 1).reshape(length, -1)


def _join(x: Tensor, blocks: int) -> Tensor:
    """The inverse of ``_split``."""
    return x.view(len(x), -1, blocks).transpose(0, 1).reshape(SUPER, blocks)


def _half_bits(x: Tensor) -> Tensor:
    """int32 bits of ``x`` rounded to float16; NaN gets the bits that x86 arithmetic makes."""
    bits = x.to(torch.float16).view(torch.int16).to(torch.int32) & 0xFFFF
    return torch.where(torch.isnan(x), 0xFE00, bits)


def _from_half_bits(bits: Tensor) -> Tensor:
    signed = torch.where(bits >= 0x8000, bits - 0x10000, bits).to(torch.int16)
    return signed.view(torch.float16).to(torch.float32)


def _half_bytes(*halves: Tensor) -> Tensor:
    return torch.stack([byte for bits in halves for byte in (bits & 255, bits >> 8)])


def _round_levels(x: Tensor, d: Tensor, offset: Tensor | None, low: int, high: int, searched: Tensor) -> Tensor:
    """Levels [length, sub-blocks * blocks] for the rounded scale ``d``; where that is zero, the ``searched`` levels."""
    d = d.reshape(-1)
    moved = x if offset is None else x + offset.reshape(-1)
    return torch.where(d == 0, searched, nearest_int(divide(moved, d)).clamp_(low, high) - low)


def _pack_two_bits(levels: Tensor) -> Tensor:
    q = levels.view(2, 4, 32, -1)
    return (q[:, 0] | q[:, 1] << 2 | q[:, 2] << 4 | q[:, 3] << 6).reshape(64, -1)


def _pack_four_bits(levels: Tensor) -> Tensor:
    q = (levels & 15).view(4, 2, 32, -1)
    return (q[:, 0] | q[:, 1] << 4).reshape(128, -1)


def _pack_bit(levels: Tensor, bit: int) -> Tensor:
    """Bytes [32, blocks] of bit ``bit`` of the levels: byte l has those of levels l, l + 32, ..., l + 224."""
    q = (levels >> bit & 1).view(8, 32, -1)
    shifts = torch.arange(8, dtype=torch.int32, device=levels.device).view(8, 1, 1)
    return (q << shifts).sum(0, dtype=torch.int32)


# ---- Q4_K and Q5_K: eight sub-blocks of 32, six-bit scales and offsets ----


def _pack_six_bits(scale: Tensor, offset: Tensor) -> Tensor:
    """Scales and offsets [8, blocks] -> [12, blocks]; values over 63 spill into other bits, as in ggml."""
    head = (scale[:4] | scale[4:] >> 4 << 6) & 255
    middle = (offset[:4] | offset[4:] >> 4 << 6) & 255
    return torch.cat([head, middle, (scale[4:] & 15) | (offset[4:] & 15) << 4])


def _unpack_six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    head, middle, tail = packed[:4], packed[4:8], packed[8:]
    scale = torch.cat([head & 63, (tail & 15) | head >> 6 << 4])
    return scale, torch.cat([middle & 63, tail >> 4 | middle >> 6 << 4])


def _levels_of_32(x: Tensor, importance: Tensor | None, top: int) -> tuple[Tensor, Tensor]:
    """Levels [256, blocks] and the first 16 bytes [16, blocks] of Q4_K (``top`` 15) or Q5_K (``top`` 31)."""
    blocks = x.shape[1]
    values = _split(x, 32)
    if importance is None:
        w = square_root(divide(ordered_sum(values * values), 32.0)) + values.abs()
        fit = fit_affine(values, w, top, -1.0 if top == 15 else -0.5, 0.1, 20 if top == 15 else 15, absolute=False)
        scale, offset = fit.scale.view(8, blocks), fit.offset.view(8, blocks)
        top_scale, top_offset = _highest(scale), _highest(offset)
        scale_level = _bounded_levels(scale, top_scale)
        offset_level = _bounded_levels(offset, top_offset)
        d, dmin = _half_bits(divide(top_scale, 63.0)), _half_bits(divide(top_offset, 63.0))
    else:
        spread = divide(2 * ordered_sum(x * x), float(SUPER))
        w = _split(weigh(x, importance, spread), 32)
        fit = fit_affine(values, w, top, -0.9, 0.05, 36, absolute=False)
        weight = ordered_sum(w).view(8, blocks)
        factor, scale_level = fit_scales(fit.scale.view(8, blocks), weight, 63)
        offset_factor, offset_level = fit_scales(fit.offset.view(8, blocks), weight, 63)
        if top == 31:  # ggml clamps the bytes again in Q5_K alone
            scale_level, offset_level = scale_level.clamp(max=63), offset_level.clamp(max=63)
        d, dmin = _half_bits(factor), _half_bits(offset_factor)
    packed = _pack_six_bits(scale_level, offset_level)
    scale_level, offset_level = _unpack_six_bits(packed)
    sub_scale = _from_half_bits(d) * scale_level.to(torch.float32)
    sub_offset = _from_half_bits(dmin) * offset_level.to(torch.float32)
    levels = _round_levels(values, sub_scale, sub_offset, 0, top, fit.levels(values, top))
    return _join(levels, blocks), torch.cat([_half_bytes(d, dmin), packed])


def _highest(x: Tensor) -> Tensor:
    """The highest value over the first dimension, at least zero, ignoring NaNs."""
    top = torch.zeros_like(x[0])
    for row in x:
        top = torch.where(row > top, row, top)
    return top


def _bounded_levels(x: Tensor, top: Tensor) -> Tensor:
    per = torch.where(top > 0, divide(63.0, top), 0.0)
    return (nearest_int(per * x) & 255).clamp_(max=63)


def _quantize_q4_k(x: Tensor, importance: Tensor | None) -> Tensor:
    levels, head = _levels_of_32(x, importance, 15)
    return torch.cat([head, _pack_four_bits(levels)])


def _quantize_q5_k(x: Tensor, importance: Tensor | None) -> Tensor:
    levels, head = _levels_of_32(x, importance, 31)
    return torch.cat([head, _pack_bit(levels, 4), _pack_four_bits(levels)])


# ---- Q2_K: sixteen sub-blocks of 16, four-bit scales and offsets ----


def _quantize_q2_k(x: Tensor, importance: Tensor | None) -> Tensor:
    blocks = x.shape[1]
    values = _split(x, 16)
    if importance is None:
        fit = fit_affine(values, values.abs(), 3, -0.5, 0.1, 15, absolute=True)
        scale, offset = fit.scale.view(16, blocks), fit.offset.view(16, blocks)
        top_scale, top_offset = _highest(scale), _highest(offset)
        scaled, shifted = top_scale > 0, top_offset > 0
        scale_level = torch.where(scaled, nearest_int(divide(15.0, top_scale) * scale) & 255, 0)
        offset_level = torch.where(shifted, nearest_int(divide(15.0, top_offset) * offset), 0)
        d = _half_bits(torch.where(scaled, divide(top_scale, 15.0), 0.0))
        dmin = _half_bits(torch.where(shifted, divide(top_offset, 15.0), 0.0))
    else:
        spread = divide(ordered_sum(x * x), float(SUPER))
        w = _split(weigh(x, importance, spread), 16)
        fit = fit_affine(values, w, 3, -0.9, 0.05, 36, absolute=False)
        weight = ordered_sum(w).view(16, blocks)
        factor, scale_level = fit_scales(fit.scale.view(16, blocks), weight, 15)
        offset_factor, offset_level = fit_scales(fit.offset.view(16, blocks), weight, 15)
        d, dmin = _half_bits(factor), _half_bits(offset_factor)
    scale_byte = (scale_level | offset_level << 4) & 255
    sub_scale = _from_half_bits(d) * (scale_byte & 15).to(torch.float32)
    sub_offset = _from_half_bits(dmin) * (scale_byte >> 4).to(torch.float32)
    levels = _join(_round_levels(values, sub_scale, sub_offset, 0, 3, fit.levels(values, 3)), blocks)
    return torch.cat([scale_byte, _pack_two_bits(levels), _half_bytes(d, dmin)])


# ---- Q3_K: sixteen sub-blocks of 16, six-bit signed scales ----


def _quantize_q3_k(x: Tensor, importance: Tensor | None) -> Tensor:
    blocks = x.shape[1]
    values = _split(x, 16)
    if importance is None:
        scale, searched = fit_descent(values, 4)
        scale = scale.view(16, blocks)
        peak, _ = largest(scale)
        step = divide(-32.0, peak)
        byte = nearest_int(step * scale) << 24 >> 24
        scale_level = torch.where(peak == 0, 0, byte.clamp(-32, 31) + 32)
        d = _half_bits(torch.where(peak == 0, 0.0, divide(1.0, step)))
    else:
        spread = divide(2 * ordered_sum(x * x), float(SUPER))
        w = _split(weigh(x, importance, spread), 16)
        fit = fit_symmetric(values, w, 4)
        searched = fit.levels(values, 4)
        scale = fit.scale.view(16, blocks)
        outer = fit_symmetric(scale, ordered_sum(w).view(16, blocks), 32)
        scale_level = outer.levels(scale, 32)
        d = _half_bits(outer.scale)
    sub_scale = _from_half_bits(d) * (scale_level - 32).to(torch.float32)
    levels = _join(_round_levels(values, sub_scale, None, -4, 3, searched), blocks)
    low = (scale_level[:8] & 15) | (scale_level[8:] & 15) << 4
    high = (scale_level >> 4).view(4, 4, blocks)
    high = high[0] | high[1] << 2 | high[2] << 4 | high[3] << 6
    return torch.cat([_pack_bit(levels, 2), _pack_two_bits(levels & 3), low, high, _half_bytes(d)])


# ---- Q6_K: sixteen sub-blocks of 16, eight-bit signed scales ----


def _quantize_q6_k(x: Tensor, importance: Tensor | None) -> Tensor:
    blocks = x.shape[1]
    values = _split(x, 16)
    fit = fit_symmetric(values, values * values if importance is None else _split(importance, 16), 32)
    scale = fit.scale.view(16, blocks)
    peak, most = largest(scale)
    empty = most < NEGLIGIBLE  # ggml writes zero bytes for such a block
    step = divide(-128.0, peak)
    d = torch.where(empty, 0, _half_bits(divide(1.0, step)))
    scale_byte = nearest_int(step * scale).clamp_(max=127) << 24 >> 24
    scale_byte = torch.where(empty, 0, scale_byte)
    sub_scale = _from_half_bits(d) * scale_byte.to(torch.float32)
    levels = _join(_round_levels(values, sub_scale, None, -32, 31, fit.levels(values, 32)), blocks)
    q = torch.where(empty, 0, levels).view(2, 4, 32, blocks)
    low = torch.cat([(q[:, :2] & 15) | (q[:, 2:] & 15) << 4], dim=1).reshape(128, blocks)
    high = (q[:, 0] >> 4 | q[:, 1] >> 4 << 2 | q[:, 2] >> 4 << 4 | q[:, 3] >> 4 << 6).reshape(64, blocks)
    return torch.cat([low, high, scale_byte & 255, _half_bytes(d)])


_QUANTIZERS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "q2_k": _quantize_q2_k,
    "q3_k": _quantize_q3_k,
    "q4_k": _quantize_q4_k,
    "q5_k": _quantize_q5_k,
    "q6_k": _quantize_q6_k,
}


# ---- dequantizers: uint8 [blocks, bytes] -> float32 [blocks, sub-blocks, length] ----


def _shifted(b: Tensor, *shifts: int) -> Tensor:
    """[..., k] -> [..., len(shifts), k]: the bytes shifted right by each of ``shifts``."""
    return b.unsqueeze(-2) >> torch.tensor(shifts, dtype=torch.uint8, device=b.device).unsqueeze(-1)


def _affine(d: Tensor, scale: Tensor, dmin: Tensor, offset: Tensor, q: Tensor) -> Tensor:
    return (d * scale.to(torch.float32)).unsqueeze(-1) * q.to(torch.float32) - (
        dmin * offset.to(torch.float32)
    ).unsqueeze(-1)


def _symmetric(d: Tensor, scale: Tensor, q: Tensor) -> Tensor:
    return (d * scale.to(torch.float32)).unsqueeze(-1) * q.to(torch.float32)


def _two_bits(b: Tensor) -> Tensor:
    return (_shifted(b.view(-1, 2, 32), 0, 2, 4, 6) & 3).view(-1, 16, 16)


def _dequantize_q2_k(b: Tensor) -> Tensor:
    scales = b[:, :16]
    return _affine(half_at(b, 80), scales & 15, half_at(b, 82), scales >> 4, _two_bits(b[:, 16:80].contiguous()))


def _dequantize_q3_k(b: Tensor) -> Tensor:
    low = _shifted(b[:, 96:104], 0, 4).reshape(-1, 16) & 15
    high = _shifted(b[:, 104:108], 0, 2, 4, 6).reshape(-1, 16) & 3
    scale = (low | high << 4).to(torch.int8) - 32
    top = (_shifted(b[:, :32], *range(8)) & 1).reshape(-1, 16, 16)
    return _symmetric(half_at(b, 108), scale, (_two_bits(b[:, 32:96].contiguous()) | top << 2).to(torch.int8) - 4)


def _dequantize_q4_k(b: Tensor) -> Tensor:
    scale, offset = _unpack_six_bits(b[:, 4:16].T)
    q = (_shifted(b[:, 16:].reshape(-1, 4, 32), 0, 4) & 15).view(-1, 8, 32)
    return _affine(half_at(b, 0), scale.T, half_at(b, 2), offset.T, q)


def _dequantize_q5_k(b: Tensor) -> Tensor:
    scale, offset = _unpack_six_bits(b[:, 4:16].T)
    low = (_shifted(b[:, 48:].reshape(-1, 4, 32), 0, 4) & 15).view(-1, 8, 32)
    high = _shifted(b[:, 16:48], *range(8)) & 1
    return _affine(half_at(b, 0), scale.T, half_at(b, 2), offset.T, low | high << 4)


def _dequantize_q6_k(b: Tensor) -> Tensor:
    low = (_shifted(b[:, :128].reshape(-1, 2, 64), 0, 4) & 15).view(-1, 2, 4, 32)
    high = _shifted(b[:, 128:192].reshape(-1, 2, 32), 0, 2, 4, 6) & 3
    q = ((low | high << 4).to(torch.int8) - 32).view(-1, 16, 16)
    return _symmetric(half_at(b, 208), b[:, 192:208].contiguous().view(torch.int8), q)


_DEQUANTIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "q2_k": _dequantize_q2_k,
    "q3_k": _dequantize_q3_k,
    "q4_k": _dequantize_q4_k,
    "q5_k": _dequantize_q5_k,
    "q6_k": _dequantize_q6_k,
}
