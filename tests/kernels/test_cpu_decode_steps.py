"""Decode steps of a model against ``kernels.reference``, on every instruction set this machine has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from jambacli.kernels import cpu, reference
from jambacli.kernels.kv_blocks import BLOCK_BYTES, ROTATED, row_length
from jambacli.model.config import KV_TYPES
from jambacli.model.state import KV_DTYPES
from quant.formats import QTensor
from tests.support.weights import random_weight

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the C++ kernels were not built here")

EPS = 1e-6
HIDDEN, M = 256, 5
# Relative error of a whole step: float32 rounding, or int8 activations in its two to four products in a row.
BOUND = {"f32": 3e-6, "bf16": 3e-6, "q8_0": 3e-2, "q4_k": 3e-2, "i8": 3e-2}


def values(*shape: int, seed: int = 0, low: float | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    if low is None:
        return torch.randn(*shape, generator=generator)
    return low + torch.rand(*shape, generator=generator)


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def check_step(step: Any, expected: torch.Tensor, fmt: str, x: torch.Tensor, parts: list[Any], n_past: int = 0) -> None:
    """The step's output and states: near the reference, and the same bits in one call or in five, on 1 or 3 threads.

    parts: three equal copies of the sequence's tensors (None for a step without).
    """
    from jambacli.kernels.cpu import decode

    out = decode.run_single(step, x, n_past, part=parts[0], threads=3)
    assert error(out, expected) < BOUND[fmt]
    for t in range(len(x)):
        one = decode.run_single(step, x[t : t + 1].contiguous(), n_past + t, part=parts[1], threads=1)
        assert torch.equal(one[0], out[t])
    program = decode.Program([step])
    stream = x.clone()
    program.run(stream, n_past, program.bind([parts[2]]), threads=2)
    assert torch.allclose(stream, x + out, rtol=1e-6, atol=1e-6)
    if parts[0] is not None:
        for first, *others in zip(*parts, strict=True):
            assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("fmt", BOUND)
def test_mlp(isa: str, fmt: str) -> None:
    from jambacli.kernels.cpu.decode import MlpStep, run_single

    ffn = 768
    gate, up, down = (
        random_weight(fmt, s, seed=i) for i, s in enumerate([(ffn, HIDDEN), (ffn, HIDDEN), (HIDDEN, ffn)])
    )
    norm, x = values(HIDDEN, low=0.5), values(M, HIDDEN)
    expected = reference.mlp(reference.rms_norm(x, norm, EPS), gate, up, down)
    step = MlpStep(norm, EPS, gate=gate, up=up, down=down)
    check_step(step, expected, fmt, x, [None] * 3)
    precise = run_single(step, x, threads=2, precise=True)
    assert error(precise, expected) < (BOUND[fmt] if fmt in ("f32", "bf16") else 3e-4)
    assert torch.equal(precise[2:3], run_single(step, x[2:3].contiguous(), threads=1, precise=True))


@pytest.mark.parametrize("top_k", (1, 2, 4))
@pytest.mark.parametrize("fmt", BOUND)
def test_experts(isa: str, fmt: str, top_k: int) -> None:
    from jambacli.kernels.cpu.decode import ExpertsStep

    ffn, n = 512, 8
    gate, up, down = (
        random_weight(fmt, s, seed=i) for i, s in enumerate([(n, ffn, HIDDEN), (n, ffn, HIDDEN), (n, HIDDEN, ffn)])
    )
    norm, x, router = values(HIDDEN, low=0.5), values(M, HIDDEN), values(n, HIDDEN, seed=1) * 0.2
    expected = reference.experts(reference.rms_norm(x, norm, EPS), router, gate, up, down, top_k)
    step = ExpertsStep(norm, EPS, router=router, gate=gate, up=up, down=down, top_k=top_k)
    check_step(step, expected, fmt, x, [None] * 3)


@pytest.mark.parametrize("fmt", ("q4_k", "q6_k", "q8_0"))
def test_many_tokens_of_the_same_experts(isa: str, fmt: str) -> None:
    """Tokens are picked from the batch for each expert, more than one pass takes: the same bits as alone."""
    from jambacli.kernels.cpu.decode import ExpertsStep, MlpStep, run_single

    ffn, n, m = 512, 3, 77
    gate, up, down = (
        random_weight(fmt, s, seed=i) for i, s in enumerate([(n, ffn, HIDDEN), (n, ffn, HIDDEN), (n, HIDDEN, ffn)])
    )
    norm, x, router = values(HIDDEN, low=0.5), values(m, HIDDEN), values(n, HIDDEN, seed=1) * 0.2
    dense = [random_weight(fmt, s, seed=i) for i, s in enumerate([(ffn, HIDDEN), (ffn, HIDDEN), (HIDDEN, ffn)])]
    for step in (
        ExpertsStep(norm, EPS, router=router, gate=gate, up=up, down=down, top_k=2),
        MlpStep(norm, EPS, gate=dense[0], up=dense[1], down=dense[2]),
    ):
        for precise in (False, True):
            together = run_single(step, x, threads=3, precise=precise)
            again = run_single(step, x.flip(0).contiguous(), threads=2, precise=precise).flip(0)
            assert torch.equal(together, again)
            for t in (0, 30, 31, 32, 76):
                alone = run_single(step, x[t : t + 1].contiguous(), threads=1, precise=precise)
                assert torch.equal(together[t], alone[0])


@dataclass
class MambaCase:
    """A Mamba layer's weights and what the reference makes of them."""

    weights: dict[str, Any]
    d_inner: int
    rank: int

    def reference(self, x: torch.Tensor, norm: torch.Tensor, conv: torch.Tensor, ssm: torch.Tensor) -> torch.Tensor:
        w, n = self.weights, ssm.shape[1]
        projected = reference.linear(reference.rms_norm(x, norm, EPS), w["in_proj"])
        u = reference.causal_conv(projected[:, : self.d_inner], w["conv_weight"], w["conv_bias"], conv)
        dt, b, c = reference.linear(u, w["x_proj"]).split([self.rank, n, n], dim=1)
        y = reference.selective_scan(
            u,
            reference.linear(reference.rms_norm(dt, w["dt_norm"], EPS), w["dt_proj"]),
            w["dt_bias"],
            w["A"],
            reference.rms_norm(b, w["b_norm"], EPS),
            reference.rms_norm(c, w["c_norm"], EPS),
            w["D"],
            projected[:, self.d_inner :],
            ssm,
        )
        return reference.linear(y, w["out_proj"])


def mamba_case(fmt: str, d_state: int, d_conv: int) -> MambaCase:
    d, rank = 512, 256 if fmt == "q4_k" else 160
    return MambaCase(
        {
            "in_proj": random_weight(fmt, (2 * d, HIDDEN)),
            "conv_weight": values(d, d_conv) * 0.4,
            "conv_bias": values(d) * 0.1,
            "x_proj": random_weight(fmt, (rank + 2 * d_state, d)),
            "dt_norm": values(rank, low=0.5),
            "b_norm": values(d_state, low=0.5),
            "c_norm": values(d_state, seed=1, low=0.5),
            "dt_proj": random_weight(fmt, (d, rank)),
            "dt_bias": values(d, seed=2) * 3 - 3,
            "A": -16 * values(d, d_state, low=0.01),
            "D": values(d, seed=3),
            "out_proj": random_weight(fmt, (HIDDEN, d)),
        },
        d,
        rank,
    )


@pytest.mark.parametrize(("d_state", "d_conv"), [(16, 4), (8, 3), (5, 2), (24, 4)])
@pytest.mark.parametrize("fmt", BOUND)
def test_mamba(isa: str, fmt: str, d_state: int, d_conv: int) -> None:
    from jambacli.kernels.cpu.decode import MambaStep

    case = mamba_case(fmt, d_state, d_conv)
    norm, x = values(HIDDEN, low=0.5), values(M, HIDDEN)
    conv, ssm = values(case.d_inner, d_conv - 1), values(case.d_inner, d_state, seed=4)
    parts = [(conv.clone(), ssm.clone()) for _ in range(3)]
    expected = case.reference(x, norm, conv, ssm)
    check_step(MambaStep(norm, EPS, **case.weights), expected, fmt, x, parts)
    assert error(parts[0][0], conv) < BOUND[fmt]
    assert error(parts[0][1], ssm) < BOUND[fmt]


def attention_weights(fmt: str, n_heads: int, n_kv: int, dim: int) -> dict[str, QTensor]:
    shapes = {"q": (n_heads * dim, HIDDEN), "k": (n_kv * dim, HIDDEN), "v": (n_kv * dim, HIDDEN)}
    made = {name: random_weight(fmt, shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    return {**made, "out": random_weight(fmt, (HIDDEN, n_heads * dim), seed=3)}


def cache(kv: str, capacity: int, n_kv: int, dim: int, n_past: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random past keys and values in a cache whose unused end is poison."""
    from tests.support.ggml_reference import quantize_chunk

    made = []
    for seed in (5, 6):
        past = values(n_past, n_kv, dim, seed=seed)
        if kv in BLOCK_BYTES:
            c = torch.full((capacity, n_kv, row_length(kv, dim)), 0xFF, dtype=torch.uint8)
            if n_past:
                blocks = quantize_chunk(past.reshape(-1, dim).numpy(), kv)
                c[:n_past] = torch.from_numpy(blocks).view(n_past, n_kv, -1)
        else:
            c = torch.full((capacity, n_kv, dim), float("nan"), dtype=KV_DTYPES[kv])
            c[:n_past] = past
        made.append(c)
    return made[0], made[1]


@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize(("n_heads", "n_kv", "dim"), [(8, 2, 32), (5, 1, 128), (4, 4, 96)])
def test_attention(isa: str, kv: str, n_heads: int, n_kv: int, dim: int) -> None:
    """Around the boundaries of the fixed chunks of keys; the cache's room beyond the sequence is never looked at."""
    from jambacli.kernels.cpu.decode import AttentionStep

    w = attention_weights("f32", n_heads, n_kv, dim)
    norm, x = values(HIDDEN, low=0.5), values(M, HIDDEN)
    step = AttentionStep(norm, EPS, n_heads=n_heads, n_kv_heads=n_kv, kv_type=kv, **w)
    for n_past in (0, 1, 253, 256, 700):
        h = reference.rms_norm(x, norm, EPS)
        k, v = cache(kv, n_past + M, n_kv, dim, n_past)
        for name, c in (("k", k), ("v", v)):
            reference.kv_store(reference.linear(h, w[name]).view(M, n_kv, dim), c[n_past : n_past + M])
        q = reference.linear(h, w["q"]).view(M, n_heads, dim)
        expected = reference.linear(reference.attention(q, k, v, n_past), w["out"])
        parts = [cache(kv, n_past + M + extra, n_kv, dim, n_past) for extra in (0, 0, 0)]
        # New keys are rounded to the cache's type from values that differ in their last bits: f32 compares to the bit's
        # neighbourhood, the others to one rounding of a few of them.
        fmt = "f32" if kv == "f32" else "q8_0"
        check_step(step, expected, fmt, x, parts, n_past)


# n_past and tokens: around blocks of 32 keys, pieces of 256 up to 4,096 keys and pieces of 1,024 beyond.
POSITIONS = [(0, 1), (0, 9), (30, 4), (254, 3), (700, 1), (4095, 2), (5119, 2)]


@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize(
    ("n_heads", "n_kv", "dim"),
    [
        *((1, 1, 32), (3, 1, 20), (5, 1, 64), (9, 1, 96), (20, 1, 128)),
        *((8, 2, 128), (6, 2, 100), (18, 2, 40), (7, 7, 8)),
    ],
)
def test_attention_is_near_float64_and_the_same_for_any_threads_and_tokens(
    isa: str, kv: str, n_heads: int, n_kv: int, dim: int
) -> None:
    from jambacli.kernels.cpu.decode import AttentionStep, run_single

    if kv in BLOCK_BYTES and dim % 32:
        pytest.skip("blocks hold rows of whole blocks")
    w = attention_weights("f32", n_heads, n_kv, dim)
    step = AttentionStep(None, EPS, n_heads=n_heads, n_kv_heads=n_kv, kv_type=kv, **w)
    # With VNNI, queries meet keys in blocks as integers of 15 bits: some 5e-5 off, where those of 8 bits are 5e-3 off.
    bound = 1e-4 if kv in BLOCK_BYTES and isa not in ("scalar", "avx2", "avx512", "neon") else 3e-6
    q_weight, out_weight = (reference.dequantize(w[name]).double() for name in ("q", "out"))
    group = n_heads // n_kv
    for i, (n_past, m) in enumerate(POSITIONS):
        x = values(m, HIDDEN, seed=i) * 2
        first, second = (cache(kv, n_past + m, n_kv, dim, n_past) for _ in range(2))
        out = run_single(step, x, n_past, part=first, threads=1 + i % 7)
        for t in range(m):
            one = run_single(step, x[t : t + 1].contiguous(), n_past + t, part=second, threads=1)
            assert torch.equal(one[0], out[t]), (n_past, m, t)
        keys, rows = (reference.kv_values(c, dim).double().repeat_interleave(group, 1) for c in first)
        q = (x.double() @ q_weight.T).view(m, n_heads, dim)
        if kv in ROTATED:
            keys, rows = (reference.rotate(x.float()).double() for x in (keys, rows))
        scores = torch.einsum("thd,khd->htk", q, keys) * dim**-0.5
        hidden = torch.arange(n_past + m)[None] > torch.arange(n_past, n_past + m)[:, None]
        weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
        exact = torch.einsum("htk,khd->thd", weights, rows).reshape(m, -1) @ out_weight.T
        assert error(out.double(), exact) < bound, (n_past, m)


@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize(("n_heads", "n_kv", "dim"), [(5, 1, 64), (8, 2, 128), (7, 7, 32)])
def test_attention_over_several_sequences(isa: str, kv: str, n_heads: int, n_kv: int, dim: int) -> None:
    """Each token as alone, beside sequences of other lengths; nothing else is written."""
    from jambacli.kernels.cpu.decode import AttentionStep, Program, Span, run_single

    w = attention_weights("q8_0", n_heads, n_kv, dim)
    step = AttentionStep(None, EPS, n_heads=n_heads, n_kv_heads=n_kv, kv_type=kv, **w)
    program = Program([step])
    caches, alone = ([cache(kv, n + m, n_kv, dim, n) for n, m in POSITIONS] for _ in range(2))
    xs = [values(m, HIDDEN, seed=i) * 2 for i, (_, m) in enumerate(POSITIONS)]
    expected = [
        run_single(step, x[t : t + 1].contiguous(), n_past + t, part=part, threads=1)
        for x, part, (n_past, m) in zip(xs, alone, POSITIONS, strict=True)
        for t in range(m)
    ]
    for threads, order in ((1, slice(None)), (3, slice(None, None, -1)), (7, slice(None))):
        picked = list(range(len(POSITIONS)))[order]
        x = torch.cat([xs[i] for i in picked])
        out = torch.empty_like(x)
        spans = [Span(POSITIONS[i][1], POSITIONS[i][0], 0, -1) for i in picked]
        program.run_spans(x, spans, [program.bind([caches[i]]) for i in picked], threads=threads, out=out)
        rows = dict(zip(picked, out.split([POSITIONS[i][1] for i in picked]), strict=True))
        assert torch.equal(torch.cat([rows[i] for i in range(len(POSITIONS))]), torch.cat(expected))
    for mine, theirs in zip(caches, alone, strict=True):
        assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize(("d_state", "d_conv"), [(16, 4), (5, 2), (8, 1)])
def test_mamba_keeps_the_states_before_each_token(isa: str, d_state: int, d_conv: int) -> None:
    from jambacli.kernels.cpu.decode import MambaStep, Program, Span, run_single

    case = mamba_case("q8_0", d_state, d_conv)
    step = MambaStep(values(HIDDEN, low=0.5), EPS, **case.weights)
    program = Program([step])
    lengths, first_slot = (3, 1, 4), 2
    xs = [values(m, HIDDEN, seed=i) for i, m in enumerate(lengths)]
    parts, alone = (
        [(values(case.d_inner, d_conv - 1, seed=i), values(case.d_inner, d_state, seed=i + 9)) for i in range(3)]
        for _ in range(2)
    )
    histories = [tuple(x.new_full((6, *x.shape), float("nan")) for x in part) for part in parts]
    x = torch.cat(xs)
    out = torch.empty_like(x)
    spans = [Span(m, 0, 0, first_slot if i != 1 else -1) for i, m in enumerate(lengths)]
    bindings = [program.bind([(*p, *h)]) for p, h in zip(parts, histories, strict=True)]
    program.run_spans(x, spans, bindings, threads=3, out=out)
    for i, rows in enumerate(out.split(lengths)):
        for t in range(lengths[i]):
            if i != 1:
                assert all(torch.equal(h[first_slot + t], now) for h, now in zip(histories[i], alone[i], strict=True))
            one = run_single(step, xs[i][t : t + 1].contiguous(), t, part=alone[i], threads=1)
            assert torch.equal(one[0], rows[t])
        assert all(torch.equal(a, b) for a, b in zip(parts[i], alone[i], strict=True))
        used = range(first_slot, first_slot + lengths[i]) if i != 1 else range(0)
        assert all(bool(h[slot].isnan().all()) for h in histories[i] for slot in range(6) if slot not in used)


def test_attention_does_not_depend_on_the_size_of_the_context(isa: str) -> None:
    from jambacli.kernels.cpu.decode import AttentionStep, run_single

    step = AttentionStep(None, EPS, n_heads=4, n_kv_heads=2, kv_type="f16", **attention_weights("q8_0", 4, 2, 64))
    x = values(1, HIDDEN)
    outs = [run_single(step, x, 600, part=cache("f16", room, 2, 64, 600)) for room in (601, 1024, 5000)]
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_logits_of_the_last_tokens_only() -> None:
    from jambacli.kernels.cpu.decode import LogitsStep, MlpStep, Program

    gate, up, down = (random_weight("q8_0", s) for s in [(512, HIDDEN), (512, HIDDEN), (HIDDEN, 512)])
    output, norm, x = random_weight("q6_k", (1000, HIDDEN)), values(HIDDEN, low=0.5), values(M, HIDDEN)
    program = Program([MlpStep(norm, EPS, gate=gate, up=up, down=down), LogitsStep(norm, EPS, output)])
    logits = torch.full((2, 1000), float("nan"))
    stream = x.clone()
    program.run(stream, 0, program.bind([None, None]), logits)
    assert error(logits, reference.linear(reference.rms_norm(stream[-2:], norm, EPS), output)) < 2e-2
    nothing = x.clone()
    program.run(nothing, 0, program.bind([None, None]))
    assert torch.equal(nothing, stream)


def test_misfits_are_refused() -> None:
    from jambacli.kernels.cpu.decode import AttentionStep, ExpertsStep, MlpStep, Program, Span

    gate, up, down = (random_weight("q8_0", s) for s in [(512, HIDDEN), (512, HIDDEN), (HIDDEN, 512)])
    with pytest.raises(ValueError, match="fit"):
        MlpStep(None, EPS, gate=gate, up=down, down=down)
    with pytest.raises(ValueError, match="experts"):
        ExpertsStep(None, EPS, router=values(4, HIDDEN), gate=gate, up=up, down=down, top_k=2)
    w = attention_weights("f32", 4, 2, 32)
    with pytest.raises(ValueError, match="fit"):
        AttentionStep(None, EPS, n_heads=4, n_kv_heads=3, kv_type="f16", **w)
    step = AttentionStep(None, EPS, n_heads=4, n_kv_heads=2, kv_type="f16", **w)
    program = Program([step])
    with pytest.raises(ValueError, match="KV type"):
        program.bind([cache("f32", 8, 2, 32, 0)])
    binding = program.bind([cache("f16", 8, 2, 32, 0)])
    with pytest.raises(ValueError, match="room"):
        program.run(values(2, HIDDEN), 7, binding)
    with pytest.raises(ValueError, match="size"):
        program.run_spans(values(2, HIDDEN), [Span(2, 0, 3, -1)], [binding])
