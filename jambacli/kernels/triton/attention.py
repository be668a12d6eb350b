"""Attention over a KV cache in f32, f16, bf16 or q8_0: own kernels for decode, torch's fused attention for prefill.

Decode splits the keys into runs of ``SPLIT`` positions regardless of the context's limit, so a token's value does not depend on
that limit. Each run gives a partial sum with its softmax's maximum and total, and a second kernel joins the runs in order.
Positions are read on the device, so one CUDA graph serves every step.
"""

from __future__ import annotations

import torch
import torch.nn.attention.bias
import torch.nn.functional as F
import triton
import triton.language as tl

from jambacli.kernels import reference
from jambacli.kernels.triton import launch
from jambacli.kernels.triton.gemv import dot
from jambacli.kernels.triton.interleave import place
from jambacli.kernels.triton.launch import cdiv, power_of_two
from jambacli.kernels.triton.limits import CONVERT_VALUES, MASK_VALUES, SPLIT


@triton.jit
def _cache_rows(cache, at, head_row, seen, key, DIM: tl.constexpr, DP: tl.constexpr, Q8: tl.constexpr):
    """The DIM values of the rows that begin ``at``, int64 [rows], as float32 [rows, DP]; zeros for rows of keys from ``seen``
    on and beyond DIM. q8_0 rows are blocks of a float16 and 32 bytes, which are read as 17 words of 16 bits."""
    if Q8:
        rows: tl.constexpr = at.shape[0]
        block = tl.arange(0, DP // 32)
        word = tl.arange(0, 16)
        inside = (key < seen)[:, None] & (block * 32 < DIM)[None, :]
        first = cache.to(tl.pointer_type(tl.int16)) + (at + head_row)[:, None] // 2 + (block * 17)[None, :]
        factor = tl.load(first, mask=inside, other=0).to(tl.float16, bitcast=True).to(tl.float32)
        pair = tl.load(first[:, :, None] + (1 + word)[None, None, :], mask=inside[:, :, None], other=0).to(tl.int32)
        low = ((pair << 24) >> 24).to(tl.float32) * factor[:, :, None]
        high = (pair >> 8).to(tl.float32) * factor[:, :, None]
        value = tl.reshape(tl.join(low, high), (rows, DP))
    else:
        j = tl.arange(0, DP)
        inside = (key < seen)[:, None] & (j < DIM)[None, :]
        value = tl.load(cache + at[:, None] + head_row + j[None, :], mask=inside, other=0).to(tl.float32)
    return value


@triton.jit(do_not_specialize=["n_splits"])
def _split_kernel(
    q, k, v, position, part, top, total, token_stride, head_stride, n_splits, scale,
    GROUP: tl.constexpr, GP: tl.constexpr, DIM: tl.constexpr, DP: tl.constexpr, Q8: tl.constexpr,
    DOT: tl.constexpr, SPLIT: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Run ``program_id(1)`` of kv head ``program_id(0)``: part [heads, runs, DIM], top and total [heads, runs]."""
    head, run = tl.program_id(0), tl.program_id(1)
    seen = tl.load(position).to(tl.int32) + 1
    if run * SPLIT < seen:
        i = tl.arange(0, GP)
        j = tl.arange(0, DP)
        heads = head * GROUP + i
        queries = tl.load(
            q + heads[:, None] * DIM + j[None, :], mask=(i < GROUP)[:, None] & (j < DIM)[None, :], other=0
        )
        queries = (queries * scale).to(DOT)
        running_max = tl.full((GP,), float("-inf"), tl.float32)
        mass = tl.zeros((GP,), tl.float32)
        sums = tl.zeros((GP, DP), tl.float32)
        for start in range(0, SPLIT, BK):
            if run * SPLIT + start < seen:
                key = run * SPLIT + start + tl.arange(0, BK)
                at = key.to(tl.int64) * token_stride
                keys = _cache_rows(k, at, head * head_stride, seen, key, DIM, DP, Q8).to(DOT)
                scores = dot(queries, tl.trans(keys), tl.zeros((GP, BK), tl.float32))
                scores = tl.where((key < seen)[None, :], scores, float("-inf"))
                new = tl.maximum(running_max, tl.max(scores, 1))
                p = tl.exp(scores - new[:, None])
                shrink = tl.exp(running_max - new)
                mass = mass * shrink + tl.sum(p, 1)
                values = _cache_rows(v, at, head * head_stride, seen, key, DIM, DP, Q8).to(DOT)
                sums = dot(p.to(DOT), values, sums * shrink[:, None])
                running_max = new
        row = heads.to(tl.int64) * n_splits + run
        tl.store(part + row[:, None] * DIM + j[None, :], sums, mask=(i < GROUP)[:, None] & (j < DIM)[None, :])
        tl.store(top + row, running_max, mask=i < GROUP)
        tl.store(total + row, mass, mask=i < GROUP)


@triton.jit(do_not_specialize=["n_splits"])
def _split_vector_kernel(
    q, k, v, position, part, top, total, token_stride, head_stride, n_splits, scale,
    GROUP: tl.constexpr, DIM: tl.constexpr, DP: tl.constexpr, Q8: tl.constexpr,
    SPLIT: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The same without matrix units: run ``program_id(1)`` of head ``program_id(0)``.

    BK softmaxes run side by side, each over every BK-th key, and are joined at the end. In the loop only the threads that
    share a key's row exchange values.
    """
    head, run = tl.program_id(0), tl.program_id(1)
    seen = tl.load(position).to(tl.int32) + 1
    if run * SPLIT < seen:
        j = tl.arange(0, DP)
        query = tl.load(q + head * DIM + j, mask=j < DIM, other=0) * scale
        running_max = tl.full((BK,), float("-inf"), tl.float32)
        mass = tl.zeros((BK,), tl.float32)
        sums = tl.zeros((BK, DP), tl.float32)
        for start in range(0, SPLIT, BK):
            if run * SPLIT + start < seen:
                key = run * SPLIT + start + tl.arange(0, BK)
                at = key.to(tl.int64) * token_stride
                keys = _cache_rows(k, at, head // GROUP * head_stride, seen, key, DIM, DP, Q8)
                values = _cache_rows(v, at, head // GROUP * head_stride, seen, key, DIM, DP, Q8)
                scores = tl.where(key < seen, tl.sum(keys * query[None, :], 1), float("-inf"))
                new = tl.maximum(running_max, scores)
                base = tl.where(new > float("-inf"), new, 0.0)  # a softmax that has seen no key yet
                p = tl.exp(scores - base)
                shrink = tl.exp(running_max - base)
                mass = mass * shrink + p
                sums = sums * shrink[:, None] + p[:, None] * values
                running_max = new
        largest = tl.max(running_max, 0)
        weight = tl.exp(running_max - largest)
        row = head.to(tl.int64) * n_splits + run
        tl.store(part + row * DIM + j, tl.sum(sums * weight[:, None], 0), mask=j < DIM)
        tl.store(top + row, largest)
        tl.store(total + row, tl.sum(mass * weight, 0))


@triton.jit(do_not_specialize=["n_splits"])
def _join_kernel(
    part, top, total, position, out, n_splits,
    DIM: tl.constexpr, BD: tl.constexpr, SPLIT: tl.constexpr, BS: tl.constexpr, PLACED: tl.constexpr,
):  # fmt: skip
    """Join all runs up to the position, in order, into out [heads * DIM]; PLACED: interleaved."""
    head = tl.program_id(0)
    j = tl.program_id(1) * BD + tl.arange(0, BD)
    runs = tl.load(position).to(tl.int32) // SPLIT + 1
    row = head.to(tl.int64) * n_splits
    running_max = float("-inf")
    mass = 0.0
    sums = tl.zeros((BD,), tl.float32)
    for start in range(0, runs, BS):
        s = start + tl.arange(0, BS)
        tops = tl.load(top + row + s, mask=s < runs, other=float("-inf"))
        new = tl.maximum(running_max, tl.max(tops, 0))
        weight = tl.exp(tops - new)
        shrink = tl.exp(running_max - new)
        mass = mass * shrink + tl.sum(weight * tl.load(total + row + s, mask=s < runs, other=0), 0)
        at = part + (row + s)[:, None] * DIM + j[None, :]
        values = tl.load(at, mask=(s < runs)[:, None] & (j < DIM)[None, :], other=0)
        sums = sums * shrink + tl.sum(values * weight[:, None], 0)
        running_max = new
    at = head * DIM + j
    if PLACED:
        at = place(at)
    tl.store(out + at, sums / mass, mask=j < DIM)


@triton.jit(do_not_specialize=["CAPACITY"])
def _append_kernel(
    k_new, v_new, k, v, position, token_stride, head_stride, CAPACITY,
    DIM: tl.constexpr, DP: tl.constexpr, Q8: tl.constexpr,
):  # fmt: skip
    """Write keys and values [heads, DIM] of one token into the caches at its position."""
    head = tl.program_id(0)
    at = tl.load(position).to(tl.int64)
    source, cache = k_new, k
    if tl.program_id(1) == 1:
        source, cache = v_new, v
    row = cache + at * token_stride + head * head_stride
    if at < CAPACITY:
        if Q8:
            # As ggml rounds: the factor is the largest magnitude / 127, halves round away from zero.
            block = tl.arange(0, DP // 32)
            lane = tl.arange(0, 32)
            j = block[:, None] * 32 + lane[None, :]
            value = tl.load(source + head * DIM + j, mask=j < DIM, other=0)
            d = tl.div_rn(tl.max(tl.abs(value), 1), 127.0)
            inverse = tl.where(d == 0.0, 0.0, tl.div_rn(1.0, tl.where(d == 0.0, 1.0, d)))
            scaled = value * inverse[:, None]
            level = (scaled + tl.where(scaled < 0, -0.49999997, 0.49999997)).to(tl.int32)
            begin = row + block * 34
            tl.store(begin.to(tl.pointer_type(tl.float16)), d.to(tl.float16), mask=block * 32 < DIM)
            tl.store(begin[:, None] + 2 + lane[None, :], level.to(tl.uint8), mask=j < DIM)
        else:
            j = tl.arange(0, DP)
            value = tl.load(source + head * DIM + j, mask=j < DIM, other=0)
            tl.store(row + j, value.to(cache.dtype.element_ty), mask=j < DIM)


def matrix_units(device: torch.device) -> bool:
    """Whether Triton's products use the device's matrix units: from compute capability 8.0 on.

    For Turing, Triton compiles them to single multiplications with whole tiles in registers, where they do not fit.
    """
    return launch.capability(device) >= (8, 0)


def append(
    k_new: torch.Tensor, v_new: torch.Tensor, k: torch.Tensor, v: torch.Tensor, position: torch.Tensor, head_dim: int
) -> None:
    """Store one token's keys and values, float32 [n_kv_heads * head_dim], at ``position`` (int32 [1] on the device)."""
    n_kv_heads = k.shape[1]
    _append_kernel[n_kv_heads, 2](
        k_new, v_new, k, v, position, k.stride(0), k.stride(1), k.shape[0],
        DIM=head_dim, DP=max(32, power_of_two(head_dim)), Q8=k.dtype == torch.uint8, num_warps=1,
    )  # fmt: skip


class DecodeScratch:
    """Scratch memory between the two kernels of decode attention, for caches of ``capacity`` tokens."""

    def __init__(self, n_heads: int, head_dim: int, capacity: int, device: torch.device) -> None:
        self.n_splits = max(1, cdiv(capacity, SPLIT))
        self.part = torch.empty(n_heads, self.n_splits, head_dim, device=device)
        self.top = torch.empty(n_heads, self.n_splits, device=device)
        self.total = torch.empty(n_heads, self.n_splits, device=device)


def decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    position: torch.Tensor,
    scratch: DecodeScratch,
    out: torch.Tensor,
    dtype: torch.dtype,
    *,
    interleaved: bool = False,
) -> None:
    """One token's attention: q float32 [n_heads, head_dim] over keys 0 .. position, into ``out`` of q's shape, or
    [padded(n_heads * head_dim)] if ``interleaved``.

    k, v as in ``reference.attention``; position int32 [1] on the device; products in ``dtype``, sums in float32. Runs
    without keys end immediately, so ``scratch`` can be made for the whole cache.
    """
    from jambacli.kernels.triton.launch import triton_dtype

    n_heads, head_dim = q.shape
    n_kv_heads = k.shape[1]
    group = n_heads // n_kv_heads
    dp = max(32, power_of_two(head_dim))
    given = (
        q, k, v, position, scratch.part, scratch.top, scratch.total, k.stride(0), k.stride(1), scratch.n_splits,
        head_dim**-0.5,
    )  # fmt: skip
    sizes = {"GROUP": group, "DIM": head_dim, "DP": dp, "Q8": k.dtype == torch.uint8, "SPLIT": SPLIT}
    if dtype == torch.float32 or not matrix_units(q.device):
        # A thread's share of a tile fits into half of its registers; unpacking q8_0 takes several per value.
        keys = max(4, (1 << 10) // dp if k.dtype == torch.uint8 else min(32, (1 << 13) // (dp * k.dtype.itemsize)))
        _split_vector_kernel[n_heads, scratch.n_splits](*given, **sizes, BK=keys, num_warps=4)
    else:
        # Tiles of keys and of values take at most 16 KB of shared memory each; unpacking q8_0 takes more registers.
        keys = max(16, min(32 if k.dtype == torch.uint8 else 64, (1 << 14) // (dp * dtype.itemsize)))
        _split_kernel[n_kv_heads, scratch.n_splits](
            *given, **sizes, GP=max(16, power_of_two(group)), DOT=triton_dtype(dtype), BK=keys, num_warps=4
        )
    bd = min(32, dp)
    _join_kernel[n_heads, cdiv(head_dim, bd)](
        scratch.part, scratch.top, scratch.total, position, out, scratch.n_splits,
        DIM=head_dim, BD=bd, SPLIT=SPLIT, BS=64, PLACED=interleaved, num_warps=2,
    )  # fmt: skip


def prefill(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_past: int, dtype: torch.dtype) -> torch.Tensor:
    """Attention of many tokens through torch, see ``reference.attention``; products in ``dtype``."""
    n_tokens, n_heads, head_dim = q.shape
    total, n_kv_heads = n_past + n_tokens, k.shape[1]
    queries = q.to(dtype).transpose(0, 1)[None]  # [1, heads, T, dim]

    def expand(cache: torch.Tensor) -> torch.Tensor:
        values = cache[:total]
        if cache.dtype != dtype:  # in pieces: a long context in float32 would fill the GPU
            values = torch.empty(total, n_kv_heads, head_dim, dtype=dtype, device=cache.device)
            step = max(1, CONVERT_VALUES // (n_kv_heads * head_dim))
            for first in range(0, total, step):
                values[first : first + step] = reference.kv_values(cache[first : min(first + step, total)], head_dim)
        return values.transpose(0, 1)[None]

    keys, values = expand(k), expand(v)
    flash = q.is_cuda and dtype != torch.float32 and flash_attention(queries, keys, values)
    out = _flash(queries, keys, values) if flash else None
    if out is None:
        out = _by_kv_head(queries, keys, values, n_past)
    return out[0].transpose(0, 1).float().reshape(n_tokens, n_heads * head_dim)


def flash_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether torch has flash attention for these tensors: not in some wheels (Windows), not on GPUs before Ampere.

    Without it torch would not refuse grouped queries but build matrices of scores: 69 GB for 4,096 queries of 256K keys.
    """
    return _supported("can_use_flash_attention", q, k, v)


def efficient_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether torch has memory-efficient attention for these tensors, which have as many heads of keys as of queries."""
    return _supported("can_use_efficient_attention", q, k, v)


def _supported(question: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    try:
        from torch.backends import cuda

        grouped = q.shape[1] != k.shape[1]
        return bool(getattr(cuda, question)(cuda.SDPAParams(q, k, v, None, 0.0, False, grouped)))
    except (ImportError, AttributeError, TypeError, RuntimeError) as error:  # this torch cannot be asked
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return False


def _flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor | None:
    """Causal flash attention of the last queries over all keys, with grouped queries; None if it refuses them after all."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    grouped = q.shape[1] != k.shape[1]
    try:
        if q.shape[2] == k.shape[2]:
            # On newer GPUs torch would prefer cuDNN, which plans anew for every length.
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        bias = torch.nn.attention.bias.causal_lower_right(q.shape[2], k.shape[2])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=grouped)
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return None


def _by_kv_head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_past: int) -> torch.Tensor:
    """KV heads as a batch, each with the heads of its queries: memory-efficient attention has no grouped queries."""
    _, n_kv_heads, _, head_dim = k.shape
    queries = q[0].reshape(n_kv_heads, -1, q.shape[2], head_dim)
    keys, values = (x[0][:, None].expand(-1, queries.shape[1], -1, -1) for x in (k, v))
    if q.is_cuda and not efficient_attention(queries, keys, values):
        out = _in_pieces(queries, keys, values, n_past, max(1, MASK_VALUES // (q.shape[1] * k.shape[2])))
    elif n_past == 0:
        out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    else:
        out = _in_pieces(queries, keys, values, n_past, max(1, MASK_VALUES // k.shape[2]))
    return out.reshape(q.shape)


def _in_pieces(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_past: int, block: int) -> torch.Tensor:
    """The same with an explicit mask, ``block`` queries at a time, each over the keys that it may see. Without fused attention
    torch builds the scores of a block."""
    pieces = []
    for start in range(0, q.shape[2], block):
        part = q[:, :, start : start + block]
        seen = n_past + start + part.shape[2]
        limit = torch.arange(n_past + start, seen, device=q.device)[:, None]
        mask = torch.arange(seen, device=q.device)[None, :] <= limit
        sub = k[:, :, :seen], v[:, :, :seen]
        pieces.append(F.scaled_dot_product_attention(part, *sub, attn_mask=mask))
    return torch.cat(pieces, 2)
