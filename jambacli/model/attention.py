"""A grouped-query attention layer without positional encoding; knows nothing of files or of how operations run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from jambacli.kernels import Ops
from jambacli.model.state import KVCache
from quant.formats import QTensor


@dataclass(frozen=True)
class Attention:
    """The mixer of the few attention layers. The Mamba layers know the order of tokens, so there is no RoPE here.

    Shapes: q [n_heads * head_dim, hidden], k and v [n_kv_heads * head_dim, hidden], output [hidden, n_heads *
    head_dim].
    """

    q: QTensor
    k: QTensor
    v: QTensor
    output: QTensor
    n_heads: int
    n_kv_heads: int

    def forward(self, x: torch.Tensor, cache: KVCache, n_past: int, ops: Ops) -> torch.Tensor:
        """T more tokens after ``n_past``: x float32 [T, hidden], already normed, to float32 [T, hidden].

        Their keys and values are stored in ``cache``, which has room for them.
        """
        n_tokens = x.shape[0]
        new = slice(n_past, n_past + n_tokens)
        ops.kv_store(ops.linear(x, self.k).view(n_tokens, self.n_kv_heads, -1), cache.k[new])
        ops.kv_store(ops.linear(x, self.v).view(n_tokens, self.n_kv_heads, -1), cache.v[new])
        q = ops.linear(x, self.q).view(n_tokens, self.n_heads, -1)
        return ops.linear(ops.attention(q, cache.k, cache.v, n_past), self.output)
