"""The torch definitions of the operations against loops over float64 scalars, written from the papers' formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jambacli.kernels import reference
from jambacli.kernels.kv_blocks import row_length
from jambacli.model.state import KV_DTYPES
from quant.formats import FORMATS, QTensor


def f32(x: torch.Tensor) -> QTensor:
    return QTensor(x.contiguous().view(-1).view(torch.uint8), FORMATS["f32"], tuple(x.shape))


def close(got: torch.Tensor, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    assert tuple(got.shape) == expected.shape
    error = np.abs(got.numpy() - expected).max(initial=0)
    assert error <= tolerance * np.abs(expected).max(initial=1)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def float_weight(fmt: str, w: torch.Tensor) -> QTensor:
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[fmt]
    return QTensor(w.to(dtype).view(-1).view(torch.uint8), FORMATS[fmt], tuple(w.shape))


@pytest.mark.parametrize("fmt", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("tokens", "n_in", "n_out"), [(1, 64, 96), (3, 32, 7), (17, 160, 1)])
def test_linear_in_float_formats(fmt: str, tokens: int, n_in: int, n_out: int) -> None:
    x, w = random(tokens, n_in), random(n_out, n_in)
    weight = f32(w) if fmt == "f32" else float_weight(fmt, w)
    exact = reference.dequantize(weight).numpy().astype(np.float64)
    close(reference.linear(x, weight), x.numpy().astype(np.float64) @ exact.T)
    assert np.abs(exact - w.numpy()).max() < 0.02


def test_linear_in_panels_equals_linear_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = random(5, 64), float_weight("bf16", random(50, 64))
    whole = reference.linear(x, w)
    monkeypatch.setattr(reference, "_DEQUANTIZED_PANEL_BYTES", 64 * 4 * 8)
    torch.testing.assert_close(reference.linear(x, w), whole, rtol=1e-6, atol=1e-5)


def test_int8_rows_carry_their_own_scale() -> None:
    values, scale = torch.randint(-127, 128, (3, 5, 32), dtype=torch.int8), torch.rand(3, 5)
    w = QTensor(values.view(-1).view(torch.uint8), FORMATS["i8"], (3, 5, 32), scale)
    expected = values.numpy().astype(np.float64) * scale.numpy()[..., None]
    close(reference.dequantize(w), expected)
    close(reference.dequantize(reference.expert(w, 2)), expected[2])
    x = random(2, 32)
    close(reference.linear(x, reference.expert(w, 1)), x.numpy() @ expected[1].T)


def test_embed_picks_rows() -> None:
    w = random(11, 32)
    ids = torch.tensor([10, 0, 3, 3])
    assert torch.equal(reference.embed(ids, f32(w)), w[ids])


def test_rms_norm() -> None:
    x, weight = random(4, 48), random(48)
    y = x.numpy().astype(np.float64)
    close(
        reference.rms_norm(x, weight, 1e-3),
        y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-3) * weight.numpy(),
    )


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_experts_are_weighted_by_probabilities_of_all(top_k: int) -> None:
    tokens, hidden, ffn, n = 9, 16, 24, 5
    x, router = random(tokens, hidden), random(n, hidden)
    gate, up, down = random(n, ffn, hidden), random(n, ffn, hidden), random(n, hidden, ffn)
    X, G, U, W = (t.numpy().astype(np.float64) for t in (x, gate, up, down))
    expected = np.zeros_like(X)
    for t in range(tokens):
        logits = router.numpy().astype(np.float64) @ X[t]
        p = np.exp(logits - logits.max())
        p /= p.sum()
        for e in np.argsort(-p)[:top_k]:
            expected[t] += p[e] * (W[e] @ (silu(G[e] @ X[t]) * (U[e] @ X[t])))
    close(reference.experts(x, router, f32(gate), f32(up), f32(down), top_k), expected)


@pytest.mark.parametrize(("tokens", "d_inner", "d_conv"), [(1, 6, 4), (2, 5, 4), (3, 4, 3), (40, 7, 2), (3, 3, 1)])
def test_causal_conv_reads_and_moves_its_window(tokens: int, d_inner: int, d_conv: int) -> None:
    x, weight, bias = random(tokens, d_inner), random(d_inner, d_conv), random(d_inner)
    state = random(d_inner, d_conv - 1)
    seen = np.concatenate([state.numpy().T, x.numpy()]).astype(np.float64)
    expected = np.zeros((tokens, d_inner))
    for t in range(tokens):
        for c in range(d_inner):
            expected[t, c] = bias[c].item() + sum(weight[c, k].item() * seen[t + k, c] for k in range(d_conv))
    close(reference.causal_conv(x, weight, bias, state), silu(expected))
    close(state, seen[len(seen) - (d_conv - 1) :].T)


@pytest.mark.parametrize(("tokens", "d_inner", "d_state"), [(1, 6, 16), (2, 5, 8), (37, 4, 3)])
def test_selective_scan_is_the_recurrence(tokens: int, d_inner: int, d_state: int) -> None:
    x, dt, z = random(tokens, d_inner), random(tokens, d_inner), random(tokens, d_inner)
    dt_bias, D, A = random(d_inner), random(d_inner), -torch.rand(d_inner, d_state) * 3
    B, C, state = random(tokens, d_state), random(tokens, d_state), random(d_inner, d_state)
    h, expected = state.numpy().astype(np.float64), np.zeros((tokens, d_inner))
    for t in range(tokens):
        for c in range(d_inner):
            step = np.log1p(np.exp(float(dt[t, c] + dt_bias[c])))
            for s in range(d_state):
                h[c, s] = np.exp(step * float(A[c, s])) * h[c, s] + step * float(B[t, s]) * float(x[t, c])
            expected[t, c] = (h[c] @ C[t].numpy() + float(D[c]) * float(x[t, c])) * silu(np.float64(z[t, c]))
    close(reference.selective_scan(x, dt, dt_bias, A, B, C, D, z, state), expected)
    close(state, h)


def test_selective_scan_in_pieces_equals_scan_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    d_inner, d_state, tokens = 8, 4, 50
    x, dt, z = random(tokens, d_inner), random(tokens, d_inner), random(tokens, d_inner)
    fixed = (random(d_inner), -torch.rand(d_inner, d_state))
    B, C, D = random(tokens, d_state), random(tokens, d_state), random(d_inner)
    whole_state, state = torch.zeros(d_inner, d_state), torch.zeros(d_inner, d_state)
    whole = reference.selective_scan(x, dt, *fixed, B, C, D, z, whole_state)
    monkeypatch.setattr(reference, "_SCAN_VALUES", 3 * d_inner * d_state)
    parts = [
        reference.selective_scan(x[p], dt[p], *fixed, B[p], C[p], D, z[p], state)
        for p in (slice(0, 20), slice(20, 21), slice(21, 50))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(state, whole_state, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("past", "tokens", "n_heads", "n_kv_heads"), [(0, 1, 4, 4), (0, 9, 4, 2), (13, 5, 6, 1), (7, 1, 3, 3)]
)
def test_attention_is_causal_grouped_and_without_positions(
    past: int, tokens: int, n_heads: int, n_kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dim, total = 16, past + tokens
    q = random(tokens, n_heads, dim)
    k, v = random(total + 3, n_kv_heads, dim), random(total + 3, n_kv_heads, dim)  # spare room is never read
    Q, K, V = (a.numpy().astype(np.float64) for a in (q, k, v))
    expected = np.zeros((tokens, n_heads, dim))
    for t in range(tokens):
        for h in range(n_heads):
            g = h // (n_heads // n_kv_heads)
            scores = K[: past + t + 1, g] @ Q[t, h] / np.sqrt(dim)
            p = np.exp(scores - scores.max())
            expected[t, h] = (p / p.sum()) @ V[: past + t + 1, g]
    k[total:], v[total:] = float("nan"), float("nan")
    close(reference.attention(q, k, v, past), expected.reshape(tokens, -1))
    monkeypatch.setattr(reference, "_SCORE_VALUES", 2 * total)  # a query at a time
    close(reference.attention(q, k, v, past), expected.reshape(tokens, -1))


@pytest.mark.parametrize(
    ("kv_type", "tolerance"), [("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 1e-2), ("q5_1", 4e-2), ("q4_0", 9e-2)]
)
def test_keys_and_values_survive_storage(kv_type: str, tolerance: float) -> None:
    x = random(6, 2, 64)
    cache = torch.zeros(8, 2, row_length(kv_type, 64), dtype=KV_DTYPES[kv_type])
    reference.kv_store(x, cache[1:7])
    stored = reference.kv_values(cache[1:7], 64)
    close(reference.rotate(stored) if reference.rotated_cache(cache, 64) else stored, x.numpy(), tolerance)
    assert not cache[0].any()
    assert not cache[7].any()
