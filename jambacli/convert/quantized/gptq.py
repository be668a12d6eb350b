"""Matrices as GPTQ and AWQ store them: packed with the input features as rows, the transpose of the matrix itself.

    value[out, in] = (q[in, out] - zero[group of in, out]) * scale[group of in, out]

GPTQ packs ``qweight`` along the input features, in one stream of bits; AWQ ("gemm") along the output features, with eight
values of a word in the order 0 2 4 6 1 3 5 7. Both pack ``qzeros`` along the output features. A panel of the matrix takes a
part of every row of ``qweight``, so that is held in memory: one packed matrix at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jambacli.convert.hf_checkpoint import Checkpoint, StoredTensor
from jambacli.convert.quantized.matrices import load, load_scale, wrong
from jambacli.convert.quantized.packing import unpack

if TYPE_CHECKING:
    import torch

AWQ_BITS = 4
# Where in a word's eight nibbles AWQ keeps output feature 0, 1, ... 7.
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True)
class Transposed:
    """A matrix of ``shape`` [out, in] as GPTQ stores it, or with ``awq`` as AWQ does.

    ``group_size``: input features of a group, in order, where ``columns`` (g_idx) does not say the group of each.
    ``zero_offset`` is added to a stored zero point (1 in GPTQ's first format).
    """

    shape: tuple[int, int]
    weight: StoredTensor
    zeros: StoredTensor
    scale: StoredTensor
    bits: int
    group_size: int
    zero_offset: int = 0
    columns: StoredTensor | None = None
    awq: bool = False

    @property
    def how(self) -> str:
        size = self.group_size
        return f"int{self.bits}, " + (f"groups of {size}" if size < self.shape[1] else "a scale per channel")

    def open(self, checkpoint: Checkpoint) -> TransposedRows:
        import torch

        scale = load_scale(checkpoint, self.scale).view(self.scale.shape)
        stored = load(checkpoint, self.zeros)
        zero = _awq_order(stored).float() if self.awq else self._zeros(stored, scale.shape[1]).float()
        columns = torch.arange(self.shape[1]) // self.group_size
        if self.columns is not None:
            columns = load(checkpoint, self.columns).reshape(-1).long()
            if bool((columns < 0).any() | (columns >= scale.shape[0]).any()):
                raise wrong(self.columns, f"names a group outside 0 to {scale.shape[0] - 1}")
        # [out, groups], so that a run of rows is contiguous.
        return TransposedRows(self, load(checkpoint, self.weight), scale.T.contiguous(), zero.T.contiguous(), columns)

    def _zeros(self, stored: torch.Tensor, count: int) -> torch.Tensor:
        """GPTQ's zero points, [groups, out].

        The first format stores them less one. For 2, 4 and 8 bits the one is added to each field of the packed words with
        the carry, as gptqmodel does: that undoes its own subtraction exactly, also where a field was zero.
        """
        import torch

        if not self.zero_offset:
            return unpack(stored, self.bits, count)
        if 32 % self.bits:
            return (unpack(stored, self.bits, count) + self.zero_offset) & ((1 << self.bits) - 1)
        ones = sum(self.zero_offset << shift for shift in range(0, 32, self.bits))
        words = (stored.long() + ones) & 0xFFFFFFFF
        return unpack(torch.where(words >= 1 << 31, words - (1 << 32), words).int(), self.bits, count)


@dataclass(frozen=True)
class TransposedRows:
    """An opened ``Transposed``: the packed words, and scales and zero points as float32 [out, groups]."""

    layout: Transposed
    words: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    columns: torch.Tensor

    def values(self, first: int, count: int) -> torch.Tensor:
        layout, end = self.layout, first + count
        if layout.awq:
            per_word = 32 // AWQ_BITS
            begin = first // per_word
            stored = _awq_order(self.words[:, begin : -(-end // per_word)])
            stored = stored[:, first - begin * per_word : end - begin * per_word].T
        else:
            stored = unpack(self.words[:, first:end].T, layout.bits, layout.shape[1])
        values = stored.float() - self.zero[first:end][:, self.columns]
        return values * self.scale[first:end][:, self.columns]


def _awq_order(words: torch.Tensor) -> torch.Tensor:
    """int32 [n, words] -> uint8 [n, 8 * words], in the order of the output features."""
    nibbles = unpack(words, AWQ_BITS, words.shape[1] * (32 // AWQ_BITS))
    return nibbles.view(*words.shape, len(AWQ_PLACES))[:, :, list(AWQ_PLACES)].reshape(words.shape[0], -1)
