"""Products of many tokens with block-quantized weights against the gguf package's values in float64, on every ISA."""

from __future__ import annotations

import pytest
import torch

from jambacli.kernels import reference
from jambacli.kernels.cpu import prefill
from quant.formats import FORMATS, QTensor
from tests.support.weights import NATIVE, as_f32, random_weight, values

# Products in f32 panels are exact to rounding. bf16 has eight bits: each factor is off by at most 2^-9 of itself, and
# the errors of a sum are independent. int8 panels hold weights exactly and round inputs to a 254th of the largest of 32:
# 0.0053 of what normal inputs measure, and up to twice that in sums of few.
EXACT, ROUNDED, INT8 = 2e-6, 4e-3, 1e-2


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def uses_bf16(isa: str, *names: str) -> bool:
    return isa in ("amx", "bf16") and not {"f32", "f16"} & set(names)


def uses_int8(isa: str, *names: str) -> bool:
    """Whether weights of all these formats are multiplied as bytes."""
    floats, wide = {"f32", "f16", "bf16"}, {"q8_0", "iq4_nl", "iq4_xs", "i8"}
    without = {"vnni": floats, "avx512": floats | wide, "avxvnni": floats, "avx2": floats}
    return isa in without and not without[isa] & set(names)


def limit_of(isa: str, *names: str) -> float:
    """The largest error of one product with weights of these formats."""
    return ROUNDED if uses_bf16(isa, *names) else INT8 if uses_int8(isa, *names) else EXACT


def distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape and got.dtype == torch.float32
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def product_error(got: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> float:
    """Against x @ w.T in float64, in units of what the terms of a sum add up to when their signs are random: a sum that
    happens to cancel says nothing about the rounding of its terms."""
    x, w = x.double(), w.double()
    assert got.shape == (x.shape[0], w.shape[0]) and got.dtype == torch.float32
    return float(((got.double() - x @ w.T).square().mean() / (x.square() @ w.T.square()).mean()).sqrt())


def shapes_of(name: str) -> list[tuple[int, int]]:
    """Odd and even row counts; rows of whole super-blocks, of a few blocks, of no whole chunk, as the format allows."""
    common = [(70, 768), (33, 256), (16, 1280)]
    return common + {32: [(48, 160), (5, 32)], 1: [(48, 160), (7, 100), (1, 33), (40, 513)]}.get(
        FORMATS[name].block, []
    )


@pytest.mark.parametrize("name", NATIVE)
def test_panels_hold_the_formats_values(isa: str, name: str) -> None:
    for shape in shapes_of(name):
        w = random_weight(name, shape)
        got, expected = prefill.dequantize(w), values(w)
        if uses_bf16(isa, name):
            # scale * q - offset is rounded once before it is rounded to bf16, gguf's is rounded twice: ties may differ
            assert got.dtype == torch.bfloat16
            assert (got == expected.bfloat16()).float().mean() > 0.999
            tolerance = expected.abs() * 2**-8 + expected.abs().max() * 1e-6
            assert bool(((got.float() - expected).abs() <= tolerance).all())
        else:
            assert torch.equal(got, expected)


@pytest.mark.parametrize("name", NATIVE)
def test_linear(isa: str, name: str) -> None:
    for shape in shapes_of(name):
        w = random_weight(name, shape)
        for tokens in (1, 3, 16, 50, 70):
            x = torch.randn(tokens, shape[1])
            limit = limit_of(isa, name)
            assert product_error(prefill.linear(x, w), x, values(w)) < limit, (shape, tokens)


@pytest.mark.parametrize("name", NATIVE)
def test_inputs_of_one_value_give_the_weights(isa: str, name: str) -> None:
    """One value among 32 is a byte exactly, so this is what int8 panels hold."""
    for shape in shapes_of(name):
        w, columns = random_weight(name, shape), torch.randperm(shape[1])[:70]
        x = torch.zeros(len(columns), shape[1])
        x[torch.arange(len(columns)), columns] = 1.0
        got, expected = prefill.linear(x, w), values(w)[:, columns].T
        limit = expected.abs() * 2**-7 if uses_bf16(isa, name) else expected.abs() * 4e-7
        assert bool(((got - expected).abs() <= limit + expected.abs().max() * 1e-6).all()), shape


@pytest.mark.parametrize("name", ["q4_k", "q6_k", "q8_0", "q4_0", "i8"])
def test_inputs_of_many_sizes(isa: str, name: str) -> None:
    w = random_weight(name, (64, 512))
    x = torch.randn(20, 512)
    x[1], x[2], x[3], x[4, ::7] = 0.0, x[2] * 1e-20, x[3] * 1e20, 0.0
    got, exact = prefill.linear(x, w), x.double() @ values(w).double().T
    assert bool((got[1] == 0).all())
    for i in (0, 2, 3, 4):
        assert product_error(got[i : i + 1], x[i : i + 1], values(w)) < 1.5 * limit_of(isa, name), i
    assert bool(got.isfinite().all()) and got.shape == exact.shape


@pytest.mark.parametrize("name", [n for n in NATIVE if n not in ("f32", "f16", "bf16", "i8")])
def test_inputs_are_rounded_less_than_in_ggml(isa: str, name: str) -> None:
    """ggml rounds inputs to multiples of a 127th of the largest of 32, or of 256 for super-blocks."""
    w, group = random_weight(name, (96, 1024)), FORMATS[name].block
    for rare in (1.0, 15.0):  # of the values, one in 100 is that many times as large
        x = torch.randn(64, 1024) * torch.where(torch.rand(64, 1024) < 0.01, rare, 1.0)
        parts = x.view(64, -1, group)
        step = parts.abs().amax(-1, keepdim=True) / 127
        theirs = ((parts / step).round() * step).view_as(x)
        limit = product_error(theirs @ values(w).T, x, values(w))
        assert product_error(prefill.linear(x, w), x, values(w)) < 0.9 * limit


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q8_0", "i8"])
def test_inputs_that_are_all_equal_or_far_from_zero(isa: str, name: str) -> None:
    w, x = random_weight(name, (64, 512)), torch.randn(6, 512)
    x[0], x[1], x[2] = 0.7, -3.0, 1000.0 + x[2]
    x[3], x[4] = -x[3].abs() - 50.0, x[4].abs()
    for i in range(6):
        assert product_error(prefill.linear(x[i : i + 1], w), x[i : i + 1], values(w)) < max(
            3 * limit_of(isa, name), 1e-4
        ), i


def test_linear_of_more_tokens_than_a_panel_serves(isa: str) -> None:
    w, x = random_weight("q8_0", (40, 64)), torch.randn(2100, 64)
    limit = limit_of(isa, "q8_0")
    assert product_error(prefill.linear(x, w), x, values(w)) < limit


def test_linear_of_no_tokens(isa: str) -> None:
    assert prefill.linear(torch.randn(0, 64), random_weight("q8_0", (40, 64))).shape == (0, 40)


@pytest.mark.parametrize("name", ["q4_k", "q6_k", "q8_0", "q4_0", "f16"])
def test_a_token_does_not_depend_on_its_company_or_on_threads(isa: str, name: str) -> None:
    w, x = random_weight(name, (200, 1024)), torch.randn(100, 1024)
    whole = prefill.linear(x, w)
    for first, last in ((17, 60), (5, 6), (97, 100), (0, 32)):
        assert torch.equal(prefill.linear(x[first:last], w), whole[first:last])
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 5, 7):
            torch.set_num_threads(n)
            assert torch.equal(prefill.linear(x, w), whole)
    finally:
        torch.set_num_threads(threads)


def test_linear_of_part_of_a_wider_tensor(isa: str) -> None:
    w, wide = random_weight("q6_k", (48, 256)), torch.randn(20, 600)
    for x in (wide[:, 100:356], wide[::2, :256], torch.randn(256, 20).T, wide[:, :256].double()):
        assert torch.equal(prefill.linear(x, w), prefill.linear(x.float().contiguous(), w))


def test_values_that_are_not_numbers_stay_in_their_row(isa: str) -> None:
    w, x = random_weight("q4_k", (40, 256)), torch.randn(20, 256)
    clean = prefill.linear(x, w)
    x[3, 7], x[18, 200] = float("nan"), float("inf")
    got = prefill.linear(x, w)
    kept = [i for i in range(20) if i not in (3, 18)]
    assert torch.equal(got[kept], clean[kept])
    assert bool(got[3].isnan().all()) and not bool(got[18].isfinite().any())


def test_a_format_without_kernels_goes_through_gguf() -> None:
    w = QTensor(torch.randint(0, 16, (4 * 66,), dtype=torch.uint8), FORMATS["iq2_xxs"], (4, 256))
    x = torch.randn(3, 256)
    with pytest.warns(UserWarning, match="iq2_xxs"):
        got = prefill.linear(x, w)
    assert torch.equal(got, reference.linear(x, w))


MIXES = [
    *(("q4_k", "q4_k", "q6_k"), ("i8", "i8", "i8"), ("f32", "f32", "f32"), ("q8_0", "f16", "q4_0"), ("bf16",) * 3),
    *(("q4_0", "q4_0", "q6_k"), ("q4_0", "q5_1", "q8_0"), ("q4_k", "iq4_nl", "q4_1")),
]


@pytest.mark.parametrize("mix", MIXES, ids="-".join)
def test_gated_network(isa: str, mix: tuple[str, str, str]) -> None:
    hidden, ffn = 256, 768
    shapes = [(ffn, hidden), (ffn, hidden), (hidden, ffn)]
    gate, up, down = (
        random_weight(name, shape, seed=i) for i, (name, shape) in enumerate(zip(mix, shapes, strict=True))
    )
    for tokens in (1, 37):
        x = torch.randn(tokens, hidden)
        opened = torch.nn.functional.silu(x.double() @ values(gate).double().T)
        expected = (opened * (x.double() @ values(up).double().T)) @ values(down).double().T
        limit = 2 * limit_of(isa, *mix)
        assert distance(prefill.mlp(x, gate, up, down), expected) < limit


def test_gated_network_of_odd_sizes(isa: str) -> None:
    x, hidden, ffn = torch.randn(21, 50), 50, 71
    gate, up, down = (random_weight("f16", s) for s in [(ffn, hidden), (ffn, hidden), (hidden, ffn)])
    expected = reference.mlp(x, as_f32(gate), as_f32(up), as_f32(down))
    assert distance(prefill.mlp(x, gate, up, down), expected) < EXACT


def stacked(n_experts: int, hidden: int, ffn: int, gate: str, down: str) -> tuple[QTensor, QTensor, QTensor]:
    """gate, up and down of all experts."""
    wide = (n_experts, ffn, hidden)
    return random_weight(gate, wide, seed=1), random_weight(gate, wide), random_weight(down, (n_experts, hidden, ffn))


@pytest.mark.parametrize(("n_experts", "top_k"), [(5, 1), (8, 2), (6, 4), (3, 3)])
def test_experts(isa: str, n_experts: int, top_k: int) -> None:
    gate, up, down = stacked(n_experts, 256, 512, "q4_k", "q6_k")
    router = torch.randn(n_experts, 256) * 0.1
    for tokens in (1, 5, 90):
        x = torch.randn(tokens, 256)
        expected = reference.experts(x, router, as_f32(gate), as_f32(up), as_f32(down), top_k)
        limit = 2 * limit_of(isa, "q4_k")
        assert distance(prefill.experts(x, router, gate, up, down, top_k), expected) < limit


def test_experts_nobody_chose_are_not_read(isa: str) -> None:
    clean = stacked(4, 64, 96, "f32", "f32")
    gate, up, down = (QTensor(w.data.clone(), w.format, w.shape) for w in clean)
    x = torch.randn(30, 64).abs()
    router = torch.stack([torch.full((64,), v) for v in (0.01, -9.0, 0.02, -9.0)])
    expected = reference.experts(x, router, gate, up, down, 2)
    for w in (gate, up, down):
        w.data.view(torch.float32).view(4, -1)[[1, 3]] = float("nan")
    assert distance(prefill.experts(x, router, gate, up, down, 2), expected) < EXACT


def test_rms_norm(isa: str) -> None:
    x, weight = torch.randn(5, 7, 100) * 30, torch.randn(100)
    for part in (x, x[:, 2], x[..., :64]):
        w = weight[: part.shape[-1]]
        got = prefill.rms_norm(part, w, 1e-6)
        assert distance(got, reference.rms_norm(part.double(), w.double(), 1e-6)) < 1e-6
