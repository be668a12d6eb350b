"""Rounding with feedback: the error of products falls, for any shape and any statistics, with any number of threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quant import dequantize, native, quantize
from quant.feedback import Curvature, factorize, refine, row_errors, second_moments
from quant.formats import get_format
from quant.refine_reference import LAYOUTS
from tests.support.k_quant_cases import model_like, rows_of

pytestmark = pytest.mark.skipif(native.library() is None, reason="the C++ library is not built")


def inputs(n: int, tokens: int = 700, seed: int = 0) -> Tensor:
    """Correlated columns of unequal size, float32 [tokens, n]."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, n, generator=generator) @ torch.randn(n, n, generator=generator)
    return mixed * torch.rand(n, generator=generator).mul(3).exp() / n**0.5


def curvature_of(x: Tensor) -> Curvature:
    return factorize(second_moments(x))


def product_error(x: Tensor, weights: Tensor, blocks: Tensor, fmt: str) -> float:
    off = weights.double() - dequantize(blocks, fmt).double()
    return float((x.double() @ off.T).square().mean())


def test_the_triangle_is_a_root_of_the_damped_moments() -> None:
    x = inputs(600, tokens=300)  # fewer tokens than columns: singular without damping
    curvature = factorize(second_moments(x), damping=0.1)
    moments = x.double().T @ x.double() / len(x)
    wanted = moments + 0.1 * moments.diagonal().mean() * torch.eye(600)
    root = curvature.triangle.double()
    assert torch.equal(root, root.triu())
    assert float((root @ root.T - wanted).norm() / wanted.norm()) < 1e-6
    torch.testing.assert_close(curvature.importance.double(), moments.diagonal(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("fmt", LAYOUTS)
def test_products_are_closer_than_ggmls(fmt: str) -> None:
    n = 2 * get_format(fmt).block + (0 if get_format(fmt).block == 256 else 256)
    x, weights = inputs(n), torch.from_numpy(model_like(40, n))
    curvature = curvature_of(x)
    plain = quantize(weights, fmt, curvature.importance)
    refined = refine(weights, fmt, curvature)
    assert product_error(x, weights, refined, fmt) < 0.75 * product_error(x, weights, plain, fmt)
    assert bool(
        (row_errors(weights, refined, fmt, curvature) <= 1.0001 * row_errors(weights, plain, fmt, curvature)).all()
    )


@pytest.mark.parametrize("fmt", ["q4_k", "q5_0"])
def test_no_row_gets_worse_whatever_its_values(fmt: str) -> None:
    curvature = curvature_of(inputs(512))
    for kind in ("heavy", "outlier", "subnormal", "extreme", "far_overflow", "any_exponent"):
        weights = torch.from_numpy(rows_of(kind, 10, 512))
        plain = quantize(weights, fmt, curvature.importance)
        before, after = (row_errors(weights, b, fmt, curvature) for b in (plain, refine(weights, fmt, curvature)))
        fine = torch.isfinite(before)
        assert bool((after <= 1.001 * before + 1e-37)[fine].all()), kind
    zeros = torch.zeros(3, 512)
    assert torch.equal(dequantize(refine(zeros, fmt, curvature), fmt), zeros)


@pytest.mark.parametrize("kind", ["no tokens", "one token", "dead columns", "constant", "huge", "tiny"])
def test_poor_statistics_are_no_obstacle(kind: str) -> None:
    x = inputs(512, tokens=40)
    if kind == "no tokens":
        x = x[:0]
    elif kind == "one token":
        x = x[:1]
    elif kind == "dead columns":
        x[:, 100:400] = 0
    elif kind == "constant":
        x[:] = 1
    elif kind == "huge":
        x *= 1e12
    else:
        x *= 1e-12
    weights = torch.from_numpy(model_like(20, 512))
    curvature = curvature_of(x)
    plain, refined = quantize(weights, "q4_k", curvature.importance), refine(weights, "q4_k", curvature)
    assert torch.isfinite(dequantize(refined, "q4_k")).all()
    assert bool(
        (row_errors(weights, refined, "q4_k", curvature) <= row_errors(weights, plain, "q4_k", curvature) * 1.001).all()
    )


def test_threads_change_nothing() -> None:
    x, weights = inputs(768), torch.from_numpy(model_like(1100, 768))
    found = []
    for threads in (1, 3):
        curvature = factorize(second_moments(x, threads), threads=threads)
        found.append((curvature.triangle, refine(weights.bfloat16(), "q3_k", curvature, threads=threads)))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_what_does_not_fit_is_refused() -> None:
    curvature = curvature_of(inputs(256))
    with pytest.raises(ValueError, match="cannot refine rows of 512 values"):
        refine(torch.ones(2, 512), "q4_k", curvature)
    with pytest.raises(ValueError, match="in bf16"):
        refine(torch.ones(2, 256), "bf16", curvature)
    with pytest.raises(ValueError, match="not finite"):
        factorize(torch.full((4, 4), float("nan")))
    weights = torch.ones(700, 256)
    weights[600, 3] = float("inf")
    with pytest.raises(native.NonFiniteRowError, match="row 600"):
        refine(weights, "q4_k", curvature)
