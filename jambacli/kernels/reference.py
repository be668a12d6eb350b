"""The operations of a Jamba model in plain torch, which define what every backend computes.

Other backends have these functions with the same signatures and are tested against them. All arithmetic is float32 (the caller
switches off TF32 and other reduced precision); every function runs on any device. States are updated in place, so a sequence
continues where the last call ended. T tokens at once or one at a time give the same result up to rounding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from jambacli.errors import JambaError
from jambacli.kernels.kv_blocks import ROTATED, type_of_rows
from jambacli.kernels.low_rank import adapted, low_of
from quant.formats import QTensor

# Rows of a quantized matrix are dequantized this many bytes at a time; the whole output matrix of the 3B would take 0.67 GB.
_DEQUANTIZED_PANEL_BYTES = 32 << 20
# The largest matrix of attention scores, in float32 values.
_SCORE_VALUES = 8 << 20
# Maximum number of float32 values of the discretized transition exp(dt * A) in memory at once.
_SCAN_VALUES = 4 << 20


def dequantize(w: QTensor) -> torch.Tensor:
    """The values of a weight: float32 [*w.shape]. A float32 weight is a view, not a copy."""
    if w.format.name == "f32":
        return w.data.view(torch.float32).view(w.shape)
    if w.format.name in ("f16", "bf16"):
        dtype = torch.float16 if w.format.name == "f16" else torch.bfloat16
        return w.data.view(dtype).view(w.shape).float()
    if w.format.name == "i8" and w.scale is not None:  # ExpertsInt8: one factor per row
        return w.data.view(torch.int8).view(w.shape).float() * w.scale.view(*w.shape[:-1], 1)
    from quant.dequantize_blocks import dequantize as blocks  # also for formats that only the gguf package knows

    values = blocks(w.row_blocks(), w.format.name, threads=torch.get_num_threads())
    return values if w.scale is None else values.mul_(w.scale.view(*w.shape[:-1], 1))


def select_rows(w: QTensor, start: int, stop: int) -> QTensor:
    """A view of rows ``start:stop`` along the first dimension of a weight: a panel of a matrix, or some experts."""
    per_row = w.data.numel() // w.shape[0]
    return QTensor(
        w.data[start * per_row : stop * per_row],
        w.format,
        (stop - start, *w.shape[1:]),
        None if w.scale is None else w.scale.view(w.shape[0], -1)[start:stop].reshape(-1),
    )


def expert(w: QTensor, index: int) -> QTensor:
    """A view of one expert's matrix [out, in] in a stacked weight [experts, out, in]."""
    one = select_rows(w, index, index + 1)
    return adapted(QTensor(one.data, one.format, one.shape[1:], one.scale), tuple(p.expert(index) for p in low_of(w)))


def embed(ids: torch.Tensor, w: QTensor) -> torch.Tensor:
    """Rows ``ids`` (int64 [T]) of the embedding w [vocab, hidden]: float32 [T, hidden]. Only those rows are dequantized."""
    rows = w.row_blocks()[ids]
    scale = None if w.scale is None else w.scale[ids]
    return dequantize(QTensor(rows.reshape(-1), w.format, (len(ids), w.shape[1]), scale))


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight along the last dimension; float32 in and out, any leading dimensions."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def linear(x: torch.Tensor, w: QTensor) -> torch.Tensor:
    """x @ w.T for x float32 [T, in] and w [out, in] in any format, plus w's adapters: float32 [T, out]."""
    return add_adapters(_product(x, w), x, w)


def add_adapters(out: torch.Tensor, x: torch.Tensor, w: QTensor) -> torch.Tensor:
    """``out``, the product of x and the weight w itself, plus what w's adapters add to it."""
    for low in low_of(w):
        out = out + low.product(x, w.shape[0])
    return out


def _product(x: torch.Tensor, w: QTensor) -> torch.Tensor:
    if w.format.name == "f32":
        return x @ dequantize(w).T
    n_out, n_in = w.shape
    panel = max(1, _DEQUANTIZED_PANEL_BYTES // (n_in * 4))
    out = x.new_empty(x.shape[0], n_out)
    for start in range(0, n_out, panel):
        stop = min(start + panel, n_out)
        out[:, start:stop] = x @ dequantize(select_rows(w, start, stop)).T
    return out


def mlp(x: torch.Tensor, gate: QTensor, up: QTensor, down: QTensor) -> torch.Tensor:
    """The gated feed-forward network down(silu(gate(x)) * up(x)): float32 [T, hidden] in and out."""
    return linear(F.silu(linear(x, gate)) * linear(x, up), down)


def experts(
    x: torch.Tensor, router: torch.Tensor, gate: QTensor, up: QTensor, down: QTensor, top_k: int
) -> torch.Tensor:
    """The mixture of experts: each token's ``top_k`` most probable experts, summed with their probabilities.

    x float32 [T, hidden]; router float32 [experts, hidden]; gate and up [experts, ffn, hidden], down [experts, hidden,
    ffn]. The softmax is over all experts and the chosen probabilities are not renormalized, as in Jamba's training.
    """
    probabilities = torch.softmax(x @ router.T, dim=-1)
    weights, chosen = probabilities.topk(top_k, dim=-1)
    out = torch.zeros_like(x)
    for index in chosen.unique().tolist():
        token, rank = torch.where(chosen == index)
        y = mlp(x[token], expert(gate, index), expert(up, index), expert(down, index))
        out.index_add_(0, token, y * weights[token, rank, None])
    return out


def causal_conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """silu(depthwise causal convolution + bias) over time.

    x float32 [T, d_inner]; weight [d_inner, d_conv], the last tap for the current token; bias [d_inner]; state float32
    [d_inner, d_conv - 1], the inputs just before x, oldest first: read, then replaced by those before the next token.
    Returns float32 [T, d_inner].
    """
    n_tokens, d_conv = x.shape[0], weight.shape[1]
    history = torch.cat([state.T, x])  # [d_conv - 1 + T, d_inner]
    y = bias.expand_as(x).clone()
    for tap in range(d_conv):
        y.addcmul_(history[tap : tap + n_tokens], weight[:, tap])
    state.copy_(history[n_tokens:].T)
    return F.silu(y)


def selective_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    dt_bias: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    z: torch.Tensor,
    state: torch.Tensor,
) -> torch.Tensor:
    """The state space recurrence of Mamba (Gu and Dao 2023, algorithm 2), with its gate.

        dt = softplus(dt + dt_bias);  h = exp(dt * A) * h + dt * B * x;  y = (C . h + D * x) * silu(z)

    x, dt, z float32 [T, d_inner]; dt_bias, D [d_inner]; A [d_inner, d_state], negative, as GGUF stores it; B, C
    [T, d_state]; state float32 [d_inner, d_state], the h before the first token, replaced by the h after the last.
    Returns float32 [T, d_inner].
    """
    n_tokens, d_inner = x.shape
    dt = F.softplus(dt + dt_bias)
    y = torch.empty_like(x)
    steps = max(1, _SCAN_VALUES // (d_inner * A.shape[1]))
    for start in range(0, n_tokens, steps):
        part = slice(start, min(start + steps, n_tokens))
        decay = torch.exp(dt[part, :, None] * A)
        h = (dt[part] * x[part])[:, :, None] * B[part, None, :]  # the input of each token; becomes its state below
        previous = state
        for t in range(h.shape[0]):
            previous = h[t].addcmul_(decay[t], previous)
        state.copy_(previous)
        y[part] = (h @ C[part, :, None])[:, :, 0]
    return (y + D * x) * F.silu(z)


def rotate(x: torch.Tensor) -> torch.Tensor:
    """Heads times an orthogonal matrix that is its own inverse: float32 [..., head_dim] in and out.

    The matrix is Hadamard's / sqrt(n), for each n values, n the largest power of two that divides head_dim. Products of keys
    and queries that are both rotated stay what they are, up to rounding.
    """
    n = x.shape[-1] & -x.shape[-1]
    y, half = x.reshape(-1, n), 1
    while half < n:
        a, b = y.view(-1, n // (2 * half), 2, half).unbind(2)
        y, half = torch.stack((a + b, a - b), 2).view(-1, n), 2 * half
    return (y * (1.0 / math.sqrt(n))).view(x.shape)


def rotated_cache(cache: torch.Tensor, head_dim: int) -> bool:
    """Whether a cache holds its keys or values rotated: its type is one of ``kv_blocks.ROTATED``."""
    return cache.dtype == torch.uint8 and type_of_rows(cache.shape[-1], head_dim) in ROTATED


def kv_values(cache: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Stored keys or values as float32 [..., head_dim], as they are stored: those of a ``rotated_cache`` are rotated.

    The cache is f32, f16 or bf16 [..., head_dim], or uint8 of blocks as ``kernels.kv_blocks`` describes them.
    """
    if cache.dtype != torch.uint8:
        return cache.float()
    from quant.dequantize_blocks import dequantize as blocks

    return blocks(cache.contiguous(), type_of_rows(cache.shape[-1], head_dim), threads=torch.get_num_threads())


def kv_store(x: torch.Tensor, cache: torch.Tensor) -> None:
    """Write float32 [T, n_kv_heads, head_dim] into a slice of the cache of the same T, in the cache's type. Raises JambaError
    for values that blocks cannot hold."""
    if cache.dtype != torch.uint8:
        cache.copy_(x)
        return
    from quant.native import NonFiniteRowError
    from quant.quantize_blocks import quantize

    name = type_of_rows(cache.shape[-1], x.shape[-1])
    try:
        rows = rotate(x) if name in ROTATED else x.contiguous()
        cache.copy_(quantize(rows, name, threads=torch.get_num_threads()))
    except NonFiniteRowError as error:
        raise JambaError("the model computes NaN or infinity: its file is damaged or invalid") from error


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_past: int) -> torch.Tensor:
    """Causal grouped-query attention of T new tokens over the cache; no positional encoding, scale head_dim^-0.5.

    q float32 [T, n_heads, head_dim]; k, v: the caches [n_past + T or more, n_kv_heads, row] as ``kv_values`` reads
    them, the new tokens' own keys and values already stored at n_past..n_past+T-1. Query t sees keys 0..n_past+t; query
    head h reads kv head h // (n_heads / n_kv_heads). Over a ``rotated_cache`` q is rotated too, and the result is rotated back.
    Returns float32 [T, n_heads * head_dim]; holds no T x T matrix.
    """
    n_tokens, n_heads, head_dim = q.shape
    n_kv_heads, total = k.shape[1], n_past + n_tokens
    group = n_heads // n_kv_heads
    rotated = rotated_cache(k, head_dim)
    q = rotate(q) if rotated else q
    out = torch.empty_like(q)
    block = max(1, _SCORE_VALUES // (group * total))
    key_position = torch.arange(total, device=q.device)
    for head in range(n_kv_heads):
        heads = slice(head * group, (head + 1) * group)
        keys = kv_values(k[:total, head], head_dim)
        values = kv_values(v[:total, head], head_dim)
        for start in range(0, n_tokens, block):
            part = slice(start, min(start + block, n_tokens))
            seen = n_past + part.stop  # keys any query of this block sees
            scores = (q[part, heads] * head_dim**-0.5) @ keys[:seen].T  # [block, group, seen]
            query_position = torch.arange(n_past + start, seen, device=q.device)
            scores.masked_fill_(key_position[None, None, :seen] > query_position[:, None, None], float("-inf"))
            out[part, heads] = torch.softmax(scores, dim=-1) @ values[:seen]
    return (rotate(out) if rotated else out).reshape(n_tokens, n_heads * head_dim)
