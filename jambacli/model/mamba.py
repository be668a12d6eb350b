"""A Mamba (version 1) layer with Jamba's three extra norms."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from jambacli.kernels import Ops
from jambacli.model.state import MambaState
from quant.formats import QTensor


@dataclass(frozen=True)
class Mamba:
    """The mixer of most layers: a short convolution, then a selective scan (Gu and Dao 2023).

    Shapes: in_proj [2 * d_inner, hidden], conv_weight [d_inner, d_conv], x_proj [dt_rank + 2 * d_state, d_inner], dt_proj
    [d_inner, dt_rank], A [d_inner, d_state] (negative: -exp(A_log)), D [d_inner], out_proj [hidden, d_inner]. Jamba adds
    the norms dt_norm [dt_rank], b_norm and c_norm [d_state].
    """

    in_proj: QTensor
    conv_weight: torch.Tensor
    conv_bias: torch.Tensor
    x_proj: QTensor
    dt_norm: torch.Tensor
    b_norm: torch.Tensor
    c_norm: torch.Tensor
    dt_proj: QTensor
    dt_bias: torch.Tensor
    A: torch.Tensor
    D: torch.Tensor
    out_proj: QTensor
    eps: float

    def forward(self, u: torch.Tensor, state: MambaState, ops: Ops) -> torch.Tensor:
        """T tokens: normed u float32 [T, hidden] to float32 [T, hidden]; updates ``state`` in place."""
        d_inner, d_state = self.A.shape
        x, z = ops.linear(u, self.in_proj).split(d_inner, dim=-1)
        x = ops.causal_conv(x, self.conv_weight, self.conv_bias, state.conv)
        dt, B, C = ops.linear(x, self.x_proj).split([self.dt_norm.shape[0], d_state, d_state], dim=-1)
        dt = ops.rms_norm(dt, self.dt_norm, self.eps)
        B = ops.rms_norm(B, self.b_norm, self.eps)
        C = ops.rms_norm(C, self.c_norm, self.eps)
        dt = ops.linear(dt, self.dt_proj)
        y = ops.selective_scan(x, dt, self.dt_bias, self.A, B, C, self.D, z, state.ssm)
        return ops.linear(y, self.out_proj)
