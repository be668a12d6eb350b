"""The refinements of ``native/refine_search.h`` and ``native/refine_solve.h`` in torch: slow, and the same bits.

Rows are columns: values and levels are [columns, rows], factors and scales [sub-blocks, rows], all float32. Each step is one
float32 operation of the C++ code, in its order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from quant.iq4 import GRID
from quant.k_search import divide, largest

SEARCH_ROUNDS = 4
_ROUNDER = 12582912.0


@dataclass(frozen=True)
class Layout:
    """What a format's blocks consist of: levels ``low``..``high`` in sub-blocks of ``sub`` values.

    ``scales``: the least and greatest integer scale; None where each block of 32 has its own float16 factor. ``affine``: there
    are minimums. ``table``: levels are entries of IQ4's table.
    """

    sub: int
    low: int
    high: int
    scales: tuple[int, int] | None = None
    affine: bool = False
    table: bool = False


LAYOUTS = {
    "q4_0": Layout(32, -8, 7),
    "q4_1": Layout(32, 0, 15, affine=True),
    "q5_0": Layout(32, -16, 15),
    "q5_1": Layout(32, 0, 31, affine=True),
    "q8_0": Layout(32, -127, 127),
    "q2_k": Layout(16, 0, 3, (0, 15), affine=True),
    "q3_k": Layout(16, -4, 3, (-32, 31)),
    "q4_k": Layout(32, 0, 15, (0, 63), affine=True),
    "q5_k": Layout(32, 0, 31, (0, 63), affine=True),
    "q6_k": Layout(16, -32, 31, (-128, 127)),
    "iq4_nl": Layout(32, 0, 15, table=True),
    "iq4_xs": Layout(32, 0, 15, (-32, 31), table=True),
}


@dataclass
class Grid:
    """One column block of every row. ``d`` and ``dmin``: [1, rows] with integer scales, else one per sub-block."""

    layout: Layout
    level: Tensor
    d: Tensor
    dmin: Tensor
    scale: Tensor
    minimum: Tensor

    def factor(self, j: int) -> Tensor:
        """The factor of sub-block j, [rows]."""
        return self.d[0] * self.scale[j] if self.layout.scales else self.d[j]

    def shift(self, j: int) -> Tensor:
        """What is subtracted in sub-block j, [rows]."""
        if not self.layout.affine:
            return torch.zeros_like(self.d[0])
        return self.dmin[0] * self.minimum[j] if self.layout.scales else -self.dmin[j]

    def value(self, c: int) -> Tensor:
        """The values of column c, [rows]."""
        j = c // self.layout.sub
        return self.factor(j) * self.level[c] - self.shift(j)


def _within(x: Tensor, low: float, high: float) -> Tensor:
    y = x + _ROUNDER
    bottom, top = torch.full_like(y, _ROUNDER + low), torch.full_like(y, _ROUNDER + high)
    y = torch.where(y > bottom, y, bottom)
    return torch.where(y < top, y, top) - _ROUNDER


def _nearest(layout: Layout, x: Tensor) -> Tensor:
    if not layout.table:
        return _within(x, layout.low, layout.high)
    grid = torch.tensor(GRID, dtype=torch.float32)
    bounds = (grid[1:] + grid[:-1]) / 2
    return grid[(~(x[..., None] < bounds)).sum(-1)]


def _reciprocal(x: Tensor) -> Tensor:
    return torch.where(x == 0, 0.0, divide(1.0, x))


def _half(x: Tensor) -> Tensor:
    return x.to(torch.float16).to(torch.float32)


# ---- the search with weights ----


def _rounded(layout: Layout, x: Tensor, w: Tensor, factor: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The error of a sub-block [sub, rows] rounded to the nearest levels, and these."""
    level = _nearest(layout, (x + shift) * _reciprocal(factor))
    off = x - (factor * level - shift)
    error = torch.zeros_like(x[0])
    for i in range(len(x)):
        error += w[i] * (off[i] * off[i])
    return error, level


def _line_sums(x: Tensor, w: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    sums = torch.zeros(5, x.shape[1])
    for i in range(len(x)):
        wq, wx = w[i] * q[i], w[i] * x[i]
        for k, term in enumerate((w[i], wq, wq * q[i], wx, wx * q[i])):
            sums[k] += term
    return sums[0], sums[1], sums[2], sums[3], sums[4]


def _best_line(layout: Layout, sums: tuple[Tensor, ...], factor: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    w, q, qq, x, qx = sums
    if not layout.affine:
        return torch.where(qq > 0, divide(qx, qq), factor), shift
    det = w * qq - q * q
    base, slope = divide(qq * x - q * qx, det), divide(w * qx - q * x, det)
    shift, factor = torch.where(det > 0, -base, shift), torch.where(det > 0, slope, factor)
    if layout.scales:
        above = (shift < 0) & (qq > 0)
        factor, shift = torch.where(above, divide(qx, qq), factor), torch.where(above, 0.0, shift)
    return factor, shift


def _search_integers(x: Tensor, w: Tensor, g: Grid, j: int) -> Tensor:
    layout = g.layout
    assert layout.scales is not None
    low, high = layout.scales
    best, level = _rounded(layout, x, w, g.factor(j), g.shift(j))
    factor, shift = _best_line(layout, _line_sums(x, w, level), g.factor(j), g.shift(j))
    scale, minimum = g.scale[j].clone(), g.minimum[j].clone()
    attempts = [(_within(factor * _reciprocal(g.d[0]), low, high), _within(shift * _reciprocal(g.dmin[0]), 0, high))]
    for ds in (-1, 0, 1):
        for dm in (-1, 0, 1) if layout.affine else (0,):
            if ds or dm:
                attempts.append((_within(scale + ds, low, high), _within(minimum + dm, 0, high)))
    for s, m in attempts:
        error, _ = _rounded(layout, x, w, g.d[0] * s, g.dmin[0] * m if layout.affine else torch.zeros_like(s))
        better = error < best
        best = torch.where(better, error, best)
        g.scale[j] = torch.where(better, s, g.scale[j])
        if layout.affine:
            g.minimum[j] = torch.where(better, m, g.minimum[j])
    return best


def _search_factors(x: Tensor, w: Tensor, g: Grid, best: Tensor) -> None:
    layout = g.layout
    aa, ab, bb, ax, bx = torch.zeros(5, x.shape[1])
    parts = list(range(len(g.scale)))
    at = [slice(j * layout.sub, (j + 1) * layout.sub) for j in parts]
    for j in parts:
        _, level = _rounded(layout, x[at[j]], w[at[j]], g.factor(j), g.shift(j))
        sw, sq, sqq, sx, sqx = _line_sums(x[at[j]], w[at[j]], level)
        aa += g.scale[j] * g.scale[j] * sqq
        ax += g.scale[j] * sqx
        if layout.affine:
            ab -= g.scale[j] * g.minimum[j] * sq
            bb += g.minimum[j] * g.minimum[j] * sw
            bx -= g.minimum[j] * sx
    d, dmin = g.d[0], g.dmin[0]
    if layout.affine:
        det = aa * bb - ab * ab
        d = torch.where(det > 0, divide(bb * ax - ab * bx, det), torch.where(aa > 0, divide(ax, aa), d))
        dmin = torch.where(det > 0, divide(aa * bx - ab * ax, det), dmin)
        dmin = torch.where(dmin < 0, 0.0, dmin)
    else:
        d = torch.where(aa > 0, divide(ax, aa), d)
    new = replace(g, d=_half(d)[None], dmin=_half(dmin)[None])
    error = torch.zeros_like(best)
    for j in parts:
        error += _rounded(layout, x[at[j]], w[at[j]], new.factor(j), new.shift(j))[0]
    better = error < best
    g.d = torch.where(better, new.d, g.d)
    g.dmin = torch.where(better, new.dmin, g.dmin)


def _search_block(x: Tensor, w: Tensor, g: Grid, j: int) -> None:
    layout = g.layout
    best, _ = _rounded(layout, x, w, g.factor(j), g.shift(j))

    def attempt(factor: Tensor, shift: Tensor) -> Tensor:
        nonlocal best
        d, m = _half(factor), _half(-shift) if layout.affine else torch.zeros_like(factor)
        error, level = _rounded(layout, x, w, d, -m if layout.affine else m)
        better = error < best
        best = torch.where(better, error, best)
        g.d[j] = torch.where(better, d, g.d[j])
        g.dmin[j] = torch.where(better, m, g.dmin[j])
        return _best_line(layout, _line_sums(x, w, level), d, -m)[0]

    if layout.affine:
        for _ in range(SEARCH_ROUNDS):
            _, level = _rounded(layout, x, w, g.factor(j), g.shift(j))
            attempt(*_best_line(layout, _line_sums(x, w, level), g.factor(j), g.shift(j)))
        return
    first, last = (127, 113) if layout.table else (-layout.low, layout.high)
    step = np.float32(0.1 if first < 100 else 0.5)
    peak, none = largest(x)[0], torch.zeros_like(x[0])
    for end in range(1 if first == last else 2):
        for k in range(-10, 11):
            outer = np.float32(last) + step * np.float32(k) if end else -(np.float32(first) + step * np.float32(k))
            attempt(attempt(divide(peak, float(outer)), none), none)


def search(x: Tensor, w: Tensor, g: Grid) -> None:
    """Improve ``g`` in place for the error of ``x`` [columns, rows] weighted with ``w``, of the same shape."""
    sub = g.layout.sub
    parts = [slice(first, first + sub) for first in range(0, len(x), sub)]
    if g.layout.scales:
        for _ in range(SEARCH_ROUNDS):
            total = torch.zeros_like(x[0])
            for j, at in enumerate(parts):
                total += _search_integers(x[at], w[at], g, j)
            _search_factors(x, w, g, total)
    else:
        for j, at in enumerate(parts):
            _search_block(x[at], w[at], g, j)
    for j, at in enumerate(parts):
        _, level = _rounded(g.layout, x[at], w[at], g.factor(j), g.shift(j))
        g.level[at] = torch.where(g.factor(j) == 0, g.level[at], level)


# ---- the descent of a quadratic error ----


def round_in_order(x: Tensor, R: Tensor, g: Grid) -> None:
    """Levels of ``x`` [columns, rows], one column after another, each with the error of those before; R [columns, columns]."""
    carried = torch.zeros_like(x)
    for c in range(len(x)):
        j = c // g.layout.sub
        wanted = x[c] + divide(carried[c], float(R[c, c]))
        q = _nearest(g.layout, (wanted + g.shift(j)) * _reciprocal(g.factor(j)))
        g.level[c] = torch.where(g.factor(j) == 0, g.level[c], q)
        off = x[c] - g.value(c)
        carried[c + 1 :] += off * R[c, c + 1 :, None]


def gradient(x: Tensor, S: Tensor, g: Grid) -> Tensor:
    """(x - y) S, [columns, rows]."""
    r = torch.zeros_like(x)
    for c in range(len(x)):
        r += (x[c] - g.value(c)) * S[c, :, None]
    return r


def _descend_levels(S: Tensor, g: Grid, r: Tensor) -> None:
    for c in range(len(r)):
        j = c // g.layout.sub
        factor, shift, s = g.factor(j), g.shift(j), float(S[c, c])
        value = factor * g.level[c] - shift
        q = _nearest(g.layout, (value + divide(r[c], s) + shift) * _reciprocal(factor))
        change = (factor * q - shift) - value
        better = change * (2.0 * r[c] - change * s) > 0
        g.level[c] = torch.where(better, q, g.level[c])
        r -= torch.where(better, change, 0.0) * S[c, :, None]


def _descend_scales(S: Tensor, sums: Tensor, g: Grid, r: Tensor, j: int) -> None:
    layout, first = g.layout, j * g.layout.sub
    curvature, slope = torch.zeros_like(r[0]), torch.zeros_like(r[0])
    for i in range(first, first + layout.sub):
        v = torch.zeros_like(r[0])
        for k in range(first, first + layout.sub):
            v += g.level[k] * float(S[i, k])
        curvature += v * g.level[i]
        slope += g.level[i] * r[i]
    old = g.factor(j)
    wanted = old + torch.where(curvature > 0, divide(slope, curvature), 0.0)
    if layout.scales:
        scale = _within(wanted * _reciprocal(g.d[0]), *layout.scales)
        factor = g.d[0] * scale
    else:
        scale = factor = _half(wanted)
    change = factor - old
    better = (change * (2.0 * slope - change * curvature) > 0) & (factor != 0)
    place = g.scale if layout.scales else g.d
    place[j] = torch.where(better, scale, place[j])
    change = torch.where(better, change, 0.0)
    for i in range(first, first + layout.sub):
        r -= change * g.level[i] * S[i, :, None]
    if not layout.affine:
        return
    steep = np.float32(0)
    for i in range(layout.sub):
        steep += np.float32(sums[j, first + i])
    down = torch.zeros_like(r[0])
    for i in range(layout.sub):
        down -= r[first + i]
    old = g.shift(j)
    shift = old + (divide(down, float(steep)) if steep > 0 else 0.0)
    if layout.scales:
        minimum = _within(shift * _reciprocal(g.dmin[0]), 0, layout.scales[1])
        rounded = g.dmin[0] * minimum
    else:
        minimum = _half(-shift)
        rounded = -minimum
    change = rounded - old
    better = change * (2.0 * down - change * float(steep)) > 0
    place = g.minimum if layout.scales else g.dmin
    place[j] = torch.where(better, minimum, place[j])
    r += torch.where(better, change, 0.0) * sums[j, :, None]


def _descend_factors(S: Tensor, sums: Tensor, g: Grid, r: Tensor) -> None:
    affine, sub = g.layout.affine, g.layout.sub
    along, below = torch.zeros_like(r), torch.zeros_like(r)
    for c in range(len(r)):
        along += g.scale[c // sub] * g.level[c] * S[c, :, None]
    if affine:
        for j in range(len(g.minimum)):
            below -= g.minimum[j] * sums[j, :, None]
    aa, ab, bb, ar, br = torch.zeros(5, r.shape[1])
    for c in range(len(r)):
        u = g.scale[c // sub] * g.level[c]
        aa += along[c] * u
        ar += u * r[c]
        if affine:
            m = g.minimum[c // sub]
            ab -= along[c] * m
            bb -= below[c] * m
            br -= m * r[c]
    d, dmin = g.d[0] + torch.where(aa > 0, divide(ar, aa), 0.0), g.dmin[0]
    if affine:
        det = aa * bb - ab * ab
        possible = det > 1e-6 * (aa * bb)
        d = torch.where(possible, g.d[0] + divide(bb * ar - ab * br, det), d)
        dmin = torch.where(possible, dmin + divide(aa * br - ab * ar, det), dmin)
        dmin = torch.where(dmin < 0, 0.0, dmin)
    d, dmin = _half(d), _half(dmin)
    dd, dm = d - g.d[0], dmin - g.dmin[0]
    gain = 2.0 * (dd * ar + dm * br) - (dd * dd * aa + 2.0 * dd * dm * ab + dm * dm * bb)
    better = (gain > 0) & (d != 0)
    dd, dm = torch.where(better, dd, 0.0), torch.where(better, dm, 0.0)
    g.d = torch.where(better, d, g.d)
    g.dmin = torch.where(better, dmin, g.dmin)
    r -= dd * along + dm * below


def descend(S: Tensor, g: Grid, rounds: int, r: Tensor) -> None:
    """Coordinate descent of levels, scales, minimums and factors; ``r``: the gradient [columns, rows], kept up to date."""
    sub = g.layout.sub
    sums = torch.zeros(len(r) // sub, len(r))
    for c in range(len(r)):
        sums[c // sub] += S[c]
    for _ in range(rounds):
        _descend_levels(S, g, r)
        for j in range(len(r) // sub):
            _descend_scales(S, sums, g, r, j)
        if g.layout.scales:
            _descend_factors(S, sums, g, r)
    _descend_levels(S, g, r)
