"""Matrices stored row by row with scales: FP8, int8, and integers packed into words, with or without zero points.

    value = (stored - zero_point) * scale

A scale belongs to a block of rows and columns: the whole matrix, one row (a channel), a group of one row, or a tile. The
formats are those of compressed-tensors, of FP8 with ``weight_scale_inv`` (DeepSeek's) and of fbgemm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jambacli.convert.hf_checkpoint import Checkpoint, StoredTensor
from jambacli.convert.quantized.matrices import load, load_scale, wrong
from jambacli.convert.quantized.packing import packed_words, split_words, unpack

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Grid:
    """The scales of a stack of matrices: [stack, down, across], each for ``rows`` x ``columns`` values (fewer at the edges).

    ``stack`` is 1 where all matrices share their scales.
    """

    stack: int
    down: int
    across: int
    rows: int
    columns: int

    def words(self, height: int, width: int) -> str:
        """The grid in words, for matrices of ``height`` x ``width``."""
        if self.down == self.across == 1:
            return "one scale"
        if self.rows == 1 and self.across == 1:
            return "a scale per channel"
        if self.rows == 1:
            return f"groups of {self.columns}"
        return f"blocks of {min(self.rows, height)} x {min(self.columns, width)}"


def find_grid(
    scale: StoredTensor,
    shape: tuple[int, ...],
    blocks: tuple[tuple[int, int], ...] = (),
    groups: frozenset[int] = frozenset(),
) -> Grid:
    """The grid of the tensor ``scale`` over matrices of ``shape`` ([rows, width], or with a stack before them).

    ``blocks`` are sizes of tiles that the configuration names, ``groups`` the group sizes that it allows (empty: any).
    Raises BadFileError for a shape that belongs to no grid.
    """
    if len(shape) not in (2, 3) or 0 in shape:
        raise wrong(scale, f"belongs to a weight of {list(shape)}, which is no matrix")
    height, width = shape[-2:]
    stack = math.prod(shape[:-2])
    sizes = _scale_dimensions(scale, stack, height)
    if sizes is None:
        raise wrong(scale, f"is {list(scale.shape)}, which is no grid of scales over a weight of {list(shape)}")
    layers, down, across = sizes
    fits = {(r, c) for r, c in blocks if (down, across) == (-(-height // r), -(-width // c))}
    if len(fits) > 1:
        raise wrong(scale, f"is {list(scale.shape)}, which fits several block sizes of the quantization")
    for rows, columns in fits:
        return Grid(layers, down, across, rows, columns)
    if not down or not across or height % down or width % across:
        raise wrong(scale, f"is {list(scale.shape)}, which does not divide a weight of {list(shape)} into blocks")
    grid = Grid(layers, down, across, height // down, width // across)
    if grid.rows == 1 and across > 1 and groups and grid.columns not in groups:
        expected = " or ".join(str(n) for n in sorted(groups))
        raise wrong(scale, f"has groups of {grid.columns}, but the quantization's group_size is {expected}")
    return grid


def _scale_dimensions(scale: StoredTensor, stack: int, height: int) -> tuple[int, int, int] | None:
    """[stack, down, across] of a scale's shape, in which leading or trailing ones may be left out."""
    shape, count = scale.shape, math.prod(scale.shape)
    if count == 1:
        return 1, 1, 1
    if stack > 1:
        if len(shape) == 3 and shape[0] == stack:
            return shape[0], shape[1], shape[2]
        if shape in ((stack,), (stack, 1)):
            return stack, 1, 1
        return (stack, height, 1) if shape == (stack, height) else None
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) == 1:
        return (1, height, 1) if shape[0] == height else None
    return (1, shape[0], shape[1]) if len(shape) == 2 else None


@dataclass(frozen=True)
class Scaled:
    """A stack of matrices of ``shape`` with scales. ``bits`` 0: stored as FP8 or int8, else packed along the rows.

    ``whole``: words hold whole values. ``zero`` is stored as the scales are, or packed along the columns (I32).
    ``columns``: the group of each column, I32 [width], where the columns were reordered.
    """

    kind: str
    shape: tuple[int, ...]
    weight: StoredTensor
    scale: StoredTensor
    grid: Grid
    bits: int = 0
    whole: bool = False
    zero: StoredTensor | None = None
    columns: StoredTensor | None = None

    @property
    def how(self) -> str:
        return f"{self.kind}, {self.grid.words(*self.shape[-2:])}"

    def open(self, checkpoint: Checkpoint) -> ScaledRows:
        scale = load_scale(checkpoint, self.scale)
        zero = None if self.zero is None else self._zeros(checkpoint, self.zero)
        return ScaledRows(self, checkpoint, scale.view(-1, self.grid.across), zero, self._columns(checkpoint))

    def _zeros(self, checkpoint: Checkpoint, tensor: StoredTensor) -> torch.Tensor:
        """The zero points as float32 [stack * down, across]."""
        import torch

        grid, stored = self.grid, load(checkpoint, tensor)
        if tensor.dtype != "I32" or not self.bits:
            return stored.float().reshape(-1, grid.across)
        stacked = stored.view(grid.stack, -1, grid.across)
        parts = [unpack(words.T, self.bits, grid.down, self.whole).T for words in stacked]
        return torch.cat(parts).float() - (1 << (self.bits - 1))

    def _columns(self, checkpoint: Checkpoint) -> torch.Tensor | None:
        """The group of each column, None where they are in order; BadFileError where the groups have other sizes."""
        import torch

        if self.columns is None:
            return None
        groups = load(checkpoint, self.columns).reshape(-1).long()
        if bool((groups == -1).any()):
            return None  # compressed-tensors: not set
        if bool((groups < 0).any() | (groups >= self.grid.across).any()):
            raise wrong(self.columns, f"names a group outside 0 to {self.grid.across - 1}")
        if bool((torch.bincount(groups, minlength=self.grid.across) != self.grid.columns).any()):
            raise wrong(self.columns, f"has groups that are not of {self.grid.columns} columns")
        return groups


def zero_shapes(grid: Grid, shape: tuple[int, ...], bits: int, whole: bool) -> list[tuple[int, ...]]:
    """The shapes of zero points that are packed along the columns."""
    words = split_words(grid.down, bits) if whole else packed_words(grid.down, bits)
    inner = (words, grid.across)
    return [(*shape[:-2], *inner)] if len(shape) > 2 else [inner]


@dataclass(frozen=True)
class ScaledRows:
    """An opened ``Scaled``: scales and zero points as float32 [stack * down, across]."""

    layout: Scaled
    checkpoint: Checkpoint
    scale: torch.Tensor
    zero: torch.Tensor | None
    columns: torch.Tensor | None

    def values(self, first: int, count: int) -> torch.Tensor:
        import torch

        grid, (height, width) = self.layout.grid, self.layout.shape[-2:]
        row = torch.arange(first, first + count)
        layer = row // height if grid.stack > 1 else torch.zeros_like(row)
        where = layer * grid.down + row % height // grid.rows
        values = self._stored(first, count, width)
        if self.zero is not None:
            values = values - self._spread(self.zero[where], width)
        return values * self._spread(self.scale[where], width)

    def _stored(self, first: int, count: int, width: int) -> torch.Tensor:
        stored = load(self.checkpoint, self.layout.weight, first, count)
        bits = self.layout.bits
        if not bits:
            return stored.float()
        return unpack(stored, bits, width, self.layout.whole).float() - (1 << (bits - 1))

    def _spread(self, small: torch.Tensor, width: int) -> torch.Tensor:
        """[count, across] -> [count, 1 or width]: a value for each column."""
        if self.columns is not None:
            return small[:, self.columns]
        if small.shape[1] == 1:
            return small
        return small.repeat_interleave(self.layout.grid.columns, 1)[:, :width]
