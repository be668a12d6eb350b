"""RMS norm, and the gate of a feed-forward network."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from jambacli.kernels.triton.gemv import silu
from jambacli.kernels.triton.launch import cdiv, power_of_two


@triton.jit
def _norm_kernel(x, weight, out, eps, x_stride, N: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, N, BLOCK):
        i = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * x_stride + i, mask=i < N, other=0)
        squares += value * value
    scale = 1.0 / tl.sqrt(tl.sum(squares, 0) / N + eps)
    for start in range(0, N, BLOCK):
        i = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * x_stride + i, mask=i < N, other=0)
        value *= scale * tl.load(weight + i, mask=i < N, other=0)
        tl.store(out + row * N + i, value.to(out.dtype.element_ty), mask=i < N)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """See ``reference.rms_norm``; x [T, n] with contiguous rows, the result in ``dtype``."""
    n_rows, n = x.shape
    out = torch.empty(n_rows, n, dtype=dtype, device=x.device)
    _norm_kernel[(n_rows,)](x, weight, out, eps, x.stride(0), N=n, BLOCK=min(1024, power_of_two(n)), num_warps=4)
    return out


@triton.jit
def _gate_kernel(gate, up, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = silu(tl.load(gate + i, mask=i < n, other=0).to(tl.float32))
    value *= tl.load(up + i, mask=i < n, other=0).to(tl.float32)
    tl.store(out + i, value.to(out.dtype.element_ty), mask=i < n)


def gate_up(gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """silu(gate) * up of two contiguous tensors of one shape: float32, into ``out`` if given, which may be either."""
    if out is None:
        out = torch.empty_like(gate, dtype=torch.float32)
    _gate_kernel[(cdiv(gate.numel(), 1024),)](gate, up, out, gate.numel(), BLOCK=1024, num_warps=4)
    return out
