"""ggml's searches for the scales of sub-blocks, in torch on any device; the reference of ``native/kq_search.h``.

Each block is a column (``x[i]`` is value i of every block), and each step is the float32 operation of ggml's scalar code, in
its order, so that the results are the same bits. Where that code skips a block, its result is computed and dropped.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NEGLIGIBLE = 1e-15  # ggml treats a block whose values are all below this as zero

_ROUNDER = 12582912.0  # 1.5 * 2**23: adding it leaves a value rounded to an integer in the low bits


def nearest_int(x: Tensor) -> Tensor:
    """int32 nearest to float32 ``x``, halves to even; beyond 2**22 it wraps as ggml's does, and NaN gives 0."""
    rounded = ((x + _ROUNDER).view(torch.int32) & 0x007FFFFF) - 0x00400000
    return torch.where(torch.isnan(x), 0, rounded)  # NaNs carry other bits on CUDA than on x86


def divide(a: Tensor | float, b: Tensor | float) -> Tensor:
    """``a / b``, rounded once: with a plain number, torch would multiply by a reciprocal."""
    if not isinstance(a, Tensor):
        assert isinstance(b, Tensor)
        return torch.div(torch.full_like(b, a), b)
    return torch.div(a, b if isinstance(b, Tensor) else torch.full_like(a, b))


def square_root(x: Tensor) -> Tensor:
    """sqrt of float32 ``x``, correctly rounded: torch's own may differ in the last bit (vector maths libraries)."""
    return torch.sqrt(x.to(torch.float64)).to(torch.float32)


def ordered_sum(terms: Tensor) -> Tensor:
    """Sum over the first dimension, one addition after another from zero."""
    total = torch.zeros_like(terms[0])
    for term in terms:
        total += term
    return total


class AffineFit(NamedTuple):
    """x ~ scale * level - offset, one of each per block; ``step`` and ``base`` give the levels."""

    scale: Tensor
    offset: Tensor
    step: Tensor
    base: Tensor

    def levels(self, x: Tensor, top: int) -> Tensor:
        """int32 levels of ``x`` [N, blocks], 0..``top``."""
        return nearest_int(self.step * (x - self.base)).clamp_(0, top)


def fit_affine(x: Tensor, w: Tensor, top: int, first: float, delta: float, tries: int, absolute: bool) -> AffineFit:
    """Scale and offset of each block with the least weighted error, over ``tries + 1`` steps and the plain one.

    ``x`` and ``w`` (weights) are [N, blocks]. Step k is (first + delta * k + top) / range. As in ggml, later steps start from
    the base of the best line so far. ``absolute`` weighs |error| instead of its square.
    """

    def error_of(scale: Tensor, base: Tensor, levels: Tensor) -> Tensor:
        off = scale * levels + base - x
        return ordered_sum(w * (off.abs() if absolute else off * off))

    low, high = x[0], x[0]
    sum_w = w[0].clone()
    sum_x = w[0] * x[0]
    weighted = w * x
    for i in range(1, len(x)):
        low = torch.where(x[i] < low, x[i], low)
        high = torch.where(x[i] > high, x[i], high)
        sum_w += w[i]
        sum_x += weighted[i]
    base = torch.where(low > 0, 0.0, low)
    alive = high != base

    step = torch.where(alive, divide(float(top), high - base), 0.0)
    fit = AffineFit(torch.where(alive, divide(1.0, step), 0.0), base, step, base)
    scale, best_step, best_base = fit.scale, step, base
    best = error_of(scale, base, fit.levels(x, top).to(torch.float32))

    tops = np.float32(first) + np.float32(delta) * np.arange(tries + 1, dtype=np.float32) + np.float32(top)
    for numerator in tops.tolist():
        step = torch.where(alive, divide(numerator, high - base), 0.0)
        levels = nearest_int(step * (x - base)).clamp_(0, top).to(torch.float32)
        wl = w * levels
        sum_l, sum_l2, sum_xl = ordered_sum(wl), ordered_sum(wl * levels), ordered_sum(wl * x)
        det = sum_w * sum_l2 - sum_l * sum_l
        line_scale = divide(sum_w * sum_xl - sum_x * sum_l, det)
        line_base = divide(sum_l2 * sum_x - sum_l * sum_xl, det)
        positive = line_base > 0
        line_scale = torch.where(positive, divide(sum_xl, sum_l2), line_scale)
        line_base = torch.where(positive, 0.0, line_base)
        error = error_of(line_scale, line_base, levels)
        better = alive & (det > 0) & (error < best)
        best_step = torch.where(better, step, best_step)
        best_base = torch.where(better, base, best_base)
        best = torch.where(better, error, best)
        scale = torch.where(better, line_scale, scale)
        base = torch.where(better, line_base, base)
    return AffineFit(scale, -base, best_step, best_base)


class SymmetricFit(NamedTuple):
    """x ~ scale * (level - top), one per block; ``step`` and ``alive`` give the levels."""

    scale: Tensor
    step: Tensor
    alive: Tensor

    def levels(self, x: Tensor, top: int) -> Tensor:
        """int32 levels of ``x`` [N, blocks], 0..2 * ``top`` - 1; 0 where the whole block is negligible."""
        return torch.where(self.alive, nearest_int(self.step * x).clamp_(-top, top - 1) + top, 0)


def largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """The value of largest magnitude over the first dimension (the first of equals), and that magnitude."""
    value, most = torch.zeros_like(x[0]), torch.zeros_like(x[0])
    for row, size in zip(x, x.abs(), strict=True):
        bigger = size > most
        value = torch.where(bigger, row, value)
        most = torch.where(bigger, size, most)
    return value, most


def fit_symmetric(x: Tensor, w: Tensor, top: int) -> SymmetricFit:
    """Scale of each block [N, blocks] with the least weighted error, over 19 steps around -top / largest value."""
    peak, most = largest(x)
    wx = w * x

    def sums(step: Tensor) -> tuple[Tensor, Tensor]:
        levels = nearest_int(step * x).clamp_(-top, top - 1).to(torch.float32)
        return ordered_sum(wx * levels), ordered_sum(w * levels * levels)

    best_step = divide(float(-top), peak)
    sum_xl, sum_l2 = sums(best_step)
    scale = torch.where(sum_l2 == 0, 0.0, divide(sum_xl, sum_l2))
    best = scale * sum_xl
    for k in range(-9, 10):
        if k == 0:
            continue
        step = divide(float(-(np.float32(top) + np.float32(0.1) * np.float32(k))), peak)
        sum_xl, sum_l2 = sums(step)
        better = (sum_l2 > 0) & (sum_xl * sum_xl > best * sum_l2)
        found = divide(sum_xl, sum_l2)
        best_step = torch.where(better, step, best_step)
        scale = torch.where(better, found, scale)
        best = torch.where(better, found * sum_xl, best)
    alive = ~(most < NEGLIGIBLE)
    return SymmetricFit(torch.where(alive, scale, 0.0), best_step, alive)


def fit_descent(x: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Scale [blocks] and int32 levels of ``x`` [N, blocks], found by changing one level at a time while the error falls.

    Q3_K's search without an imatrix: each value is weighted by its square, five rounds at most. Levels are
    0..2 * ``top`` - 1, or 0 where the whole block is negligible.
    """
    peak, most = largest(x)
    alive = ~(most < NEGLIGIBLE)
    w = x * x
    wx = w * x
    levels = nearest_int(divide(float(-top), peak) * x).clamp_(-top, top - 1).to(torch.float32)
    sum_xl, sum_l2 = ordered_sum(wx * levels), ordered_sum(w * levels * levels)
    for _ in range(5):
        changed = torch.zeros_like(alive)
        for i in range(len(x)):
            rest_xl = sum_xl - wx[i] * levels[i]
            rest_l2 = sum_l2 - w[i] * levels[i] * levels[i]
            level = nearest_int(divide(x[i] * rest_l2, rest_xl)).clamp_(-top, top - 1).to(torch.float32)
            new_xl, new_l2 = rest_xl + wx[i] * level, rest_l2 + w[i] * level * level
            better = (rest_xl > 0) & (level != levels[i]) & (new_l2 > 0)
            better &= new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2
            levels[i] = torch.where(better, level, levels[i])
            sum_xl = torch.where(better, new_xl, sum_xl)
            sum_l2 = torch.where(better, new_l2, sum_l2)
            changed |= better
        if not (changed & alive).any():
            break
    scale = torch.where(alive & (sum_l2 > 0), divide(sum_xl, sum_l2), 0.0)
    return scale, torch.where(alive, levels.to(torch.int32) + top, 0)


def fit_scales(x: Tensor, w: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Scale [blocks] and int32 levels [COUNT, blocks] of a super-block's scales (or offsets) ``x``, weighted by ``w``.

    Levels are the bytes that ggml stores: at most ``top``, and a negative level -k as 256 - k.
    """
    most = torch.zeros_like(x[0])
    for row in x:
        most = torch.where(most > row, most, row)
    alive = ~(most < NEGLIGIBLE)

    def error_of(step: Tensor, levels: Tensor) -> Tensor:
        off = x - divide(1.0, step) * levels.to(torch.float32)
        return ordered_sum(w * off * off)

    step = divide(float(top), most)
    best = error_of(step, nearest_int(step * x) & 255)
    for k in range(-4, 5):
        if k == 0:
            continue
        numerator = float(np.float32(0.1) * np.float32(k) + np.float32(top))
        attempt = divide(numerator, most)
        error = error_of(attempt, nearest_int(attempt * x).clamp_(max=top))
        better = error < best
        best = torch.where(better, error, best)
        step = torch.where(better, attempt, step)

    whole = nearest_int(step * x).clamp_(max=top)
    levels = whole & 255
    wx = w * x
    as_float = whole.to(torch.float32)
    sum_xl, sum_l2 = ordered_sum(wx * as_float), ordered_sum(w * as_float * as_float)
    for _ in range(5):
        changed = torch.zeros_like(alive)
        for i in range(len(x)):
            old = levels[i].to(torch.float32)
            rest_xl, rest_l2 = sum_xl - wx[i] * old, sum_l2 - w[i] * old * old
            level = nearest_int(divide(x[i] * rest_l2, rest_xl)).clamp_(max=top)
            new = level.to(torch.float32)
            new_xl, new_l2 = rest_xl + wx[i] * new, rest_l2 + w[i] * new * new
            better = (rest_xl > 0) & (rest_l2 > 0) & (level != levels[i])
            better &= new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2
            levels[i] = torch.where(better, level & 255, levels[i])
            sum_xl = torch.where(better, new_xl, sum_xl)
            sum_l2 = torch.where(better, new_l2, sum_l2)
            changed |= better
        if not (changed & alive).any():
            break
    factor = torch.where(alive & (sum_l2 > 0), divide(sum_xl, sum_l2), 0.0)
    return factor, torch.where(alive, levels, 0)
