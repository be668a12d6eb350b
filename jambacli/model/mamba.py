"""A Mamba (version 1) layer with Jamba's three extra norms."""

from __future__ import annotations

from collections.abc import Sequence
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
        x, z = ops.linear(u, self.in_proj).split(self.A.shape[0], dim=-1)
        x = ops.causal_conv(x, self.conv_weight, self.conv_bias, state.conv)
        dt, B, C = self._selection(x, ops)
        y = ops.selective_scan(x, dt, self.dt_bias, self.A, B, C, self.D, z, state.ssm)
        return ops.linear(y, self.out_proj)

    def forward_parts(
        self, u: torch.Tensor, sizes: Sequence[int], states: Sequence[MambaState], ops: Ops
    ) -> torch.Tensor:
        """``forward`` for several sequences: u float32 [sum(sizes), hidden], each with its state; they share the products."""
        x, z = ops.linear(u, self.in_proj).split(self.A.shape[0], dim=-1)
        parts = zip(x.split(list(sizes)), states, strict=True)
        x = torch.cat([ops.causal_conv(part, self.conv_weight, self.conv_bias, state.conv) for part, state in parts])
        scanned = zip(*(v.split(list(sizes)) for v in (x, *self._selection(x, ops), z)), states, strict=True)
        y = torch.cat(
            [
                ops.selective_scan(x, dt, self.dt_bias, self.A, B, C, self.D, z, state.ssm)
                for x, dt, B, C, z, state in scanned
            ]
        )
        return ops.linear(y, self.out_proj)

    def _selection(self, x: torch.Tensor, ops: Ops) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What depends on the input: dt float32 [T, d_inner], B and C float32 [T, d_state]."""
        d_state = self.A.shape[1]
        dt, B, C = ops.linear(x, self.x_proj).split([self.dt_norm.shape[0], d_state, d_state], dim=-1)
        dt = ops.rms_norm(dt, self.dt_norm, self.eps)
        B = ops.rms_norm(B, self.b_norm, self.eps)
        C = ops.rms_norm(C, self.c_norm, self.eps)
        return ops.linear(dt, self.dt_proj), B, C
