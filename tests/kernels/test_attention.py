"""Blockwise attention over the cache against softmax in float64, over every KV type, length and grouping."""

from __future__ import annotations

import pytest
import torch

from jambacli.kernels import reference
from jambacli.kernels.cpu import prefill
from jambacli.kernels.kv_blocks import BLOCK_BYTES, ROTATED, row_length
from jambacli.model.state import KV_DTYPES

# tokens, n_past, n_heads, n_kv_heads, head_dim: multi-query, grouped, one head each; across blocks of 128 keys and
# stretches of 2048.
SHAPES = [
    (1, 0, 4, 2, 32),
    (1, 300, 4, 1, 64),
    (5, 3, 20, 1, 128),
    (100, 0, 8, 2, 128),
    (33, 517, 6, 3, 96),
    (20, 2100, 4, 4, 64),
    (70, 4090, 4, 1, 32),
]
ODD_HEADS = [(17, 40, 3, 1, 20), (9, 0, 2, 2, 100)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def cache(x: torch.Tensor, kv: str) -> torch.Tensor:
    stored = torch.zeros(*x.shape[:-1], row_length(kv, x.shape[-1]), dtype=KV_DTYPES[kv])
    reference.kv_store(x, stored)
    return stored


def expected(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_past: int) -> torch.Tensor:
    """The definition, one whole matrix of scores in float64."""
    n_tokens, n_heads, head_dim = q.shape
    total = n_past + n_tokens
    keys, rows = (reference.kv_values(c[:total], head_dim) for c in (k, v))
    if reference.rotated_cache(k, head_dim):
        keys, rows = reference.rotate(keys), reference.rotate(rows)  # as they were before
    keys, rows = keys.double(), rows.double()
    group = n_heads // k.shape[1]
    keys, rows = keys.repeat_interleave(group, 1), rows.repeat_interleave(group, 1)
    scores = torch.einsum("thd,khd->htk", q.double(), keys) * head_dim**-0.5
    hidden = torch.arange(total)[None] > torch.arange(n_past, total)[:, None]
    weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
    return torch.einsum("htk,khd->thd", weights, rows).reshape(n_tokens, -1)


def distance(got: torch.Tensor, exact: torch.Tensor) -> float:
    assert got.shape == exact.shape and got.dtype == torch.float32
    return float((got.double() - exact).norm() / exact.norm())


def test_rotation_is_orthogonal_its_own_inverse_and_the_same_to_the_bit(isa: str) -> None:
    for dim in (32, 64, 96, 128, 160, 256):
        matrix = reference.rotate(torch.eye(dim))
        assert torch.allclose(matrix @ matrix.T, torch.eye(dim), atol=1e-6)
        assert torch.equal(matrix, matrix.T)
        piece = dim & -dim
        assert (matrix.abs() > 0).sum() == dim * piece  # each value goes to all of its piece
        x = torch.randn(7, 3, dim) * 5
        assert torch.equal(prefill.rotate(x), reference.rotate(x))


@pytest.mark.parametrize("kv", sorted(ROTATED))
def test_rotation_makes_room_for_a_few_large_values(kv: str) -> None:
    """A head with outliers, stored with and without rotation: the products of keys and queries are nearer with it."""
    from quant.dequantize_blocks import dequantize
    from quant.quantize_blocks import quantize

    k, q = torch.randn(200, 1, 128), torch.randn(200, 1, 128)
    k[..., 5] *= 30
    plain = dequantize(quantize(k, kv), kv)
    rotated = reference.rotate(reference.kv_values(cache(k, kv), 128))
    errors = [((q * (x - k)).sum(-1)).norm() for x in (rotated, plain)]
    assert errors[0] < 0.6 * errors[1]


@pytest.mark.parametrize("kv", ["f32", "f16", "bf16", "q8_0", "q5_1", "q4_0"])
def test_attention(isa: str, kv: str) -> None:
    # Over an f32 cache all is f32. Else, where bf16 is fast, scores (a few units large) are off by some 2^-8.
    limit = 1e-2 if isa in ("amx", "bf16") and kv != "f32" else 5e-6
    for tokens, n_past, n_heads, n_kv_heads, head_dim in SHAPES + (ODD_HEADS if kv not in BLOCK_BYTES else []):
        q = torch.randn(tokens, n_heads, head_dim) * 2
        room = n_past + tokens + 7  # a cache is longer than what it holds, and the rest is anything
        k, v = (cache(torch.randn(room, n_kv_heads, head_dim), kv) for _ in range(2))
        if kv == "f32":
            k[n_past + tokens :] = v[n_past + tokens :] = float("nan")
        got = prefill.attention(q, k, v, n_past)
        assert distance(got, expected(q, k, v, n_past)) < limit, (tokens, n_past, n_heads, n_kv_heads, head_dim)


@pytest.mark.parametrize("kv", ["f32", "f16"])
def test_threads_do_not_change_a_bit_and_chunks_only_the_rounding(isa: str, kv: str) -> None:
    q = torch.randn(80, 6, 64)
    k, v = (cache(torch.randn(180, 2, 64), kv) for _ in range(2))
    whole = prefill.attention(q, k, v, 100)
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            assert torch.equal(prefill.attention(q, k, v, 100), whole)
    finally:
        torch.set_num_threads(threads)
    parts = torch.cat([prefill.attention(q[:33], k, v, 100), prefill.attention(q[33:], k, v, 133)])
    assert distance(parts, whole.double()) < (1e-2 if isa in ("amx", "bf16") and kv == "f16" else 1e-6)


def test_large_scores_neither_overflow_nor_vanish(isa: str) -> None:
    q = torch.randn(40, 2, 32) * 300
    k, v = (cache(torch.randn(140, 1, 32), "f32") for _ in range(2))
    assert distance(prefill.attention(q, k, v, 100), expected(q, k, v, 100)) < 1e-4


def test_a_cache_it_cannot_read_is_refused() -> None:
    q, cache_of = torch.randn(2, 2, 32), lambda dtype: torch.zeros(4, 1, 32, dtype=dtype)
    with pytest.raises(ValueError, match="float64"):
        prefill.attention(q, cache_of(torch.float64), cache_of(torch.float64), 0)
    with pytest.raises(ValueError, match="no attention"):
        prefill.attention(q, cache_of(torch.float16), cache_of(torch.float32), 0)
