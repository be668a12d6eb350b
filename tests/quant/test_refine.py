"""Refined blocks: C++ against torch bit by bit, and never a larger error than ggml's blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from quant import dequantize, native, quantize
from quant.formats import get_format
from quant.refine_blocks import can_refine, search, solve
from quant.refine_fields import read_grid
from quant.refine_reference import LAYOUTS, Grid, descend, gradient, round_in_order
from quant.refine_reference import search as reference_search
from tests.support.ggml_reference import sample_imatrix, sample_rows
from tests.support.k_quant_cases import ALL_KINDS, model_like, rows_of

pytestmark = pytest.mark.skipif(native.library() is None, reason="the C++ library is not built")

FORMATS = tuple(LAYOUTS)


def width(fmt: str) -> int:
    """Columns of the column blocks that these tests use: a super-block, or some blocks of 32."""
    return max(64, get_format(fmt).block)


def values_of(fmt: str) -> Tensor:
    parts = [sample_rows("normal", 9, width(fmt), seed=1), sample_rows("heavy", 9, width(fmt), seed=2)]
    return torch.from_numpy(np.concatenate([*parts, np.zeros((1, width(fmt)), np.float32)]))


def quadratic(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """S and upper triangular R with R R' = S, of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = (
        torch.randn(3 * n, n, generator=generator, dtype=torch.float64)
        @ torch.randn(n, n, generator=generator).double()
    )
    s = x.T @ x / len(x) + torch.eye(n)
    r = torch.linalg.cholesky(s.flip(0, 1)).flip(0, 1)
    return s.float().contiguous(), r.float().contiguous()


def assert_same(blocks: Tensor, expected: Grid, fmt: str) -> None:
    found = read_grid(blocks, fmt)
    assert torch.equal(found.d, expected.d) and torch.equal(found.dmin, expected.dmin)
    if expected.layout.scales:
        assert torch.equal(found.scale, expected.scale) and torch.equal(found.minimum, expected.minimum)
    assert torch.equal(found.level, expected.level)


def weighted_errors(values: Tensor, blocks: Tensor, fmt: str, weights: Tensor) -> Tensor:
    """The weighted squared error of each block, float64 [rows, blocks]."""
    off = (values.double() - dequantize(blocks, fmt).double()).square() * weights.double()
    return off.view(len(values), -1, get_format(fmt).block).sum(-1)


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_search_has_the_bits_of_the_reference(fmt: str, isa: str, one_thread: None) -> None:
    values = values_of(fmt)
    weights = torch.from_numpy(sample_imatrix(values.shape[1], 3, "uneven"))
    start = quantize(values, fmt, weights, threads=1)
    grid = read_grid(start, fmt)
    reference_search(values.T.contiguous(), weights[:, None].expand(-1, len(values)), grid)
    assert_same(search(values, fmt, weights, threads=1), grid, fmt)


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_descent_has_the_bits_of_the_reference(fmt: str, isa: str, one_thread: None) -> None:
    values = values_of(fmt)
    S, R = quadratic(values.shape[1])
    start = quantize(values, fmt, S.diagonal().contiguous(), threads=1)
    x = values.T.contiguous()

    blocks, found = start.clone(), torch.empty_like(values)
    solve(fmt, values, S, blocks, R=R, rounds=2, values=found, threads=1)
    grid = read_grid(start, fmt)
    round_in_order(x, R, grid)
    descend(S, grid, 2, gradient(x, S, grid))
    assert_same(blocks, grid, fmt)
    assert torch.equal(found, dequantize(blocks, fmt))

    slope = torch.randn(values.shape, generator=torch.Generator().manual_seed(4))
    solve(fmt, values, S, blocks, gradient=slope, rounds=1, threads=1)
    descend(S, grid, 1, slope.T.contiguous())
    assert_same(blocks, grid, fmt)


@pytest.mark.parametrize("fmt", FORMATS)
def test_no_block_gets_worse_whatever_its_values(fmt: str) -> None:
    weights = torch.from_numpy(sample_imatrix(512, 4, "gaps"))
    for kind in ALL_KINDS:
        values = torch.from_numpy(rows_of(kind, 12, 512))
        start = quantize(values, fmt, weights)
        finite = torch.isfinite(dequantize(start, fmt)).all(1)  # blocks with an infinite scale are refused elsewhere
        before = weighted_errors(values, start, fmt, weights)[finite]
        after = weighted_errors(values, search(values, fmt, weights), fmt, weights)[finite]
        # The search compares sums of float32.
        assert bool((after <= before * (1 + 1e-5) + 1e-37).all()), kind


@pytest.mark.parametrize("fmt", FORMATS)
def test_model_weights_get_better(fmt: str) -> None:
    values = torch.from_numpy(model_like(32, 512))
    S, R = quadratic(width(fmt), seed=1)
    weights = S.diagonal().contiguous().repeat(512 // width(fmt))
    start = quantize(values, fmt, weights)
    searched = search(values, fmt, weights)
    before = weighted_errors(values, start, fmt, weights).sum()
    assert weighted_errors(values, searched, fmt, weights).sum() < before

    def error(blocks: Tensor) -> float:
        off = values[:, : width(fmt)].double() - dequantize(blocks, fmt).double()
        return float(((off @ S.double()) * off).sum())

    part = start[:, : get_format(fmt).row_bytes(width(fmt))]
    solved = part.clone()
    solve(fmt, values[:, : width(fmt)], S, solved, R=R, rounds=0)
    rounded = error(solved)
    solve(fmt, values[:, : width(fmt)], S, solved, rounds=2)
    assert error(solved) < rounded < error(part)


@pytest.mark.parametrize("fmt", FORMATS)
def test_threads_change_nothing(fmt: str) -> None:
    values = torch.from_numpy(model_like(67, 512))
    weights = torch.from_numpy(sample_imatrix(512, 1, "uneven"))
    assert torch.equal(search(values, fmt, weights, threads=1), search(values, fmt, weights, threads=7))


def test_what_does_not_fit_is_refused() -> None:
    values, weights = torch.ones(2, 256), torch.ones(256)
    assert can_refine("q4_k") and not can_refine("bf16")
    with pytest.raises(ValueError, match="no C"):
        search(values, "f16", weights)
    with pytest.raises(ValueError, match="weights must be"):
        search(values, "q4_k", weights[:-1])
    with pytest.raises(ValueError, match="negative or non-finite"):
        search(values, "q4_k", -weights, blocks=quantize(values, "q4_k"))
    values[1, 7] = float("nan")
    with pytest.raises(native.NonFiniteRowError, match="row 1"):
        search(values, "q4_k", weights, blocks=quantize(torch.ones(2, 256), "q4_k"))
    eye = torch.eye(256)
    with pytest.raises(ValueError, match="blocks must be"):
        solve("q4_k", torch.ones(2, 256), eye, torch.zeros(2, 145, dtype=torch.uint8))
    with pytest.raises(ValueError, match="whole blocks"):
        solve("q4_0", torch.ones(2, 288), torch.eye(288), torch.zeros(2, 9 * 18, dtype=torch.uint8))
    with pytest.raises(ValueError, match="not both"):
        solve("q4_k", torch.ones(2, 256), eye, quantize(torch.ones(2, 256), "q4_k"), R=eye, gradient=torch.ones(2, 256))
