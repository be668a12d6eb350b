"""Many tokens at once on the CPU: matrix products, experts, convolution, scan, attention.

The same functions with the same signatures as ``jambacli.kernels.reference``. Weights stay in their blocks: the library
unpacks a panel of rows at a time and multiplies it with all tokens, so a chunk reads each weight once. Panels are bf16
where the processor multiplies bf16 fast, else bytes with their scales on x86-64 and on ARM (tokens are then rounded to bytes
with a factor for every 32 values, and on x86-64 a zero point for formats whose blocks have 32), else f32, and always f32 for
f32 and f16 weights. Products add up in float32.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Sequence
from ctypes import c_int64

import torch

from jambacli.kernels import reference
from jambacli.kernels.cpu.library import built_library
from jambacli.kernels.cpu.structs import KV_TYPES, kv_type, matrix
from jambacli.kernels.kv_blocks import ROTATED
from quant.formats import QTensor

_CHUNK = 32  # values of a row that are dequantized together


def _rows(x: torch.Tensor) -> torch.Tensor:
    """x as float32 rows whose values lie side by side; rows may be any distance apart."""
    x = x.float()
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _writable(state: torch.Tensor) -> None:
    if state.dtype != torch.float32 or not state.is_contiguous():
        raise ValueError(f"a state is contiguous float32, not {state.dtype} with strides {state.stride()}")


def _pointer(x: torch.Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _with_float_scale(w: QTensor) -> QTensor:
    return w if w.scale is None else dataclasses.replace(w, scale=w.scale.float().contiguous())


def dequantize(w: QTensor) -> torch.Tensor:
    """The values of w [out, in] as the products see them: bf16 or float32 [out, in], by format and processor.

    int8 panels hold the same values as float32 ones.
    """
    n_out, n_in = w.shape
    lib, stride, w = built_library(), -(-n_in // _CHUNK) * _CHUNK, _with_float_scale(w)
    in_bf16 = lib.functions.prefill_element_bytes(w.format.ggml_type) == 2
    out = torch.empty(n_out, stride, dtype=torch.bfloat16 if in_bf16 else torch.float32)
    status = lib.functions.prefill_dequantize(ctypes.byref(matrix(w)), out.data_ptr(), stride, torch.get_num_threads())
    lib.check(status, f"a {w.format.name} weight {list(w.shape)}")
    return out[:, :n_in]


def linear(x: torch.Tensor, w: QTensor, *, precise: bool = False) -> torch.Tensor:
    """x @ w.T for x float32 [T, in] and w [out, in] in any format: float32 [T, out]. ``precise``: x is not rounded to int8."""
    if not w.format.native:
        return reference.linear(x, w)
    lib, x, w = built_library(), _rows(x), _with_float_scale(w)
    out = torch.empty(x.shape[0], w.shape[0])
    status = lib.functions.prefill_linear(
        ctypes.byref(matrix(w)),
        *(x.data_ptr(), x.stride(0)),
        *(out.data_ptr(), out.stride(0)),
        x.shape[0],
        precise,
        torch.get_num_threads(),
    )
    lib.check(status, f"a {w.format.name} weight {list(w.shape)}")
    return out


def _gated(
    x: torch.Tensor,
    weights: tuple[QTensor, QTensor, QTensor],
    offsets: list[int],
    order: torch.Tensor | None,
    factors: torch.Tensor | None,
    precise: bool,
) -> torch.Tensor:
    lib, x, hidden = built_library(), _rows(x), weights[0].shape[-1]
    kept = [_with_float_scale(w) for w in weights]
    out = torch.empty(x.shape[0], hidden) if factors is None else torch.zeros(x.shape[0], hidden)
    status = lib.functions.prefill_gated(
        *(ctypes.byref(matrix(w)) for w in kept),
        (c_int64 * len(offsets))(*offsets),
        _pointer(order),
        _pointer(factors),
        *(x.data_ptr(), x.stride(0)),
        *(out.data_ptr(), hidden),
        len(offsets) - 1,
        precise,
        torch.get_num_threads(),
    )
    lib.check(status, f"a {weights[0].format.name} network {list(weights[0].shape)}")
    return out


def mlp(x: torch.Tensor, gate: QTensor, up: QTensor, down: QTensor, *, precise: bool = False) -> torch.Tensor:
    """The gated feed-forward network down(silu(gate(x)) * up(x)): float32 [T, hidden] in and out."""
    matrices = (gate, up, down)
    if any(not w.format.native for w in matrices):
        return reference.mlp(x, gate, up, down)
    return _gated(x, matrices, [0, x.shape[0]], None, None, precise)


def experts(
    x: torch.Tensor,
    router: torch.Tensor,
    gate: QTensor,
    up: QTensor,
    down: QTensor,
    top_k: int,
    *,
    precise: bool = False,
    sizes: Sequence[int] | None = None,
) -> torch.Tensor:
    """The mixture of experts: each token's ``top_k`` most probable experts, summed with their probabilities.

    x float32 [T, hidden]; router float32 [experts, hidden]; gate and up [experts, ffn, hidden], down [experts, hidden,
    ffn]. Tokens are sorted by expert, so each chosen expert's weights are decoded once, and none of the others'.
    ``sizes``: of the parts of x of which each is to have the bits of a call of its own.
    """
    matrices = (gate, up, down)
    parts = [x] if sizes is None else x.split(list(sizes))
    if any(not w.format.native for w in matrices):
        return torch.cat([reference.experts(part, router, gate, up, down, top_k) for part in parts])
    x = x.float()
    # The bits of torch's product depend on the number of rows; those of the library's do not.
    scores = torch.cat([part.float() @ router.T for part in parts])
    weights, chosen = torch.softmax(scores, dim=-1).topk(top_k, dim=-1)
    by_expert = torch.argsort(chosen.flatten(), stable=True)
    counts = torch.bincount(chosen.flatten(), minlength=router.shape[0])
    offsets = [0, *torch.cumsum(counts, 0).tolist()]
    return _gated(x, matrices, offsets, by_expert // top_k, weights.flatten()[by_expert].contiguous(), precise)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight along the last dimension; float32 in and out, any leading dimensions."""
    shape = x.shape
    x, weight = _rows(x.reshape(-1, shape[-1])), weight.float().contiguous()
    out = torch.empty(x.shape)
    n_rows, n = x.shape
    lib = built_library()
    status = lib.functions.prefill_rms_norm(
        weight.data_ptr(), *(x.data_ptr(), x.stride(0)), out.data_ptr(), n_rows, n, eps, torch.get_num_threads()
    )
    lib.check(status)
    return out.view(shape)


def causal_conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """silu(depthwise causal convolution + bias) over time.

    x float32 [T, d_inner]; weight [d_inner, d_conv], the last tap for the current token; bias [d_inner]; state float32
    [d_inner, d_conv - 1], the inputs just before x, oldest first: read, then replaced by those before the next token.
    Returns float32 [T, d_inner].
    """
    x, weight, bias = _rows(x), weight.float().contiguous(), bias.float().contiguous()
    _writable(state)
    n_tokens, d_inner = x.shape
    y = torch.empty(n_tokens, d_inner)
    lib = built_library()
    status = lib.functions.prefill_conv(
        weight.data_ptr(),
        bias.data_ptr(),
        *(x.data_ptr(), x.stride(0)),
        state.data_ptr(),
        *(y.data_ptr(), d_inner),
        n_tokens,
        d_inner,
        weight.shape[1],
        torch.get_num_threads(),
    )
    lib.check(status, f"a convolution over {weight.shape[1]} tokens")
    return y


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
    """The state space recurrence of Mamba with its gate; shapes and formula as ``reference.selective_scan``.

    One pass over the tokens with the states in registers. The result does not depend on how tokens are cut into calls,
    to the bit, nor on the number of threads.
    """
    x, dt, B, C, z = (_rows(v) for v in (x, dt, B, C, z))
    dt_bias, A, D = (v.float().contiguous() for v in (dt_bias, A, D))
    _writable(state)
    n_tokens, d_inner = x.shape
    y = torch.empty(n_tokens, d_inner)
    lib = built_library()
    status = lib.functions.prefill_scan(
        dt_bias.data_ptr(),
        A.data_ptr(),
        D.data_ptr(),
        *(x.data_ptr(), x.stride(0)),
        *(dt.data_ptr(), dt.stride(0)),
        *(z.data_ptr(), z.stride(0)),
        *(B.data_ptr(), B.stride(0)),
        *(C.data_ptr(), C.stride(0)),
        state.data_ptr(),
        *(y.data_ptr(), d_inner),
        n_tokens,
        d_inner,
        A.shape[1],
        torch.get_num_threads(),
    )
    lib.check(status)
    return y


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_past: int) -> torch.Tensor:
    """Causal grouped-query attention of T new tokens over the cache; shapes and meaning as ``reference.attention``.

    Over an f32 cache everything is float32; over the others keys, queries, values and weights are rounded to bf16 where
    the processor multiplies that fast, and sums are float32.
    """
    n_tokens, n_heads, head_dim = q.shape
    q = q.float()
    if q.stride(2) != 1 or q.stride(1) != head_dim:
        q = q.contiguous()
    if k.stride(2) != 1 or k.stride() != v.stride() or k.dtype != v.dtype:
        raise ValueError(f"no attention over a cache of {k.dtype} with strides {k.stride()} and {v.stride()}")
    out = torch.empty(n_tokens, n_heads * head_dim)
    lib, name = built_library(), kv_type(k, head_dim)
    if name in ROTATED:
        q = rotate(q)
    status = lib.functions.prefill_attention(
        *(q.data_ptr(), q.stride(0)),
        k.data_ptr(),
        v.data_ptr(),
        k.stride(0) * k.element_size(),
        k.stride(1) * k.element_size(),
        out.data_ptr(),
        KV_TYPES[name],
        n_tokens,
        n_past,
        n_heads,
        k.shape[1],
        head_dim,
        torch.get_num_threads(),
    )
    lib.check(status, f"attention with a head_dim of {head_dim}")
    return rotate(out.view(-1, head_dim)).view(out.shape) if name in ROTATED else out


def rotate(x: torch.Tensor) -> torch.Tensor:
    """Heads [..., head_dim] rotated, with the bits of ``reference.rotate``."""
    x = x.float().contiguous()
    out, lib = torch.empty_like(x), built_library()
    n = x.shape[-1]
    lib.check(lib.functions.rotate_heads(x.data_ptr(), out.data_ptr(), x.numel() // n, n, torch.get_num_threads()))
    return out
