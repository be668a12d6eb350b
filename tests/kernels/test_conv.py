"""The causal convolution over many tokens against torch's own conv1d in float64, whole and in pieces."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from jambacli.kernels.cpu import prefill


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def expected(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    history = torch.cat([state.double(), x.double().T], dim=1)
    y = F.conv1d(history[None], weight.double()[:, None], bias.double(), groups=len(weight))
    return F.silu(y[0].T)


@pytest.mark.parametrize("d_conv", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("tokens", "d_inner"), [(1, 16), (2, 37), (50, 64), (9, 100), (130, 5)])
def test_conv(isa: str, tokens: int, d_inner: int, d_conv: int) -> None:
    x = torch.randn(tokens, 2 * d_inner)[:, :d_inner]
    weight, bias, state = torch.randn(d_inner, d_conv), torch.randn(d_inner), torch.randn(d_inner, d_conv - 1)
    y, before = expected(x, weight, bias, state), state.clone()
    got = prefill.causal_conv(x, weight, bias, state)
    assert float((got - y).abs().max()) < 1e-5
    assert torch.equal(state, torch.cat([before, x.T], dim=1)[:, tokens:])


@pytest.mark.parametrize("d_conv", [2, 4])
def test_pieces_and_threads_do_not_change_a_bit(isa: str, d_conv: int) -> None:
    x, weight, bias = torch.randn(60, 70), torch.randn(70, d_conv), torch.randn(70)
    start = torch.randn(70, d_conv - 1)
    whole_state = start.clone()
    whole = prefill.causal_conv(x, weight, bias, whole_state)
    threads = torch.get_num_threads()
    try:
        for n, cuts in ((1, [60]), (3, [1, 2, 30, 27]), (2, [1] * 60)):
            torch.set_num_threads(n)
            state = start.clone()
            pieces = [prefill.causal_conv(p, weight, bias, state) for p in x.split(cuts)]
            assert torch.equal(torch.cat(pieces), whole) and torch.equal(state, whole_state)
    finally:
        torch.set_num_threads(threads)


def test_more_taps_than_any_jamba_has_are_refused() -> None:
    with pytest.raises(ValueError, match="17 tokens"):
        prefill.causal_conv(torch.randn(2, 8), torch.randn(8, 17), torch.randn(8), torch.randn(8, 16))
