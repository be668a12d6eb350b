"""The short causal convolution of a Mamba layer for many tokens. For one token it is part of ``gemv``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from jambacli.kernels.triton.gemv import silu
from jambacli.kernels.triton.launch import cdiv


@triton.jit(do_not_specialize=["T"])
def _conv_kernel(
    x, weight, bias, state, out, T, C, x_stride, TAPS: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """out[t, c] = silu(bias[c] + sum over taps); inputs before the first token come from state [C, TAPS - 1]."""
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    c_in = c < C
    total = tl.zeros((BT, BC), tl.float32) + tl.load(bias + c, mask=c_in, other=0)[None, :]
    for tap in tl.static_range(TAPS):
        at = t - (TAPS - 1) + tap
        now = at[:, None].to(tl.int64) * x_stride + c[None, :]
        value = tl.load(x + now, mask=((at >= 0) & (at < T))[:, None] & c_in[None, :], other=0)
        if TAPS > 1:
            before = c[None, :] * (TAPS - 1) + (at + TAPS - 1)[:, None]
            value += tl.load(state + before, mask=(at < 0)[:, None] & c_in[None, :], other=0)
        total += tl.load(weight + c * TAPS + tap, mask=c_in, other=0)[None, :] * value
    tl.store(out + t[:, None].to(tl.int64) * C + c[None, :], silu(total), mask=(t < T)[:, None] & c_in[None, :])


def causal_conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """See ``reference.causal_conv``; x may be a slice of wider rows."""
    n_tokens, d_inner = x.shape
    taps = weight.shape[1]
    out = torch.empty(n_tokens, d_inner, device=x.device)
    bt, bc = 16, 128
    _conv_kernel[cdiv(n_tokens, bt), cdiv(d_inner, bc)](
        x, weight, bias, state, out, n_tokens, d_inner, x.stride(0), TAPS=taps, BT=bt, BC=bc
    )
    if n_tokens >= taps - 1:
        state.copy_(x[n_tokens - (taps - 1) :].T)
    else:
        state.copy_(torch.cat([state[:, n_tokens:], x.T], dim=1))
    return out
