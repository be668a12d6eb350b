"""A grouped-query attention layer without positional encoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from jambacli.kernels import Ops
from jambacli.model.state import KVCache
from quant.formats import QTensor


@dataclass(frozen=True)
class Attention:
    """The mixer of an attention layer. There is no RoPE: the Mamba layers encode the order of the tokens.

    Shapes: q_proj [n_heads * head_dim, hidden], k_proj and v_proj [n_kv_heads * head_dim, hidden], out_proj [hidden,
    n_heads * head_dim].
    """

    q_proj: QTensor
    k_proj: QTensor
    v_proj: QTensor
    out_proj: QTensor
    n_heads: int
    n_kv_heads: int

    def forward(self, x: torch.Tensor, cache: KVCache, n_past: int, ops: Ops) -> torch.Tensor:
        """T tokens after the first ``n_past``: normed x float32 [T, hidden] to float32 [T, hidden].

        Writes their keys and values to ``cache``, which must have room for them.
        """
        n_tokens = x.shape[0]
        new = slice(n_past, n_past + n_tokens)
        ops.kv_store(ops.linear(x, self.k_proj).view(n_tokens, self.n_kv_heads, -1), cache.k[new])
        ops.kv_store(ops.linear(x, self.v_proj).view(n_tokens, self.n_kv_heads, -1), cache.v[new])
        q = ops.linear(x, self.q_proj).view(n_tokens, self.n_heads, -1)
        return ops.linear(ops.attention(q, cache.k, cache.v, n_past), self.out_proj)

    def forward_parts(
        self, x: torch.Tensor, sizes: Sequence[int], caches: Sequence[tuple[KVCache, int]], ops: Ops
    ) -> torch.Tensor:
        """``forward`` for several sequences: x float32 [sum(sizes), hidden], each part with its cache and its past tokens. They
        share the products."""
        n_tokens = x.shape[0]
        k = ops.linear(x, self.k_proj).view(n_tokens, self.n_kv_heads, -1)
        v = ops.linear(x, self.v_proj).view(n_tokens, self.n_kv_heads, -1)
        q = ops.linear(x, self.q_proj).view(n_tokens, self.n_heads, -1)
        attended = []
        parts = zip(q.split(list(sizes)), k.split(list(sizes)), v.split(list(sizes)), caches, strict=True)
        for q_part, k_part, v_part, (cache, n_past) in parts:
            new = slice(n_past, n_past + q_part.shape[0])
            ops.kv_store(k_part, cache.k[new])
            ops.kv_store(v_part, cache.v[new])
            attended.append(ops.attention(q_part, cache.k, cache.v, n_past))
        return ops.linear(torch.cat(attended), self.out_proj)
