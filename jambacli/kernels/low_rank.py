"""Weights with LoRA adapters (Hu et al. 2021): the product of a weight w and the low-rank products that are added to it.

    y = w x + sum of scale * b (a x)

The low-rank parts are float32, multiplied with float32 activations, beside weights of any format. ``reference`` and the C++
kernels compute both parts of an ``AdaptedTensor``.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.formats import QTensor

if TYPE_CHECKING:
    import torch

#: Columns of ``LowRank.b`` are padded to a multiple of this: what the kernels multiply at a time.
PAD = 32


class LowRankStruct(ctypes.Structure):
    """``struct LowRank`` of base/abi.h."""

    _fields_ = [
        ("a", c_void_p),
        ("b", c_void_p),
        ("rank", c_int64),
        ("b_stride", c_int64),
        ("scale", c_float),
        ("reserved", c_int32),
    ]


@dataclass(frozen=True)
class LowRank:
    """One adapter's part of one weight [out, in], or of a stack [experts, out, in].

    ``a`` float32 [rank, in]; ``b`` float32 [rank, out padded to a multiple of PAD with zeros], transposed; both contiguous,
    both with ``experts`` in front for a stack. See ``low_rank``.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        """The number of rows of ``a``."""
        return int(self.a.shape[-2])

    def expert(self, index: int) -> LowRank:
        """That of one matrix of a stack, views."""
        return LowRank(self.a[index], self.b[index], self.scale)

    def product(self, x: torch.Tensor, n_out: int) -> torch.Tensor:
        """scale * b (a x) for x float32 [T, in]: float32 [T, n_out]."""
        return (x @ self.a.T * self.scale) @ self.b[:, :n_out]


@dataclass(frozen=True)
class AdaptedTensor(QTensor):
    """A weight with adapters, at least one; ``low`` is added in its order."""

    low: tuple[LowRank, ...] = ()

    @functools.cached_property
    def structs(self) -> ctypes.Array[LowRankStruct]:
        """The C structs of ``low``."""
        return (LowRankStruct * len(self.low))(
            *(LowRankStruct(p.a.data_ptr(), p.b.data_ptr(), p.rank, p.b.shape[-1], p.scale, 0) for p in self.low)
        )

    @property
    def base(self) -> QTensor:
        """The weight without adapters."""
        return QTensor(self.data, self.format, self.shape, self.scale)


def low_rank(a: torch.Tensor, b: torch.Tensor, scale: float) -> LowRank:
    """The part of an adapter with a [..., rank, in] and b [..., out, rank] of any float type."""
    import torch

    *stack, n_out, rank = b.shape
    padded = torch.zeros(*stack, rank, -(-n_out // PAD) * PAD)
    padded[..., :n_out] = b.transpose(-1, -2)
    return LowRank(a.float().contiguous(), padded, scale)


def adapted(w: QTensor, low: tuple[LowRank, ...]) -> QTensor:
    """``w`` with adapters; itself without."""
    return AdaptedTensor(w.data, w.format, w.shape, w.scale, low) if low else w


def low_of(w: QTensor) -> tuple[LowRank, ...]:
    """The adapters of a weight."""
    return w.low if isinstance(w, AdaptedTensor) else ()
