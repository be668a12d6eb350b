"""Many tokens at once on the CPU: matrix products, experts, convolution, scan. Knows nothing of layers, models or caches.

The same functions with the same signatures as ``jambacli.kernels.reference``. Weights stay in their blocks: the library
decodes a panel of rows at a time into bf16 where the processor multiplies bf16 fast (f32 elsewhere, and always for f32
and f16 weights) and multiplies it with all tokens, so a chunk reads each weight once. Products add up in float32.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_float, c_int, c_int64, c_void_p

import torch

from jambacli.kernels import reference
from jambacli.kernels.cpu.library import library
from quant.formats import QTensor

_SIGNATURES = {
    "prefill_linear": [
        c_int,
        c_void_p,
        c_void_p,
        c_int64,
        c_int64,
        c_void_p,
        c_int64,
        c_int64,
        c_void_p,
        c_int64,
        c_int,
    ],
    "prefill_gated": [c_void_p] * 3 + [c_int64] * 3 + [c_void_p] * 4 + [c_int64, c_void_p, c_int64, c_int],
    "prefill_element_bytes": [c_int],
    "prefill_conv": [c_void_p, c_int64, *[c_void_p] * 4, *[c_int64] * 4, c_int],
    "prefill_scan": [c_void_p, c_int64] * 2
    + [c_void_p] * 2
    + [c_void_p, c_int64] * 2
    + [c_void_p]
    + [c_void_p, c_int64, c_void_p]
    + [c_void_p]
    + [c_int64] * 4
    + [c_int],
    "prefill_rms_norm": [c_void_p, c_int64, c_void_p, c_float, c_void_p, c_int64, c_int64, c_int],
    "prefill_attention": [c_void_p, *[c_int64] * 6, c_void_p, c_void_p, c_int, c_int64, c_int64, c_void_p, c_int],
    "prefill_dequantize": [c_int, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int],
}
_CHUNK = 32  # values of a row that are decoded together


@functools.cache
def _library() -> ctypes.CDLL:
    lib = library()
    if lib is None:
        raise RuntimeError("the C++ kernels were not built; install with a C++ compiler or rebuild with `make native`")
    for name, arguments in _SIGNATURES.items():
        getattr(lib, name).argtypes = arguments
        getattr(lib, name).restype = c_int
    return lib


def _check(status: int, what: str) -> None:
    if status == -2:
        raise MemoryError(f"no memory for the scratch space of {what}")
    if status:
        raise ValueError(f"{what}: no kernel for this format or size")


def _rows(x: torch.Tensor) -> torch.Tensor:
    """x as float32 rows whose values lie side by side; rows may be any distance apart."""
    x = x.float()
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _writable(state: torch.Tensor) -> None:
    if state.dtype != torch.float32 or not state.is_contiguous():
        raise ValueError(f"a state is contiguous float32, not {state.dtype} with strides {state.stride()}")


def _scale(w: QTensor) -> torch.Tensor | None:
    return None if w.scale is None else w.scale.float().contiguous()


def _pointer(x: torch.Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def dequantize(w: QTensor) -> torch.Tensor:
    """The values of w [out, in] as the products see them: bf16 or float32 [out, in], by format and processor."""
    n_out, n_in = w.shape
    lib, stride = _library(), -(-n_in // _CHUNK) * _CHUNK
    dtype = torch.bfloat16 if lib.prefill_element_bytes(w.format.ggml_type) == 2 else torch.float32
    out = torch.empty(n_out, stride, dtype=dtype)
    scale = _scale(w)
    status = lib.prefill_dequantize(
        w.format.ggml_type,
        w.data.data_ptr(),
        _pointer(scale),
        n_out,
        n_in,
        out.data_ptr(),
        stride,
        torch.get_num_threads(),
    )
    _check(status, f"a {w.format.name} weight {list(w.shape)}")
    return out[:, :n_in]


def linear(x: torch.Tensor, w: QTensor) -> torch.Tensor:
    """x @ w.T for x float32 [T, in] and w [out, in] in any format: float32 [T, out]."""
    if not w.format.native and w.scale is None:
        return reference.linear(x, w)
    x, scale = _rows(x), _scale(w)
    n_out, n_in = w.shape
    out = torch.empty(x.shape[0], n_out)
    status = _library().prefill_linear(
        w.format.ggml_type,
        w.data.data_ptr(),
        _pointer(scale),
        n_out,
        n_in,
        x.data_ptr(),
        x.stride(0),
        x.shape[0],
        out.data_ptr(),
        n_out,
        torch.get_num_threads(),
    )
    _check(status, f"a {w.format.name} weight {list(w.shape)}")
    return out


def _gated(
    x: torch.Tensor,
    matrices: tuple[QTensor, QTensor, QTensor],
    offsets: list[int],
    order: torch.Tensor | None,
    weights: torch.Tensor | None,
) -> torch.Tensor:
    x = _rows(x)
    ffn, hidden = matrices[0].shape[-2:]
    n_experts = len(offsets) - 1
    scales = [_scale(w) for w in matrices]
    out = torch.empty(x.shape[0], hidden) if weights is None else torch.zeros(x.shape[0], hidden)
    status = _library().prefill_gated(
        (c_int * 3)(*(w.format.ggml_type for w in matrices)),
        (c_void_p * 3)(*(w.data.data_ptr() for w in matrices)),
        (c_void_p * 3)(*(_pointer(s) for s in scales)),
        n_experts,
        ffn,
        hidden,
        (c_int64 * (n_experts + 1))(*offsets),
        _pointer(order),
        _pointer(weights),
        x.data_ptr(),
        x.stride(0),
        out.data_ptr(),
        hidden,
        torch.get_num_threads(),
    )
    _check(status, f"a {matrices[0].format.name} network {list(matrices[0].shape)}")
    return out


def mlp(x: torch.Tensor, gate: QTensor, up: QTensor, down: QTensor) -> torch.Tensor:
    """The gated feed-forward network down(silu(gate(x)) * up(x)): float32 [T, hidden] in and out."""
    matrices = (gate, up, down)
    if any(not w.format.native and w.scale is None for w in matrices):
        return reference.mlp(x, gate, up, down)
    return _gated(x, matrices, [0, x.shape[0]], None, None)


def experts(
    x: torch.Tensor, router: torch.Tensor, gate: QTensor, up: QTensor, down: QTensor, top_k: int
) -> torch.Tensor:
    """The mixture of experts: each token's ``top_k`` most probable experts, summed with their probabilities.

    x float32 [T, hidden]; router float32 [experts, hidden]; gate and up [experts, ffn, hidden], down [experts, hidden,
    ffn]. Tokens are sorted by expert, so each chosen expert's weights are decoded once, and none of the others'.
    """
    matrices = (gate, up, down)
    if any(not w.format.native and w.scale is None for w in matrices):
        return reference.experts(x, router, gate, up, down, top_k)
    x = x.float()
    weights, chosen = torch.softmax(x @ router.T, dim=-1).topk(top_k, dim=-1)
    by_expert = torch.argsort(chosen.flatten(), stable=True)
    counts = torch.bincount(chosen.flatten(), minlength=router.shape[0])
    offsets = [0, *torch.cumsum(counts, 0).tolist()]
    return _gated(x, matrices, offsets, by_expert // top_k, weights.flatten()[by_expert].contiguous())


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight along the last dimension; float32 in and out, any leading dimensions."""
    shape = x.shape
    x, weight = _rows(x.reshape(-1, shape[-1])), weight.float().contiguous()
    out = torch.empty(x.shape)
    n_rows, n = x.shape
    _library().prefill_rms_norm(
        x.data_ptr(), x.stride(0), weight.data_ptr(), eps, out.data_ptr(), n_rows, n, torch.get_num_threads()
    )
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
    status = _library().prefill_conv(
        x.data_ptr(),
        x.stride(0),
        weight.data_ptr(),
        bias.data_ptr(),
        state.data_ptr(),
        y.data_ptr(),
        d_inner,
        n_tokens,
        d_inner,
        weight.shape[1],
        torch.get_num_threads(),
    )
    _check(status, f"a convolution over {weight.shape[1]} tokens")
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
    _library().prefill_scan(
        x.data_ptr(),
        x.stride(0),
        dt.data_ptr(),
        dt.stride(0),
        dt_bias.data_ptr(),
        A.data_ptr(),
        B.data_ptr(),
        B.stride(0),
        C.data_ptr(),
        C.stride(0),
        D.data_ptr(),
        z.data_ptr(),
        z.stride(0),
        state.data_ptr(),
        y.data_ptr(),
        d_inner,
        n_tokens,
        d_inner,
        A.shape[1],
        torch.get_num_threads(),
    )
    return y


_KV_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30, torch.uint8: 8}  # GGML type ids; bytes are q8_0


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_past: int) -> torch.Tensor:
    """Causal grouped-query attention of T new tokens over the cache; shapes and meaning as ``reference.attention``.

    Over an f32 cache everything is float32; over the others keys, queries, values and weights are rounded to bf16 where
    the processor multiplies that fast, and sums are float32.
    """
    n_tokens, n_heads, head_dim = q.shape
    q = q.float()
    if q.stride(2) != 1 or q.stride(1) != head_dim:
        q = q.contiguous()
    if k.stride(2) != 1 or k.stride() != v.stride() or k.dtype != v.dtype or k.dtype not in _KV_TYPES:
        raise ValueError(f"no attention over a cache of {k.dtype} with strides {k.stride()} and {v.stride()}")
    out = torch.empty(n_tokens, n_heads * head_dim)
    status = _library().prefill_attention(
        q.data_ptr(),
        q.stride(0),
        n_tokens,
        n_heads,
        k.shape[1],
        head_dim,
        n_past,
        k.data_ptr(),
        v.data_ptr(),
        _KV_TYPES[k.dtype],
        k.stride(0) * k.element_size(),
        k.stride(1) * k.element_size(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    _check(status, f"attention with a head_dim of {head_dim}")
    return out
