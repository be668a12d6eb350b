"""A Jamba for training, in plain torch over ``ops``.

It computes what transformers' JambaForCausalLM computes. Matrix products run in ``compute`` (bfloat16 where that is fast); the
residual stream, the router, the scan's states and the loss are in float32. All experts form one wide feed-forward layer whose
hidden values are scaled by the routing weight of their expert, 0 if it was not chosen: on a CPU that is faster than gathering
tokens by expert, and it gives the same sum.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jambacli.model.config import JambaConfig
from jambacli.training import ops


class Linear(nn.Module):
    """A linear layer without bias that computes in its input's type; the master weight is float32."""

    def __init__(self, n_in: int, n_out: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) * scale / math.sqrt(n_in))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RmsNorm(nn.Module):
    """RMS norm of float32 values; the result has type ``dtype``."""

    def __init__(self, n: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.eps = eps

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps, dtype)


class Mamba(nn.Module):
    """A Mamba layer with Jamba's norms on dt, B and C."""

    def __init__(self, c: JambaConfig, depth_scale: float) -> None:
        super().__init__()
        d, r, s = c.d_inner, c.dt_rank, c.d_state
        self.sizes = [r, s, s]
        self.in_proj, self.out_proj = Linear(c.hidden, 2 * d), Linear(d, c.hidden, depth_scale)
        self.x_proj, self.dt_proj = Linear(d, r + 2 * s), Linear(r, d, 0.3)
        self.conv_weight = nn.Parameter((torch.rand(d, c.d_conv) * 2 - 1) / math.sqrt(c.d_conv))
        self.conv_bias, self.D = nn.Parameter(torch.zeros(d)), nn.Parameter(torch.ones(d))
        self.A_log = nn.Parameter(torch.log(torch.arange(1, s + 1.0)).repeat(d, 1))
        # Initial time steps between 0.001 and 0.1, as in Mamba; the bias is their inverse softplus.
        step = torch.exp(torch.rand(d) * math.log(100) + math.log(0.001))
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.dt_norm, self.b_norm, self.c_norm = RmsNorm(r, c.rms_eps), RmsNorm(s, c.rms_eps), RmsNorm(s, c.rms_eps)

    def forward(self, h: Tensor) -> Tensor:
        x, z = self.in_proj(h).chunk(2, -1)
        x = ops.causal_conv(x, self.conv_weight, self.conv_bias)
        dt, B, C = self.x_proj(x).float().split(self.sizes, -1)
        dt = self.dt_proj(self.dt_norm(dt, h.dtype))
        B, C = self.b_norm(B, torch.float32), self.c_norm(C, torch.float32)
        return self.out_proj(ops.selective_scan(x, dt, z, B, C, self.dt_bias, -torch.exp(self.A_log), self.D))


class Attention(nn.Module):
    """Causal grouped-query attention without positional encoding."""

    def __init__(self, c: JambaConfig, depth_scale: float) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = c.n_heads, c.n_kv_heads, c.head_dim
        self.q_proj = Linear(c.hidden, c.n_heads * c.head_dim)
        self.k_proj = Linear(c.hidden, c.n_kv_heads * c.head_dim)
        self.v_proj = Linear(c.hidden, c.n_kv_heads * c.head_dim)
        self.o_proj = Linear(c.n_heads * c.head_dim, c.hidden, depth_scale)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = (
            p(h).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        group = self.n_heads // self.n_kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        return self.o_proj(_attend(q, k, v).transpose(1, 2).flatten(2))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of [batch, heads, tokens, head_dim]."""
    tokens = q.shape[2]
    if tokens > 128:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    # For short sequences torch's fused backward pass takes three times as long as plain matrix products.
    mask = torch.full((tokens, tokens), -torch.inf, device=q.device).triu(1)
    return F.softmax((q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).float() + mask, -1).to(v.dtype) @ v


class FeedForward(nn.Module):
    """A gated MLP, or several with a router. ``balance``: the load-balancing loss and expert loads of the last pass."""

    def __init__(self, c: JambaConfig, moe: bool, depth_scale: float) -> None:
        super().__init__()
        self.n_experts, self.top_k = (c.n_experts, c.n_experts_used) if moe else (1, 1)
        self.router = Linear(c.hidden, self.n_experts) if moe else None
        self.gate_up = Linear(c.hidden, 2 * self.n_experts * c.ffn)
        self.down = Linear(self.n_experts * c.ffn, c.hidden, depth_scale * math.sqrt(self.n_experts))
        self.balance: tuple[Tensor, Tensor] | None = None

    def forward(self, h: Tensor) -> Tensor:
        rows = h.flatten(0, -2)
        route = self._route(rows) if self.router is not None else None
        hidden = ops.gate(self.gate_up(rows).unflatten(-1, (2, -1)), route)
        return self.down(hidden).view(h.shape)

    def _route(self, rows: Tensor) -> Tensor:
        """Routing weights [rows, experts]: softmax over all experts, kept for the top k, not renormalized."""
        assert self.router is not None
        probabilities = F.softmax(self.router(rows).float(), -1)
        chosen = torch.zeros_like(probabilities).scatter_(-1, probabilities.topk(self.top_k, -1).indices, 1.0)
        load = chosen.mean(0) / self.top_k
        # Switch Transformers' loss (Fedus et al. 2021, section 2.2); 1 when loads are even.
        self.balance = (self.n_experts * (load.detach() * probabilities.mean(0)).sum(), load.detach())
        return probabilities * chosen


class Layer(nn.Module):
    """x + mixer(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, c: JambaConfig, index: int) -> None:
        super().__init__()
        scale = 1 / math.sqrt(2 * c.n_layers)
        self.mixer_norm, self.ffn_norm = RmsNorm(c.hidden, c.rms_eps), RmsNorm(c.hidden, c.rms_eps)
        self.mixer = Attention(c, scale) if c.layer_is_attention[index] else Mamba(c, scale)
        self.ffn = FeedForward(c, c.layer_is_moe[index], scale)

    def forward(self, x: Tensor, compute: torch.dtype) -> Tensor:
        x = x + self.mixer(self.mixer_norm(x, compute)).float()
        return x + self.ffn(self.ffn_norm(x, compute)).float()


class TrainableJamba(nn.Module):
    """Token ids [batch, tokens] -> final hidden states; ``logits`` multiplies them by the tied embedding.

    ``before_attention``: the residual stream at the input of the last attention layer in the last pass.
    """

    def __init__(self, config: JambaConfig, compute: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.compute = config, compute
        self.embed = nn.Parameter(torch.randn(config.vocab_size, config.hidden) / math.sqrt(config.hidden))
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.n_layers))
        self.norm = RmsNorm(config.hidden, config.rms_eps)
        self.before_attention: Tensor | None = None

    def forward(self, ids: Tensor) -> Tensor:
        """Normalized final hidden states [batch, tokens, hidden] in the compute type."""
        x = F.embedding(ids, self.embed)
        last_attention = max((i for i, a in enumerate(self.config.layer_is_attention) if a), default=0)
        for i, layer in enumerate(self.layers):
            if i == last_attention:
                self.before_attention = x
            x = layer(x, self.compute)
        return self.norm(x, self.compute)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits float32 [..., n_vocab]."""
        return F.linear(hidden, self.embed.to(hidden.dtype)).float()

    def balance(self) -> tuple[Tensor, list[Tensor]]:
        """The mean load-balancing loss of the last pass, and for each MoE layer the share of tokens routed to each expert."""
        parts = [m.balance for m in self.modules() if isinstance(m, FeedForward) and m.balance is not None]
        if not parts:
            return torch.zeros(()), []
        return torch.stack([p[0] for p in parts]).mean(), [p[1] for p in parts]
