"""Compares the Triton kernels with the torch reference, case by case.

The same cases run in the tests, under Triton's interpreter on the CPU, and on a GPU in ``gpu_check``. A case's error is the
largest difference over the largest reference value. The reference computes in float32 on the CPU from the same bytes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from jambacli.evaluation.synthetic import random_weight
from jambacli.kernels import reference
from jambacli.kernels.triton.repack import BYTES, LAYOUTS, NIBBLES, PAIRS, Packed
from jambacli.runtime.cuda.self_check import rounded_to_int8
from quant.formats import QTensor

# Tolerances: float32 sums in another order; bf16 operands (which the interpreter truncates) summed in float32.
EXACT, HALF = 2e-5, 2.5e-2
# A level of int8 activations rounded the other way, where a product of float32 lies between two.
LEVEL = 1e-3


@dataclass(frozen=True)
class Case:
    """A comparison: ``run(device)`` returns the error, which must not exceed ``tolerance``."""

    name: str
    tolerance: float
    run: Callable[[torch.device], float]


def cases() -> Iterator[Case]:
    """All cases, the cheapest first."""
    yield Case("rms_norm", EXACT, _rms_norm)
    for tokens, d_inner, taps in ((1, 6, 4), (2, 130, 4), (40, 7, 2), (3, 3, 1)):
        yield Case(f"conv {tokens}x{d_inner} {taps} taps", EXACT, functools.partial(_conv, tokens, d_inner, taps))
    for taps in (4, 2, 1):
        yield Case(f"product, then a conv step of {taps}", EXACT, functools.partial(_conv_step, taps))
    for tokens, d_inner, d_state, chunk in ((1, 6, 16, 8), (5, 70, 8, 8), (37, 4, 3, 8), (40, 130, 16, 16)):
        run = functools.partial(_scan, tokens, d_inner, d_state, chunk)
        yield Case(f"scan {tokens}x{d_inner} state {d_state} in chunks of {chunk}", EXACT, run)
    for fmt, rank in (("f32", 96), ("q5_0", 96), ("q8_0", 96), ("q8_0", 288)):
        yield Case(f"scan step, {rank} of dt in {fmt}", EXACT, functools.partial(_scan_step, fmt, rank))
    for kv_type in ("f32", "f16", "bf16", "q8_0"):
        for past, heads, kv_heads, dim in ((0, 4, 2, 32), (300, 6, 1, 64), (513, 3, 3, 96)):
            run = functools.partial(_attention, kv_type, past, heads, kv_heads, dim)
            yield Case(f"attention {kv_type} past {past} heads {heads}/{kv_heads} of {dim}", EXACT, run)
        yield Case(
            f"attention {kv_type} many tokens", EXACT, functools.partial(_attention_many, kv_type, torch.float32)
        )
        run = functools.partial(_attention, kv_type, 300, 20, 1, 128, half=True)
        yield Case(f"attention {kv_type} past 300 heads 20/1 of 128 half", HALF, run)
        if kv_type != "f32":
            yield Case(f"attention {kv_type} many tokens half", HALF, functools.partial(_attention_many, kv_type, None))
    for fmt in LAYOUTS:
        yield Case(f"dequantize {fmt}", EXACT, functools.partial(_dequantize, fmt))
        yield Case(f"embed {fmt}", EXACT, functools.partial(_embed, fmt))
        yield Case(f"gemv {fmt}", EXACT, functools.partial(_gemv, fmt, 21, 512))
        yield Case(f"gemv gated {fmt}", EXACT, functools.partial(_gated, fmt))
        if LAYOUTS[fmt].levels in (BYTES, NIBBLES, PAIRS):
            yield Case(
                f"gemv int8 {fmt}", LEVEL, functools.partial(tiled_product, fmt, "norm", 1, 1, 21, 512, int8=True)
            )
        yield Case(f"gemm {fmt} f32", EXACT, functools.partial(_gemm, fmt, 19, 33, 256, torch.float32))
        yield Case(f"gemm {fmt} half", HALF, functools.partial(_gemm, fmt, 3, 70, 256, None))
    # The tiles that large matrices get; under the interpreter other cases have one tile for a whole matrix.
    for (rows, warps), fmt, kind in (
        ((4, 2), "q4_k", "norm"), ((4, 2), "q6_k", "gated"), ((4, 8), "q8_0", "conv"), ((4, 2), "i8", "plain"),
        ((2, 8), "q5_k", "norm"), ((2, 8), "q4_k", "gated"), ((2, 4), "q8_0", "gated"), ((2, 2), "q3_k", "conv"),
        ((1, 8), "q4_k", "conv"), ((4, 1), "bf16", "norm"), ((4, 1), "iq4_xs", "gated"), ((2, 1), "q2_k", "norm"),
    ):  # fmt: skip
        run = functools.partial(tiled_product, fmt, kind, rows, warps, 70, 512)
        yield Case(f"product {kind} {fmt} with {rows} rows a thread, {warps} warps", EXACT, run)
    for (rows, warps), fmt, kind in (
        ((4, 2), "q4_k", "norm"), ((2, 2), "q6_k", "gated"), ((4, 8), "q8_0", "conv"), ((4, 8), "q5_k", "plain")
    ):  # fmt: skip
        run = functools.partial(tiled_product, fmt, kind, rows, warps, 70, 480 if fmt == "q8_0" else 512, int8=True)
        yield Case(f"product int8 {kind} {fmt} with {rows} rows a thread, {warps} warps", LEVEL, run)
    for fmt in ("f32", "i8", "q8_0"):  # rows that end inside a tile, or inside a group if the format allows
        yield Case(f"gemv {fmt} odd row", EXACT, functools.partial(_gemv, fmt, 5, 160 if fmt == "q8_0" else 45))
    for options in ({"temperature": 0.0}, {"temperature": 1.0}, {"top_k": 40, "min_p": 0.02}, {"typical_p": 0.5}):
        run = functools.partial(_sampling, options)
        yield Case("sampling " + ", ".join(f"{k} {v:g}" for k, v in options.items()), 0.0, run)
    for fmt in ("q4_k", "i8", "q6_k", "bf16"):
        yield Case(f"experts one token {fmt}", EXACT, functools.partial(_experts_one, fmt))
        yield Case(f"experts many tokens {fmt}", EXACT, functools.partial(_experts_many, fmt))
        yield Case(f"experts one by one {fmt}", EXACT, functools.partial(_experts_one_by_one, fmt))


def device_cases() -> Iterator[Case]:
    """Cases at the sizes of a 3B, compared with float64 on the GPU itself, the most important first: what decode launches,
    in the tiles that it uses; products of 17 to 64 rows in bf16; the same product twenty times."""
    n, k = 10240, 2560
    for rows, warps in ((4, 2), (2, 2), (2, 8), (4, 8), (2, 4), (1, 8)):
        for kind in ("norm", "gated", "plain", "conv"):
            for fmt in ("q4_k", "q6_k", "q8_0", "i8", "q5_k"):
                run = functools.partial(tiled_product, fmt, kind, rows, warps, n, k)
                yield Case(f"real size: {kind} {fmt}, {rows} rows a thread, {warps} warps", 1e-4, run)
    for fmt in ("q4_k", "q6_k", "q8_0", "q5_k", "q4_0"):
        for rows, warps, kind in ((4, 2, "norm"), (2, 2, "gated"), (4, 8, "plain"), (4, 2, "conv")):
            run = functools.partial(tiled_product, fmt, kind, rows, warps, n, k, int8=True)
            yield Case(f"real size: int8 {kind} {fmt}, {rows} rows a thread, {warps} warps", LEVEL, run)
    for m in (17, 40, 64):
        for gated in (False, True):
            for fmt in ("q4_k", "q6_k", "q8_0", "bf16"):
                run = functools.partial(many_rows, fmt, m, 1024, k, gated)
                yield Case(f"real size: {m} rows times {fmt} in bf16{', gated' if gated else ''}", 2e-3, run)
                again = functools.partial(differing_runs, fmt, m, 1024, k, gated)
                yield Case(f"twenty times {m} rows times {fmt} in bf16{', gated' if gated else ''}", 0.0, again)
    for tokens in (40, 160, 300):
        yield Case(
            f"real size: experts of {tokens} tokens in bf16", HALF, functools.partial(many_experts, tokens, 1024, k)
        )


@functools.lru_cache(2)
def _large(fmt: str, n: int, k: int, device: torch.device, seed: int = 0) -> tuple[Packed, torch.Tensor]:
    """A random matrix in planes, and its values in float64, both on the device."""
    from jambacli.kernels.triton.dequant import dequantize

    packed = packed_on(random_weight(fmt, (n, k), seed=seed), device)
    return packed, dequantize(packed, torch.float32).view(n, k).double()


def tiled_product(
    fmt: str, kind: str, rows: int, warps: int, n: int, k: int, device: torch.device, *, int8: bool = False
) -> float:
    """A product in an explicit tile against float64 on the device. ``kind``: plain; norm (and a residual); gated (and a norm);
    conv (half of the rows go through a convolution step). All but the plain one read and write interleaved activations.
    ``int8``: against the same activations rounded to int8."""
    from jambacli.kernels.triton.gemv import ConvStep, gemv
    from jambacli.kernels.triton.interleave import interleaved, natural, padded
    from jambacli.kernels.triton.launch import Tile

    w, values = _large(fmt, n, k, device)
    x, norm, residual = (_randn(1, size, seed=seed).to(device) for size, seed in ((k, 1), (k, 2), (n, 3)))
    tile = Tile(rows, warps)
    placed = {"plain": 0, "conv": n // 2}.get(kind, n)
    options: dict[str, Any] = {} if kind in ("plain", "conv") else {"norm": interleaved(norm[0]), "eps": 1e-5}
    factor = 1 / (x.double().square().mean() + 1e-5).sqrt() if options else 1.0
    wide = x * norm if options else x
    wide = (rounded_to_int8(wide) if int8 else wide.double()) * factor
    expected = wide @ values.T
    if kind == "norm":
        options["residual"], expected = interleaved(residual), expected + residual.double()
    if kind == "gated":
        up, up_values = _large(fmt, n, k, device, 1)
        options["up"], expected = up, torch.nn.functional.silu(expected) * (wide @ up_values.T)
    if kind == "conv":
        channels = n // 2
        weight, bias, state = (
            _randn(*shape, seed=4).to(device) for shape in ((channels, 4), (channels,), (channels, 3))
        )
        taken = torch.cat([state.double(), expected[0, :channels, None]], 1)
        convolved = torch.nn.functional.silu((taken * weight.double()).sum(1) + bias.double())
        expected = torch.cat([convolved[None], expected[:, channels:]], 1)
        options["conv"] = ConvStep(weight, bias, state)
    if kind != "plain":
        x = interleaved(x)
    got = gemv(x, w, tile=tile, interleaved=kind != "plain", placed=placed, int8=int8, **options)
    got = torch.cat([natural(got[:, : padded(placed)], placed), got[:, padded(placed) :]], 1)
    return error(got, expected.float().cpu())


def many_rows(fmt: str, m: int, n: int, k: int, gated: bool, device: torch.device) -> float:
    """A product of some rows on the matrix units against float64 of the same rounded operands, on the device."""
    got, expected = _many_rows(fmt, m, n, k, gated, device)
    return error(got(), expected.float().cpu())


def differing_runs(fmt: str, m: int, n: int, k: int, gated: bool, device: torch.device) -> float:
    """How many of twenty runs of the same product differ from the first in any bit: a race if it is not zero."""
    got, _ = _many_rows(fmt, m, n, k, gated, device)
    first = got()
    return float(sum(not torch.equal(got(), first) for _ in range(19)))


def _many_rows(
    fmt: str, m: int, n: int, k: int, gated: bool, device: torch.device
) -> tuple[Callable[[], torch.Tensor], torch.Tensor]:
    from jambacli.kernels.triton.gemm import gemm
    from jambacli.kernels.triton.ops import compute_dtype

    dtype = compute_dtype(device)
    (w, values), (up, up_values) = _large(fmt, n, k, device), _large(fmt, n, k, device, 1)
    x = _randn(m, k).to(device)
    wide = x.to(dtype).double()
    expected = wide @ values.to(dtype).double().T
    if gated:
        expected = torch.nn.functional.silu(expected) * (wide @ up_values.to(dtype).double().T)
    return lambda: gemm(x, w, up=up if gated else None, dtype=dtype), expected


def many_experts(tokens: int, ffn: int, hidden: int, device: torch.device) -> float:
    """A mixture's experts on the matrix units against float64 on the device."""
    from jambacli.kernels.triton.dequant import dequantize
    from jambacli.kernels.triton.experts import choose, many_tokens
    from jambacli.kernels.triton.ops import compute_dtype

    n = 8
    shapes = (n, ffn, hidden), (n, ffn, hidden), (n, hidden, ffn)
    packed = [packed_on(random_weight("q4_k", shape, seed=i), device) for i, shape in enumerate(shapes)]
    gate, up, down = (dequantize(w, torch.float32).view(w.shape).double() for w in packed)
    x, router = _randn(tokens, hidden).to(device), _randn(n, hidden, seed=2).to(device)
    weights, chosen = choose(x, router, 2)
    expected = torch.zeros(tokens, hidden, dtype=torch.float64, device=device)
    for e in range(n):
        own = x.double()
        y = (torch.nn.functional.silu(own @ gate[e].T) * (own @ up[e].T)) @ down[e].T
        expected += y * (weights * (chosen == e)).sum(1, keepdim=True).double()
    got = many_tokens(x, router, packed[0], packed[1], packed[2], 2, compute_dtype(device))
    return error(got, expected.float().cpu())


def _sampling(options: dict[str, float], device: torch.device) -> float:
    """The share of tokens that the device samples differently from the CPU, given the same random numbers."""
    import numpy as np

    from jambacli.engine.gpu_sampling import DeviceLogits
    from jambacli.engine.sampling import Sampler, Sampling

    on_cpu, on_device = (Sampler(Sampling(**options, seed=7)) for _ in range(2))  # type: ignore[arg-type]
    wrong = 0
    for seed in range(40):
        x = np.random.default_rng(seed).normal(0, 2.5, 65536).astype(np.float32)
        wrong += on_cpu.sample(x) != on_device.sample(DeviceLogits(torch.from_numpy(x).to(device)))
    return wrong / 40


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest expected value; infinite if a value is missing or not finite."""
    got = got.float().cpu()
    if got.shape != expected.shape or not bool(torch.isfinite(got).all()):
        return math.inf
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-20)) if expected.numel() else 0.0


def packed_on(w: QTensor, device: torch.device) -> Packed:
    """The weight in planes on the device."""
    from jambacli.runtime.cuda.load import upload

    return upload(w, device)


def _randn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 1000 * math.prod(shape)))


def _rms_norm(device: torch.device) -> float:
    from jambacli.kernels.triton.norm import rms_norm

    x, weight = _randn(3, 2100)[:, :1400], _randn(1400)
    return error(rms_norm(x.to(device), weight.to(device), 1e-3), reference.rms_norm(x, weight, 1e-3))


def _conv(tokens: int, d_inner: int, taps: int, device: torch.device) -> float:
    from jambacli.kernels.triton.conv import causal_conv

    x, weight, bias = _randn(tokens, 2 * d_inner)[:, :d_inner], _randn(d_inner, taps), _randn(d_inner, seed=3)
    state = _randn(d_inner, taps - 1)
    moved = state.to(device, copy=True)
    got = causal_conv(x.to(device), weight.to(device), bias.to(device), moved)
    expected = reference.causal_conv(x, weight, bias, state)
    return max(error(got, expected), error(moved, state) if taps > 1 else 0.0)


def _conv_step(taps: int, device: torch.device) -> float:
    from jambacli.kernels.triton.gemv import ConvStep, gemv

    d_inner = 70
    x, w, norm = _randn(1, 96), random_weight("q8_0", (2 * d_inner, 96), size=1.0), _randn(96)
    weight, bias, state = _randn(d_inner, taps), _randn(d_inner), _randn(d_inner, taps - 1)
    conv = ConvStep(weight.to(device), bias.to(device), state.to(device, copy=True))
    got = gemv(x.to(device), packed_on(w, device), norm=norm.to(device), eps=1e-6, conv=conv)
    expected = reference.linear(reference.rms_norm(x, norm, 1e-6), w)
    expected[:, :d_inner] = reference.causal_conv(expected[:, :d_inner].contiguous(), weight, bias, state)
    return max(error(got, expected), error(conv.state, state) if taps > 1 else 0.0)


def _scan(tokens: int, d_inner: int, d_state: int, chunk: int, device: torch.device) -> float:
    from jambacli.kernels.triton.scan import selective_scan

    x, dt, z = (_randn(tokens, d_inner, seed=s) for s in (1, 2, 3))
    bias, D, A = _randn(d_inner, seed=4), _randn(d_inner, seed=5), -3 * _randn(d_inner, d_state).abs()
    B, C, state = _randn(tokens, d_state, seed=6), _randn(tokens, d_state, seed=7), _randn(d_inner, d_state, seed=8)
    moved = [t.to(device, copy=True) for t in (x, dt, bias, A, B, C, D, z, state)]
    got = selective_scan(*moved, chunk=chunk)
    expected = reference.selective_scan(x, dt, bias, A, B, C, D, z, state)
    return max(error(got, expected), error(moved[-1], state))


def _scan_step(fmt: str, rank: int, device: torch.device) -> float:
    from jambacli.kernels.triton.interleave import interleaved, natural, padded
    from jambacli.kernels.triton.scan import scan_step

    d_inner, d_state = 70, 6
    w = random_weight(fmt, (d_inner, rank))
    x, z, dtbc = _randn(1, d_inner), _randn(1, d_inner, seed=2), _randn(rank + 2 * d_state)
    norms = _randn(rank), _randn(d_state), _randn(d_state, seed=2)
    bias, D, A = _randn(d_inner, seed=4), _randn(d_inner, seed=5), -3 * _randn(d_inner, d_state).abs()
    state = _randn(d_inner, d_state, seed=8)
    moved, out = state.to(device, copy=True), torch.empty(padded(d_inner), device=device)
    dt_norm, b_norm, c_norm = (t.to(device) for t in norms)
    dt_and_rest = torch.cat([interleaved(dtbc[:rank]), dtbc[rank:]]).to(device)
    scan_step(
        interleaved(x[0].to(device)), dt_and_rest, (interleaved(dt_norm), b_norm, c_norm), 1e-6, packed_on(w, device),
        bias.to(device), A.to(device), D.to(device), z[0].to(device), moved, out,
    )  # fmt: skip
    parts = dtbc[None].split([rank, d_state, d_state], 1)
    dt, B, C = (reference.rms_norm(part, weight, 1e-6) for part, weight in zip(parts, norms, strict=True))
    expected = reference.selective_scan(x, reference.linear(dt, w), bias, A, B, C, D, z, state)
    return max(error(natural(out, d_inner)[None], expected), error(moved, state))


def _caches(kv_type: str, capacity: int, kv_heads: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    dtypes = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "q8_0": torch.uint8}
    row = dim // 32 * 34 if kv_type == "q8_0" else dim
    empty = torch.zeros(capacity, kv_heads, row, dtype=dtypes[kv_type])
    return empty, empty.clone()


def _attention(
    kv_type: str, past: int, heads: int, kv_heads: int, dim: int, device: torch.device, *, half: bool = False
) -> float:
    from jambacli.kernels.triton.attention import DecodeScratch, append, decode
    from jambacli.kernels.triton.interleave import natural, padded
    from jambacli.kernels.triton.ops import attention_dtype, compute_dtype

    k, v = _caches(kv_type, past + 9, kv_heads, dim)
    new = [_randn(past + 1, kv_heads, dim, seed=s) for s in (1, 2)]
    for x, cache in zip(new, (k, v), strict=True):
        reference.kv_store(x, cache[: past + 1])
    on_device = [cache.to(device, copy=True) for cache in (k, v)]
    for cache in on_device:
        cache[past:].zero_()
    position = torch.tensor([past], dtype=torch.int32, device=device)
    k_new, v_new = (x[past].flatten().to(device) for x in new)
    append(k_new, v_new, on_device[0], on_device[1], position, dim)
    stored = max(
        error(reference.kv_values(a[: past + 1].cpu(), dim), reference.kv_values(b[: past + 1], dim))
        for a, b in zip(on_device, (k, v), strict=True)
    )
    # The interpreter truncates to bf16, GPUs round: a difference of one in the last place.
    allowed = 2.0**-7 if kv_type == "bf16" else 0.0
    q, out = _randn(1, heads, dim, seed=3), torch.empty(padded(heads * dim), device=device)
    k, v = on_device[0].cpu(), on_device[1].cpu()
    # In float32 only the order of sums differs; ``half`` is what decode uses.
    dtype = attention_dtype(k, compute_dtype(device)) if half else torch.float32
    scratch = DecodeScratch(heads, dim, past + 9, device)
    # A decode step's product reads the result in its own order.
    decode(q[0].to(device), on_device[0], on_device[1], position, scratch, out, dtype, interleaved=half)
    out = natural(out, heads * dim) if half else out[: heads * dim]
    return max(error(out.view(1, -1), reference.attention(q, k, v, past)), stored - allowed)


def _attention_many(kv_type: str, dtype: torch.dtype | None, device: torch.device) -> float:
    from jambacli.kernels.triton.attention import prefill
    from jambacli.kernels.triton.ops import attention_dtype, compute_dtype

    dim, heads, kv_heads, past, tokens = 64, 4, 2, 13, 7
    k, v = _caches(kv_type, past + tokens + 3, kv_heads, dim)
    for cache, seed in ((k, 1), (v, 2)):
        reference.kv_store(_randn(past + tokens + 3, kv_heads, dim, seed=seed), cache)
    worst = 0.0
    for n_past in (0, past):
        q = _randn(tokens, heads, dim, seed=3 + n_past)
        as_type = dtype or attention_dtype(k, compute_dtype(device))
        got = prefill(q.to(device), k.to(device), v.to(device), n_past, as_type)
        worst = max(worst, error(got, reference.attention(q, k, v, n_past)))
    return worst


def _dequantize(fmt: str, device: torch.device) -> float:
    from jambacli.kernels.triton.dequant import dequantize

    w = random_weight(fmt, (3, 7, 256))
    return error(dequantize(packed_on(w, device), torch.float32).view(3, 7, 256), reference.dequantize(w))


def _embed(fmt: str, device: torch.device) -> float:
    from jambacli.kernels.triton.dequant import embed
    from jambacli.kernels.triton.interleave import natural

    w, ids = random_weight(fmt, (11, 256)), torch.tensor([10, 0, 3, 3])
    packed, expected = packed_on(w, device), reference.embed(ids, w)
    got = natural(embed(ids.to(device), packed, interleaved=True), 256)
    return max(error(embed(ids.to(device), packed), expected), error(got, expected))


def _gemv(fmt: str, n: int, k: int, device: torch.device) -> float:
    from jambacli.kernels.triton.gemv import gemv

    w, x, norm, residual = random_weight(fmt, (n, k)), _randn(2, k), _randn(k, seed=2), _randn(2, n, seed=3)
    got = gemv(x.to(device), packed_on(w, device), norm=norm.to(device), eps=1e-5, residual=residual.to(device))
    return error(got, residual + reference.linear(reference.rms_norm(x, norm, 1e-5), w))


def _gated(fmt: str, device: torch.device) -> float:
    from jambacli.kernels.triton.gemv import gemv

    gate, up, x = random_weight(fmt, (21, 256)), random_weight(fmt, (21, 256), seed=1), _randn(1, 256)
    got = gemv(x.to(device), packed_on(gate, device), up=packed_on(up, device))
    expected = torch.nn.functional.silu(reference.linear(x, gate)) * reference.linear(x, up)
    return error(got, expected)


def _gemm(fmt: str, m: int, n: int, k: int, dtype: torch.dtype | None, device: torch.device) -> float:
    from jambacli.kernels.triton.gemm import gemm
    from jambacli.kernels.triton.ops import compute_dtype

    w, x = random_weight(fmt, (n, k)), _randn(m, k)
    got = gemm(x.to(device), packed_on(w, device), dtype=dtype or compute_dtype(device))
    return error(got, reference.linear(x, w))


def _mixture(fmt: str) -> tuple[torch.Tensor, torch.Tensor, QTensor, QTensor, QTensor]:
    n, hidden, ffn = 5, 256, 256
    gate, up = (random_weight(fmt, (n, ffn, hidden), seed=s) for s in (1, 2))
    return _randn(9, hidden), _randn(n, hidden), gate, up, random_weight(fmt, (n, hidden, ffn), seed=3)


def _experts_one(fmt: str, device: torch.device) -> float:
    from jambacli.kernels.triton.experts import one_token
    from jambacli.kernels.triton.interleave import interleaved, natural

    x, router, gate, up, down = _mixture(fmt)
    norm = _randn(x.shape[1], seed=9)
    h = reference.rms_norm(x[:1], norm, 1e-5)
    x0 = x[0].to(device)
    logits = (h @ router.T)[0].to(device)
    packed = packed_on(gate, device), packed_on(up, device), packed_on(down, device)
    weight, expected = norm.to(device), x[:1] + reference.experts(h, router, gate, up, down, 2)
    got = one_token(x0, logits, *packed, 2, norm=weight, eps=1e-5, residual=x0)
    x1 = interleaved(x0)
    placed = one_token(x1, logits, *packed, 2, norm=interleaved(weight), eps=1e-5, residual=x1, interleaved=True)
    return max(error(got[None], expected), error(natural(placed, len(x0))[None], expected))


def _experts_many(fmt: str, device: torch.device) -> float:
    from jambacli.kernels.triton.experts import many_tokens

    x, router, gate, up, down = _mixture(fmt)
    packed = packed_on(gate, device), packed_on(up, device), packed_on(down, device)
    got = many_tokens(x.to(device), router.to(device), packed[0], packed[1], packed[2], 2, torch.float32)
    return error(got, reference.experts(x, router, gate, up, down, 2))


def _experts_one_by_one(fmt: str, device: torch.device) -> float:
    """Enough tokens that each expert's matrix is dequantized and multiplied separately."""
    from jambacli.kernels.triton.ops import FEW_ROWS, TritonOps

    _, router, gate, up, down = _mixture(fmt)
    x = _randn(FEW_ROWS * len(router) // 2 + 1, gate.shape[-1], seed=4)
    packed = packed_on(gate, device), packed_on(up, device), packed_on(down, device)
    got = TritonOps(torch.float32).experts(x.to(device), router.to(device), *packed, 2)
    return error(got, reference.experts(x, router, gate, up, down, 2))
