"""The feed-forward half of a layer: one gated network, or the top few of many experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from jambacli.kernels import Ops
from quant.formats import QTensor


@dataclass(frozen=True)
class MLP:
    """down(silu(gate(x)) * up(x)). Shapes: gate and up [ffn, hidden], down [hidden, ffn]."""

    gate: QTensor
    up: QTensor
    down: QTensor

    def forward(self, x: torch.Tensor, ops: Ops) -> torch.Tensor:
        """Normed x float32 [T, hidden] to float32 [T, hidden]."""
        return ops.mlp(x, self.gate, self.up, self.down)


@dataclass(frozen=True)
class MoE:
    """Each token's ``top_k`` most probable experts, weighted by their probabilities, which are not renormalized.

    Shapes: router float32 [experts, hidden]; gate and up [experts, ffn, hidden], down [experts, hidden, ffn].
    """

    router: torch.Tensor
    gate: QTensor
    up: QTensor
    down: QTensor
    top_k: int

    def forward(self, x: torch.Tensor, ops: Ops, sizes: Sequence[int] | None = None) -> torch.Tensor:
        """Normed x float32 [T, hidden] to float32 [T, hidden]. ``sizes``: of the parts of x that are to have the bits of a
        ``forward`` of their own; only for the operations of the CPU."""
        more = {} if sizes is None else {"sizes": sizes}
        return ops.experts(x, self.router, self.gate, self.up, self.down, self.top_k, **more)
